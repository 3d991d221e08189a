"""Events of a generator in an event loop: what blocks runs in a thread, and a cancelled task stops it.

Knows nothing of models: any generator that heeds an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .stop import Stop

T = TypeVar("T")


async def in_thread(make: Callable[[Stop], Iterator[T]]) -> AsyncIterator[T]:
    """The events of an iterator, each fetched in one thread of its own.

    When the loop over them ends early, or its task is cancelled, the event that `make` got is set, and the thread is
    waited for: whatever the iterator works on is free afterwards.

    Parameters
    ----------
    make : callable
        Makes the iterator: ``lambda cancel: rt.chat(messages, cancel=cancel)``.
    """
    cancel = Stop()
    loop = asyncio.get_running_loop()
    events = make(cancel)
    end = object()
    with ThreadPoolExecutor(1, "triattn-events") as thread:
        try:
            while True:
                event = await loop.run_in_executor(thread, next, events, end)
                if event is end:
                    return
                yield event  # type: ignore[misc]  # it is no `end`
        finally:
            cancel.set()
            close = getattr(events, "close", None)
            if close is not None:
                # behind the step at hand, in the same thread: a generator cannot be closed while it runs
                await asyncio.shield(loop.run_in_executor(thread, close))
