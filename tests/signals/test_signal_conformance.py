"""What every shipped signal source promises. A new one without an example below fails."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

import saerl_lightning.signals
from saerl_lightning.records import Prompt
from saerl_lightning.signals.random_signals import RandomSignals
from saerl_lightning.signals.source import SignalSource
from tests import shipped_classes

# Each class by its name: ways to configure it that must all differ in features, the first one is the subject.
EXAMPLES = {
    "RandomSignals": [{}, {"columns": 5}, {"seed": 1}],
    "ShuffledSignals": [{"inner": RandomSignals()}, {"inner": RandomSignals(), "seed": 1}, {"inner": RandomSignals(5)}],
    "TextSignals": [{}, {"max_features": 5}, {"ngrams": 1}, {"sublinear": False}],
    "LengthSignals": [{}],
    "SAESignals": lambda tiny: [
        {"model": tiny.model, "sae": tiny.sae},
        {"model": tiny.model, "sae": tiny.sae, "pooling": "max"},
        {"model": tiny.model, "sae": tiny.sae, "top": 9},
        {"model": tiny.model, "sae": tiny.other},
        {"model": replace(tiny.model, layer=1), "sae": tiny.first_layer},
    ],
    "FrozenRandomSAESignals": lambda tiny: [
        {"model": tiny.model, "sae": tiny.frozen},
        {"model": tiny.model, "sae": tiny.frozen, "pooling": "last"},
    ],
    "HiddenSignals": lambda tiny: [
        {"model": tiny.model},
        {"model": tiny.model, "pooling": "max"},
        {"model": tiny.model, "components": 5},
        {"model": replace(tiny.model, layer=1)},
    ],
    "CachedSignals": lambda tiny: [
        {"inner": RandomSignals(), "folder": str(tiny.folder / "cache")},
        {"inner": RandomSignals(5), "folder": str(tiny.folder / "cache")},
    ],
}
# Sources whose rows depend on the prompt alone: the same row in any pool and any order.
ROW_BY_ROW = {"RandomSignals", "LengthSignals"}
UP_TO_ROUNDING = {
    "SAESignals",
    "FrozenRandomSAESignals",
    "HiddenSignals",
}  # what is computed beside a row shows in its last bits


def shipped() -> dict[str, type[SignalSource]]:
    """All but those over Ray, which tests/cluster compares with their inner source."""
    found = shipped_classes.shipped(SignalSource, saerl_lightning.signals)
    return {name: source for name, source in found.items() if name != "RaySignals"}


def examples(name: str, tiny) -> list[dict]:
    """The arguments of a source's examples; some need the tiny model."""
    made = EXAMPLES[name]
    return made(tiny) if callable(made) else made


def pool(count: int = 12) -> list[Prompt]:
    return [Prompt.asking(f"p{i}", f"What is {i} + {i}?", str(2 * i)) for i in range(count)]


def dense(rows) -> np.ndarray:
    return rows.toarray() if isinstance(rows, csr_array) else rows


def test_every_shipped_source_has_an_example():
    assert shipped().keys() == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_same_prompts_give_the_same_rows(name, tiny):
    arguments = examples(name, tiny)[0]
    rows = dense(shipped()[name](**arguments).features(pool()))
    assert len(rows) == 12
    assert np.isfinite(rows).all()
    assert np.array_equal(rows, dense(shipped()[name](**arguments).features(pool())))


@pytest.mark.parametrize("name", sorted(ROW_BY_ROW | UP_TO_ROUNDING))
def test_rows_follow_their_prompts(name, tiny):
    source, order = shipped()[name](**examples(name, tiny)[0]), np.random.default_rng(0).permutation(12)
    tolerance = 1e-5 if name in UP_TO_ROUNDING else 0
    rows = dense(source.features(pool()))
    shuffled = dense(source.features([pool()[i] for i in order]))
    np.testing.assert_allclose(shuffled, rows[order], tolerance, tolerance)
    np.testing.assert_allclose(dense(source.features(pool(5))), rows[:5], tolerance, tolerance)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_stream_holds_the_same_rows(name, tiny):
    source = shipped()[name](**examples(name, tiny)[0])
    rows, seen = dense(source.features(pool())), []
    for positions, part in source.stream(pool()):
        np.testing.assert_allclose(dense(part), rows[positions], 1e-5, 1e-5)
        seen += positions.tolist()
    assert sorted(seen) == list(range(12))


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_kept_by_row_follows_its_prompt(name, tiny):
    """Of every configuration, also those that turn it off: a row kept under a false promise would be served wrongly."""
    for arguments in examples(name, tiny):
        if shipped()[name](**arguments).by_row:
            assert name in ROW_BY_ROW | UP_TO_ROUNDING
            assert not arguments.get("components"), "components depend on the whole pool"


@pytest.mark.parametrize("name", EXAMPLES)
def test_fingerprints_tell_arguments_and_prompts_apart(name, tiny):
    sources = [shipped()[name](**arguments) for arguments in examples(name, tiny)]
    pools = [pool(), pool(11), pool()[::-1], [*pool(11), Prompt("q", pool()[0].messages, "0")]]
    prints = [source.fingerprint(pool()) for source in sources] + [sources[0].fingerprint(each) for each in pools[1:]]
    assert len(set(prints)) == len(prints)
    assert sources[0].fingerprint(pool()) == shipped()[name](**examples(name, tiny)[0]).fingerprint(pool())


def test_random_rows_are_standard_normal_and_differ_by_prompt():
    rows = RandomSignals(200).features(pool(100))
    assert abs(rows.mean()) < 0.03 and abs(rows.std() - 1) < 0.03  # 4 standard errors: 0.028, 0.02
    assert np.abs(np.corrcoef(rows) - np.eye(100)).max() < 0.4  # 200 columns: standard error 0.07
