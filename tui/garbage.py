"""Collecting garbage without being seen.

A streaming answer makes objects by the hundred thousand, and widgets that have gone hold each other. Python then
searches through all objects there are, for a quarter of a second in which no key is answered. So what lives for long
is set aside, what is young is searched in small steps, and all of it when nothing moves.
"""

from __future__ import annotations

import gc

COLLECT_S = 15.0
"""seconds between two collections while an answer streams or somebody types"""


def begin() -> None:
    """From now on only young objects are looked at."""
    gc.set_threshold(5_000, 10, 100_000)
    settle()


def settle() -> None:
    """Collect everywhere, and set aside what is left: for a moment when nobody waits."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def sweep() -> None:
    """Collect among what has come since ``settle``."""
    gc.collect()
