"""How answers are read and spelled: units by hand, and one spelling for what votes are counted by."""

import cloudpickle
import pytest

from saerl_lightning.reward.grading.equality import spelled
from saerl_lightning.reward.grading.numbers import unit_name
from saerl_lightning.reward.grading.spelling import tidied
from saerl_lightning.reward.grading.values import read
from saerl_lightning.reward.workers import serve

UNITS = {
    "cubic metres": "metre^3",
    "cu ft": "foot^3",
    "square feet": "foot^2",
    "sq ft": "foot^2",
    "m^3": "metre^3",
    "m": "metre",
    "apples": "",
    "metres per widget": "",
    "dollars per widget": "",
    "km/h": "",
}


@pytest.mark.parametrize("words", UNITS)
def test_a_unit_has_its_power_and_a_rate_is_no_known_unit(words):
    assert unit_name(words.split()) == UNITS[words]


SPELLED = {
    "(2, 1)": "(2, 1)",
    "[2, 1]": "[2, 1]",
    r"\{2, 1\}": "1, 2",
    "2, 1": "1, 2",
    "y = 2, x = 1": "x=1, y=2",
    "x = 2, x = 1": "1, 2",
    "x = 2": "2",
    "0.50": r"\frac{1}{2}",
    r"[3, 4] \cup [1, 2]": r"[1, 2] \cup [3, 4]",
}


@pytest.mark.parametrize("answer", SPELLED)
def test_sets_are_spelled_in_one_order_and_tuples_in_their_own(answer):
    assert spelled(read(tidied(answer))) == SPELLED[answer]


def test_a_worker_whose_trainer_is_gone_ends_by_itself_after_twice_the_deadline(monkeypatch):
    class Pipe:
        def __init__(self):
            self.messages = [b"no job", cloudpickle.dumps((None, 3.0))]

        def send(self, said):
            pass

        def send_bytes(self, said):
            pass

        def recv_bytes(self):
            if not self.messages:
                raise EOFError
            return self.messages.pop()

    asked = []
    monkeypatch.setattr(
        "faulthandler.dump_traceback_later", lambda timeout, **more: asked.append((timeout, more["exit"]))
    )
    monkeypatch.setattr("signal.signal", lambda *asked: None)
    serve(Pipe())
    assert asked == [(7.0, True)]
