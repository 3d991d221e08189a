"""Whose numbers they are: a runtime counts since it was loaded, a screen shows one conversation."""

from __future__ import annotations

import dataclasses

from triattn_local.engine.runtime import RuntimeStats

_COUNTERS = ("n_evictions", "tokens_evicted", "evict_ms")


def of_nothing(stats: RuntimeStats) -> RuntimeStats:
    """The same cache, holding nothing."""
    return dataclasses.replace(
        stats, n_past=0, n_cells_used=0, pos_whole=0, n_evictions=0, tokens_evicted=0, evict_ms=0.0
    )


class Numbers:
    """Splits what one runtime counts among the conversations that it held."""

    def __init__(self, stats: RuntimeStats) -> None:
        self._last = stats
        self.holder: str | None = None
        """id of the session that the cache holds"""
        self._counted: dict[str | None, dict[str, float]] = {}

    def of(self, session: str | None, stats: RuntimeStats) -> RuntimeStats:
        """The runtime's numbers as far as they are this session's."""
        mine = self._counted.setdefault(self.holder, dict.fromkeys(_COUNTERS, 0))
        for name in _COUNTERS:
            mine[name] += getattr(stats, name) - getattr(self._last, name)
        self._last = stats
        shown = stats if session == self.holder else of_nothing(stats)
        return dataclasses.replace(shown, **self._counted.get(session, {}))  # type: ignore[arg-type]

    def hold(self, session: str, stats: RuntimeStats) -> None:
        """From here on the cache is this session's."""
        self.of(self.holder, stats)
        self.holder = session
