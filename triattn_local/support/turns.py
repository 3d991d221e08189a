"""Whose turn it is with a thing that only one may use at a time, and that ends.

A call is alone with the thing. Work that comes in steps, with pauses in which its caller has the word, holds a turn: no
other work begins before it ends, or is given up. Knows nothing of what the thing is.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from ..errors import StateError

T = TypeVar("T")

PATIENCE_S = 10.0
"""so long a turn of another thread may stand still before one who waits for it is told so"""

_LOOK_S = 0.02


class _Turn:
    """Work that has begun."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.last_s = time.monotonic()


class Turns:
    """Order among the users of one thing.

    Parameters
    ----------
    what : str
        The thing's name in errors.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._queue, self._lock = threading.Lock(), threading.Lock()
        self._inside: int | None = None  # thread whose call it is
        self._turn: _Turn | None = None
        self._is_closed = False

    def check(self) -> None:
        """Raise StateError once the thing is closed."""
        if self._is_closed:
            raise StateError(f"the {self._what} is closed", fix="load it again")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A call: others wait until it ends, but those that it makes itself."""
        me = threading.get_ident()
        if self._inside == me:
            self.check()
            yield
            return
        with self._queue:  # who waits comes before the next step of who is there
            self._lock.acquire()
        self._inside = me
        try:
            self.check()
            yield
        finally:
            self._inside = None
            self._lock.release()

    def each(self, steps: Iterator[T]) -> Iterator[T]:
        """The same steps, each of them alone, all of them one turn.

        Work of another thread is waited for. Work that this thread left open is over: it could not go on meanwhile.

        Raises
        ------
        StateError
            Another thread's work stands still; the thing is closed; or other work took the turn between two steps.
        """
        turn = self._take()
        try:
            while True:
                with self.alone():
                    if self._turn is not turn:
                        raise StateError(
                            f"other work with the {self._what} has begun meanwhile",
                            fix="end one answer, or close its iterator, before the next begins",
                        )
                    turn.thread, turn.last_s = threading.current_thread(), time.monotonic()
                    try:
                        step = next(steps)
                    except StopIteration:
                        return
                    finally:
                        turn.last_s = time.monotonic()
                yield step
        finally:
            # no lock: the collector of garbage may be who ends it, amid a call
            if self._turn is turn:
                self._turn = None
            close = getattr(steps, "close", None)
            if close is not None:
                close()

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """A call that changes what answers stand on: waits as ``each`` does, and what is open is over."""
        turn = self._take()
        try:
            with self.alone():
                yield
        finally:
            if self._turn is turn:
                self._turn = None

    def _take(self) -> _Turn:
        while True:
            with self.alone():
                open_turn = self._turn
                mine = open_turn is None or open_turn.thread is threading.current_thread()
                if open_turn is None or mine or not open_turn.thread.is_alive():
                    self._turn = turn = _Turn()
                    return turn
                if time.monotonic() - open_turn.last_s > PATIENCE_S:
                    raise StateError(
                        f"an answer of thread {open_turn.thread.name} is open, and stands still",
                        where=self._what,
                        fix="read it to its end, or close its iterator",
                    )
            time.sleep(_LOOK_S)

    def close(self, free: Callable[[], None]) -> None:
        """End the thing, once, when the call at hand is through; every later one raises StateError."""
        if self._is_closed:
            return
        with contextlib.suppress(StateError), self.alone():
            self._is_closed = True
            free()
