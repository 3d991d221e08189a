"""The terminal belongs to the screen: whatever else is written to stdout and stderr goes to a log.

Libraries below write there when they like (llama.cpp in C, download bars, warnings), and ``llama_cpp`` silences both
while a model loads, the screen's own output with them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def own_terminal(log: Path) -> Iterator[None]:
    """Textual gets copies of the terminal's file descriptors, the log gets their numbers."""
    streams = (sys.__stdout__, sys.__stderr__)
    saved = (os.dup(1), os.dup(2))
    own = tuple(os.fdopen(os.dup(number), "w", encoding="utf-8", errors="replace") for number in (1, 2))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.__stdout__, sys.__stderr__ = own  # type: ignore[misc]
    try:
        yield
    finally:
        sys.__stdout__, sys.__stderr__ = streams  # type: ignore[misc]
        for stream in (sys.stdout, sys.stderr, *own):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        for stream in own:
            stream.close()
