"""Progress on stderr: steps are counted, and the time that is left is told."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from triattn_local.support import console


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("triattn_local.support.console.time.monotonic", clock)
    return clock


def test_steps_in_a_log_say_which_one_and_how_long(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.Stages("steps") as stages:
        stages("nll novel, full", 0, 12)
        clock.now_s += 10
        stages("nll novel, random", 1, 12)
        stages("nll novel, random", 1, 12)
        clock.now_s += 30
        stages("nll python, full", 2, 12)
    assert capsys.readouterr().err.splitlines() == [
        "nll novel, full (1 of 12) ...",
        "nll novel, random (2 of 12, 1:50 left) ...",
        "nll python, full (3 of 12, 3:20 left) ...",
    ]


def test_a_run_that_is_resumed_counts_from_where_it_stands(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.Stages("steps") as stages:
        stages("a", 8, 12)
        clock.now_s += 5
        stages("b", 9, 12)
    assert capsys.readouterr().err.splitlines() == ["a (9 of 12) ...", "b (10 of 12, 15 s left) ..."]


def test_what_is_no_step_is_a_line_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Stages("bytes") as stages:
        stages("fetching x", 0, 100)
        stages("fetching x", 50, 100)
        stages("converting", 0, None)
    assert capsys.readouterr().err.splitlines() == ["fetching x ...", "converting ..."]


def test_a_bar_of_steps_knows_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps have other names and one bar: it must not begin anew with each of them."""
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(console, "stderr", lambda: terminal)
    stages = console.Stages("steps")
    stages("one", 0, 4)
    bars = stages._bars
    assert bars is not None
    (task,) = bars.tasks
    begun_s = bars.get_time()
    for n, name in enumerate(("two", "three"), start=1):
        monkeypatch.setattr(bars, "get_time", lambda n=n: begun_s + 60.0 * n)
        stages(name, n, 4)
    (same,) = bars.tasks
    assert same is task
    assert same.description == "three"
    assert same.time_remaining is not None
    assert 60 <= same.time_remaining <= 180
    bars.refresh()
    stages.close()
    assert re.search(r"three .*2/4 steps", out.getvalue())
