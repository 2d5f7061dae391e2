"""Progress where there is no terminal: a line every 30 seconds, and nothing for what takes less."""

import io

import pytest

from saerl_lightning.progress import Bar, duration, rate_text, time_left


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [1000.0]
    monkeypatch.setattr("saerl_lightning.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_a_line_every_thirty_seconds_tells_rate_and_time_left(clock, capsys):
    with Bar(total=4000, desc="signals", unit="token", initial=1000) as bar:
        for second in range(1, 71):
            clock[0] = 1000.0 + second
            bar.update(10)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [  # 10 a second: after 30 s 300 of 3,000 are done, and the rest takes 270 s
        "signals: 1,300 of 4,000 tokens (32%), 10 tokens/s, 4 min left",
        "signals: 1,600 of 4,000 tokens (40%), 10 tokens/s, 4 min left",
    ]


def test_parts_are_counted_as_they_are_taken(clock, capsys):
    bar = Bar(iter("abcd"), total=4, desc="runs", unit="run")
    bar.set_postfix_str("1 failed", refresh=False)
    for number, _ in enumerate(bar):
        clock[0] = 1000.0 + 40 * (number + 1)
    assert capsys.readouterr().err.splitlines() == [
        "runs: 1 of 4 runs (25%), 40 s a run, 2 min left; 1 failed",
        "runs: 2 of 4 runs (50%), 40 s a run, 80 s left; 1 failed",
        "runs: 3 of 4 runs (75%), 40 s a run, 40 s left; 1 failed",
        "runs: 4 of 4 runs (100%), 40 s a run, 0 s left; 1 failed",
    ]


def test_a_short_or_disabled_bar_prints_nothing(clock, capsys):
    for disable, seconds in ((False, 29), (True, 500)):
        with Bar(total=10, desc="signals", unit="token", disable=disable) as bar:
            clock[0] += seconds
            bar.update(10)
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_on_a_terminal_it_is_tqdms_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with Bar(total=2, desc="signals", unit="token") as bar:
        bar.update(2)
    assert "\rsignals: 100%|" in screen.getvalue()


def test_rates_and_durations_are_in_the_unit_that_reads_best():
    assert [rate_text(rate, "step") for rate in (1234.5, 12.345, 1.0, 0.05)] == [
        "1,234 steps/s",
        "12.3 steps/s",
        "1 steps/s",
        "20 s a step",
    ]
    assert time_left(0, 10, 5) == "time left not known yet"
    assert time_left(12, 10, 5) == "0 s left"  # more came than was said
    assert [duration(seconds) for seconds in (89, 90, 5399, 5400)] == ["89 s", "2 min", "90 min", "1.5 h"]
