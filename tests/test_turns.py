"""Turns: one user at a time, answers one after another, nothing after the end; threads and abandoned iterators too."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import pytest

from triattn_local.errors import StateError
from triattn_local.support import turns
from triattn_local.support.turns import Turns


class Thing:
    """Something that two must not use at once: `overlaps` counts how often they did."""

    def __init__(self) -> None:
        self.turns = Turns("thing")
        self.inside = 0
        self.overlaps = 0
        self.order: list[str] = []
        self.n_ended = 0

    def use(self, name: str, seconds: float = 0.001) -> None:
        self.inside += 1
        self.overlaps += self.inside > 1
        self.order.append(name)
        time.sleep(seconds)
        self.inside -= 1

    def _steps(self, name: str, n: int) -> Iterator[int]:
        try:
            for i in range(n):
                self.use(name)
                yield i
        finally:
            self.n_ended += 1

    def work(self, name: str, n: int = 10) -> Iterator[int]:
        return self.turns.each(self._steps(name, n))


def in_threads(*jobs: object) -> None:
    threads = [threading.Thread(target=job) for job in jobs]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_work_of_several_threads_comes_one_after_another() -> None:
    thing, got = Thing(), dict[str, list[int]]()

    def job(name: str) -> None:
        got[name] = list(thing.work(name))

    in_threads(*(lambda name=name: job(name) for name in "abc"))
    assert got == {name: list(range(10)) for name in "abc"}
    assert thing.overlaps == 0
    assert sum(a != b for a, b in zip(thing.order, thing.order[1:], strict=False)) == 2, thing.order


def test_a_call_gets_in_between_the_steps_of_another_thread() -> None:
    thing = Thing()
    started = threading.Event()

    def job() -> None:
        for _ in thing.work("long", 200):
            started.set()

    worker = threading.Thread(target=job)
    worker.start()
    started.wait(10)
    for _ in range(5):
        with thing.turns.alone():
            thing.use("call")
    assert worker.is_alive(), "it waits for a step, and not for the whole"
    worker.join(30)
    assert thing.overlaps == 0


def test_work_left_open_is_over_when_its_thread_begins_other_work() -> None:
    thing = Thing()
    one = thing.work("one")
    assert next(one) == 0
    assert list(thing.work("two", 2)) == [0, 1]
    with pytest.raises(StateError, match="other work with the thing has begun"):
        next(one)
    assert thing.n_ended == 2
    with pytest.raises(StopIteration):
        next(one)


def test_a_change_ends_what_is_open_and_a_look_does_not() -> None:
    thing = Thing()
    one = thing.work("one")
    next(one)
    with thing.turns.alone():
        pass
    assert next(one) == 1
    with thing.turns.change():
        pass
    with pytest.raises(StateError):
        next(one)


@pytest.mark.parametrize("how", ["dropped", "closed", "in a cycle"])
def test_an_abandoned_iterator_is_nobodys_turn(how: str) -> None:
    thing = Thing()

    def job() -> None:
        one = thing.work("one")
        next(one)
        if how == "closed":
            one.close()  # type: ignore[attr-defined]
        elif how == "in a cycle":
            circle: list[object] = [one]
            circle.append(circle)

    in_threads(job)
    gc.collect()
    assert thing.n_ended == 1
    assert list(thing.work("two", 3)) == [0, 1, 2]


def test_work_of_a_thread_that_stands_still_is_waited_for_and_then_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE_S", 0.3)
    thing = Thing()
    began, go_on = threading.Event(), threading.Event()

    def job() -> None:
        one = thing.work("one", 2)
        next(one)
        began.set()
        go_on.wait(30)
        assert list(one) == [1]

    worker = threading.Thread(target=job, name="slow")
    worker.start()
    began.wait(10)
    start = time.monotonic()
    with pytest.raises(StateError, match="thread slow is open, and stands still"):
        list(thing.work("two"))
    assert 0.2 < time.monotonic() - start < 5
    go_on.set()
    worker.join(30)
    assert list(thing.work("two", 1)) == [0]


def test_after_the_end_everything_raises() -> None:
    thing = Thing()
    freed: list[int] = []
    one = thing.work("one")
    next(one)
    thing.turns.close(lambda: freed.append(thing.inside))
    thing.turns.close(lambda: freed.append(9))
    assert freed == [0]
    for call in (lambda: next(one), thing.turns.check, lambda: list(thing.work("two")), thing.turns.alone().__enter__):
        with pytest.raises(StateError, match="the thing is closed; load it again"):
            call()
    with pytest.raises(StateError), thing.turns.change():
        pass


def test_the_end_waits_for_the_step_at_hand() -> None:
    thing = Thing()
    inside = threading.Event()

    def steps() -> Iterator[int]:
        inside.set()
        thing.use("step", 0.5)
        yield 0
        yield 1

    raised: list[BaseException] = []

    def job() -> None:
        try:
            list(thing.turns.each(steps()))
        except StateError as error:
            raised.append(error)

    worker = threading.Thread(target=job)
    worker.start()
    inside.wait(10)
    freed: list[int] = []
    thing.turns.close(lambda: freed.append(thing.inside))
    assert freed == [0], "not amid a step"
    worker.join(10)
    assert len(raised) == 1


def test_the_end_may_come_from_within() -> None:
    """A signal handler, or an event that a step asks: no thread waits for itself."""
    thing = Thing()

    def steps() -> Iterator[int]:
        thing.turns.close(lambda: None)
        thing.turns.check()
        yield 0

    with pytest.raises(StateError):
        list(thing.turns.each(steps()))
