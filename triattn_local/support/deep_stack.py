"""Calls that may go deep: made on a thread whose stack is as large as the work needs.

The patterns by which some tokenizers cut a text are matched by a function that calls itself for every character, and a
stack that is too small ends the process by a signal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ..errors import DoesNotFitError

T = TypeVar("T")

_one_size = threading.Lock()  # the size of a thread's stack is a setting of the whole process


def with_stack(n_bytes: int, call: Callable[[], T]) -> T:
    """The result of a call on a thread with so much stack; only what it uses of it takes memory.

    Raises
    ------
    DoesNotFitError
        The system does not give that much.
    """
    done: list[T] = []
    failed: list[BaseException] = []
    may_begin = threading.Lock()
    begun: list[bool] = []
    ended = threading.Lock()
    ended.acquire()

    def run() -> None:
        with may_begin:
            if begun:  # given up before it began
                return
            begun.append(True)
        try:
            done.append(call())
        except BaseException as error:
            failed.append(error)
        ended.release()

    thread = threading.Thread(target=run, name="deep-stack")
    interrupted: BaseException | None = None
    with _one_size:
        try:
            before = threading.stack_size(n_bytes)
            try:
                thread.start()
            finally:
                threading.stack_size(before)
        except (RuntimeError, ValueError, MemoryError):
            raise DoesNotFitError(f"a stack of {n_bytes >> 20} MiB cannot be had") from None
        except BaseException as error:  # Ctrl-C
            interrupted = error
    if interrupted is not None:
        with may_begin:
            if not begun:
                begun.append(False)
                raise interrupted
    # What the call works on must outlive it, whatever Ctrl-C ends. Thread.join() does not wait for that: where a
    # signal's handler raises in it, it takes the thread for ended (seen with CPython 3.11).
    while not (done or failed):
        try:
            ended.acquire(timeout=60)
        except BaseException as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted
    if failed:
        raise failed[0]
    return done[0]
