"""Collecting garbage without being seen.

A streaming answer makes objects by the hundred thousand, and widgets that have gone hold each other. Left alone,
Python searches through them amid an update, and through all objects there are for a quarter of a second in which no
key is answered. So it is told when: through the young ones when an update is on the screen, through all when nobody
waits, and what lives for long is set aside.
"""

from __future__ import annotations

import functools
import gc

from textual._styles_cache import StylesCache

SWEEP_S = 15.0
"""seconds between two searches through all objects while an answer streams or somebody types"""
YOUNG_UPDATES = 12
"""after so many, what outlived one of them is searched too"""
UNTOLD = (100_000, 20, 100)
"""thresholds of the generations, for what comes without any update"""


def begin() -> None:
    """From now on this process collects when a Collector is told to."""
    gc.set_threshold(*UNTOLD)
    _let_go_of_widgets()
    _settle()


class Collector:
    """Collects when it is told that nobody waits."""

    def __init__(self) -> None:
        self._n_updates = 0
        self._litter = True
        self._swept_s = 0.0

    def updated(self) -> None:
        """An update is on the screen: what it made and left behind is collected."""
        self._n_updates += 1
        self._litter = True
        gc.collect(0 if self._n_updates % YOUNG_UPDATES else 1)

    def rest(self, now_s: float, *, busy: bool) -> bool:
        """Nobody waits right now: collect everywhere, if it is time. True if it was.

        Parameters
        ----------
        now_s : float
            A clock, in seconds.
        busy : bool
            An answer streams or somebody types, so that the rest may be a short one.
        """
        if not self._litter or (busy and now_s - self._swept_s < SWEEP_S):
            return False
        self._litter, self._swept_s = False, now_s
        if busy:
            gc.collect()
        else:
            _settle()
        return True


def _settle() -> None:
    """Collect among all there is, and set aside what is left: it lives for long."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _let_go_of_widgets() -> None:
    """Textual's cache of two colours holds the lines of up to a thousand widgets that have gone (its issue 6665)."""
    by_method = StylesCache.get_inner_outer
    if hasattr(by_method, "cache_info"):
        colors = functools.partial(by_method.__wrapped__, StylesCache)
        StylesCache.get_inner_outer = staticmethod(functools.lru_cache(1024)(colors))  # type: ignore[assignment]
