"""When to show what has come of an answer: often enough to be read as it comes, and never in the way of a key."""

from __future__ import annotations

import math

UPDATE_S = 1 / 12
"""seconds between two updates, at least"""
TYPING_S = 0.4
"""the same while somebody types slowly, whose keys wait for an update that is under way"""
AFTER_TYPING_S = 2.0
"""seconds without a key after which nobody types any more"""
SHARE = 0.5
"""of all time at most, for updates"""
CHARS = 400
"""of an update, unless more has piled up"""
LOST_S = 2.0
"""after which an update that was not seen on the screen is not waited for"""
MANY_PIECES = 300
"""tokens: more than this waiting are shown at once"""


class Pace:
    """The times of the updates. All times are those of one clock, in seconds.

    A key that is pressed while an update is under way waits for it. Right after a key no other one comes for some
    time, so that is when somebody who types gets to see the answer grow.
    """

    def __init__(self) -> None:
        self._next_s = self._began_s = self._typed_s = -math.inf

    def typed(self, now_s: float) -> None:
        """A key was pressed."""
        self._typed_s = now_s

    def typing(self, now_s: float) -> bool:
        return now_s - self._typed_s < AFTER_TYPING_S

    def echoed(self, now_s: float) -> bool:
        """The key is on the screen. True if an update is due now."""
        if now_s - self._began_s >= UPDATE_S:
            self._next_s = now_s
        return self.due(now_s)

    def due(self, now_s: float) -> bool:
        return now_s >= self._next_s

    def began(self, now_s: float) -> None:
        """An update is under way: no other one, until it is shown."""
        self._began_s, self._next_s = now_s, now_s + LOST_S

    def shown(self, now_s: float) -> None:
        """The update is on the screen."""
        least_s = TYPING_S if self.typing(now_s) else UPDATE_S
        self._next_s = self._began_s + max(least_s, (now_s - self._began_s) / SHARE)

    @staticmethod
    def chars(n_pieces: int) -> float:
        """How much of ``n_pieces`` waiting tokens one update shows, in characters."""
        return CHARS if n_pieces < MANY_PIECES else math.inf
