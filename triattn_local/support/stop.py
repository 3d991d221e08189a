"""A wish to stop that C code can see: it is asked for amid a graph, where no Python runs.

Knows nothing of what is stopped.
"""

from __future__ import annotations

import ctypes
import threading


class Stop(threading.Event):
    """An event with a byte beside it, which has the same to say at an address that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.flag = ctypes.c_bool(False)

    def set(self) -> None:
        self.flag.value = True
        super().set()

    def clear(self) -> None:
        super().clear()
        self.flag.value = False
