"""Threads follow what other programs leave of the processor."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from triattn_local.config import RuntimeConfig
from triattn_local.engine.contexts import Model
from triattn_local.support.threads import LOOK_S, Threads, used_s


class Machine:
    """Cores, of which others use some and we the rest that we ask for."""

    def __init__(self) -> None:
        self.now_s = self.others_s = self.own_s = 0.0

    def used(self) -> tuple[float, float]:
        return self.others_s + self.own_s, self.own_s

    def run(self, others: float, own: float, seconds: float = LOOK_S) -> None:
        self.now_s += seconds
        self.others_s += others * seconds
        self.own_s += own * seconds


def threads(machine: Machine, most: int, cores: int | None = None) -> Threads:
    return Threads(most, cores=cores or most, used=machine.used, clock=lambda: machine.now_s)


@pytest.mark.parametrize(
    ("cores", "most", "others", "n"),
    [
        (2, 2, 0.0, 2),
        (2, 2, 0.3, 2),
        (2, 2, 0.67, 1),  # one busy process beside two threads gets two thirds of a core
        (2, 2, 2.0, 1),
        (4, 4, 0.8, 3),
        (16, 16, 0.94, 15),
        (16, 16, 30.0, 1),
        (16, 8, 1.0, 8),  # the second threads of the cores are free for it
        (16, 8, 12.0, 4),
        (1, 1, 0.5, 1),
    ],
)
def test_as_many_as_others_leave(cores: int, most: int, others: float, n: int) -> None:
    machine = Machine()
    crew = threads(machine, most, cores)
    assert crew.look() == most
    machine.run(others, most)
    assert crew.look() == n


def test_they_come_back_when_the_others_have_gone() -> None:
    machine = Machine()
    crew = threads(machine, 4)
    machine.run(3.0, 1.0)
    assert crew.look() == 1
    machine.run(0.45, 1.0)
    assert crew.look() == 3, "the fourth is still half of somebody else's"
    machine.run(0.45, 3.0)
    assert crew.look() == 3
    machine.run(0.1, 3.0)
    assert crew.look() == 4


def test_a_core_that_is_shared_now_and_then_does_not_make_them_come_and_go() -> None:
    machine = Machine()
    crew = threads(machine, 2)
    seen = set()
    for others in (0.4, 0.45, 0.4, 0.49, 0.42):
        machine.run(others, 2)
        seen.add(crew.look())
    assert seen == {2}


def test_nothing_is_asked_between_two_looks() -> None:
    machine = Machine()
    crew = threads(machine, 2)
    machine.run(2.0, 0.0, LOOK_S / 2)
    assert crew.look() == 2
    machine.run(2.0, 0.0, LOOK_S / 2)
    assert crew.look() == 1


def test_where_the_system_does_not_say_all_are_used() -> None:
    now = iter([0.0, 1.0, 2.0, 3.0])
    crew = Threads(4, cores=4, used=lambda: None, clock=lambda: next(now))
    assert [crew.look(), crew.look()] == [4, 4]


def _spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux says it")
def test_what_the_system_says_is_what_was_used() -> None:
    # a program that needs no time to start, and says when it has started
    other = subprocess.Popen(["sh", "-c", "echo spins; while :; do :; done"], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"spins\n"
        before = used_s()
        _spin(0.6)
        after = used_s()
    finally:
        other.kill()
        other.communicate()
    assert before is not None
    assert after is not None
    own, everybody = after[1] - before[1], after[0] - before[0]
    assert 0.05 < own <= 0.65
    assert everybody > own + 0.1


@pytest.mark.parametrize("follows", [True, False])
def test_a_context_computes_with_as_many(smollm2: Path, monkeypatch: pytest.MonkeyPatch, follows: bool) -> None:
    import llama_cpp

    said = iter([3, 3, 1])
    monkeypatch.setattr(Threads, "look", lambda crew: next(said))
    config = RuntimeConfig(n_ctx=512, n_batch=64, n_threads=2, yield_cores=follows)
    with Model(smollm2, config) as model, model.context(None) as context:
        seen = []
        for token in (1, 2, 3):
            context.decode([token])
            seen.append((llama_cpp.llama_n_threads(context.handle), llama_cpp.llama_n_threads_batch(context.handle)))
    assert seen == ([(3, 3), (3, 3), (1, 1)] if follows else [(2, 2)] * 3)


def test_the_number_that_the_tests_run_with_stands_still() -> None:
    """Attention over a long cache is summed thread by thread: the last bits of a result depend on their number."""
    crew = Threads(os.cpu_count() or 1)
    assert {crew.look() for _ in range(3)} == {crew.n}
