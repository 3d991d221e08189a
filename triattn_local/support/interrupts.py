"""Ctrl-C, where Python alone does not do the right thing with it.

An answer that is stopped is still an answer, so that generation wants to be asked, not torn down; and an interrupt
that falls into a C library's callback is printed and lost. Only the main thread can have handlers: elsewhere nothing
changes.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .stop import Stop


@contextlib.contextmanager
def stop_on_request() -> Iterator[Stop]:
    """The first Ctrl-C sets the event, amid a batch too, the second raises KeyboardInterrupt."""
    stopped = Stop()
    n_pressed = 0

    def stop(_signum: int, _frame: object) -> None:
        nonlocal n_pressed
        stopped.set()
        n_pressed += 1
        if n_pressed > 1:
            raise KeyboardInterrupt

    with _handler(stop), _at_once(stopped):
        yield stopped


@contextlib.contextmanager
def stop_for_sure() -> Iterator[Callable[[], None]]:
    """Ctrl-C ends the block with KeyboardInterrupt, even if it falls into a callback of a C library.

    Yields a function to be called now and then: it raises the interrupt that was lost. Whatever fails after Ctrl-C is
    taken for its consequence.
    """
    pressed = threading.Event()
    show = sys.unraisablehook

    def stop(_signum: int, _frame: object) -> None:
        pressed.set()
        raise KeyboardInterrupt

    def check() -> None:
        if pressed.is_set():
            raise KeyboardInterrupt

    def lost(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            show(unraisable)

    with _handler(stop):
        sys.unraisablehook = lost
        try:
            yield check
        except Exception:
            check()
            raise
        finally:
            sys.unraisablehook = show


@contextlib.contextmanager
def _at_once(stopped: Stop) -> Iterator[None]:
    """Set it while a C library computes, when Python's own handlers wait for it to come back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        while number := reader.recv(1):
            if number[0] == signal.SIGINT:
                stopped.set()

    thread = threading.Thread(target=watch, name="ctrl-c", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        thread.join()
        reader.close()


@contextlib.contextmanager
def _handler(handle: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
