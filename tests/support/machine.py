"""What a test may expect of the machine that it runs on."""

from __future__ import annotations

import os


def slowness() -> float:
    """How many times more there is to do than there are cores for it; 1 on a machine that has nothing else to do.

    A promise in milliseconds is one about a machine that keeps it for us: where others take the cores, all waits are
    longer by this. The load is a mean over a minute, and says nothing of what began just now: half more is allowed.
    """
    return max(1.0, 1.5 * os.getloadavg()[0] / (os.cpu_count() or 1))
