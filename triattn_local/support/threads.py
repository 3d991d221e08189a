"""How many threads compute, beside what else this machine does.

The threads of a graph work in step: every operation waits for the slowest of them, and one whose core another program
uses too holds up all. Measured on two cores beside one busy process, two threads decode at half the speed of one. So
there are as many threads as there are cores that others leave free, looked at several times a second.

Knows nothing of models.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

LOOK_S = 0.25
"""seconds between two looks: a scheduler's tick of 10 ms is little of it"""

LEAVE, COME_BACK = 0.5, 0.35
"""a core of which others use more than the one is left to them, and is used again once they use less than the other"""


def used_s() -> tuple[float, float] | None:
    """Processor seconds that all programs together have used on the cores of this process, and it alone.

    None where the system does not say: only Linux does.
    """
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        allowed = {f"cpu{n}" for n in os.sched_getaffinity(0)}
        ticks = 0
        for name, *counts in (line.split() for line in lines if line.startswith("cpu")):
            if name in allowed:
                user, nice, system, _, _, irq, softirq, steal = (int(n) for n in counts[:8])
                ticks += user + nice + system + irq + softirq + steal
        return ticks / os.sysconf("SC_CLK_TCK"), time.process_time()
    except (OSError, ValueError, AttributeError):
        return None


def n_cores() -> int:
    """Cores that this process may use, hyperthreads counted one by one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Threads:
    """The number of threads that fits what others leave.

    Parameters
    ----------
    most : int
        Threads on an idle machine.
    cores, used, clock : callables
        Stand in for the machine in tests.
    """

    def __init__(
        self,
        most: int,
        *,
        cores: int | None = None,
        used: Callable[[], tuple[float, float] | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.n = self._most = most
        self._cores = n_cores() if cores is None else cores
        self._used, self._clock = used or used_s, clock
        self._at_s, self._last = clock(), self._used()

    def look(self) -> int:
        """The number for now; what is used is asked for at most every LOOK_S."""
        past_s = self._clock() - self._at_s
        if past_s < LOOK_S or self._last is None or self._most == 1:
            return self.n
        now, last = self._used(), self._last
        self._at_s, self._last = self._clock(), now
        if now is None:
            return self.n
        others = (now[0] - last[0]) - (now[1] - last[1])
        free = self._cores - max(others, 0.0) / past_s
        fits = int(free + LEAVE)
        if fits > self.n:
            fits = max(self.n, int(free + COME_BACK))
        self.n = min(max(fits, 1), self._most)
        return self.n
