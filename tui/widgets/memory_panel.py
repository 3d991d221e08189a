"""How the cache is: numbers that the runtime itself reports, a line of speed, and what each layer keeps."""

from __future__ import annotations

import time
from collections import deque

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Sparkline, Static

from triattn_local.engine.runtime import RuntimeStats
from triattn_local.sessions.conversation import Retained
from triattn_local.support import formats

from .heatmap import Heatmap

_BAR = 28
_SPEEDS = 60


def bar(done: float, total: float, width: int = _BAR) -> Text:
    """━━━━────"""
    n = 0 if total <= 0 else min(width, round(width * done / total))
    return Text.assemble(("━" * n, "bold"), ("─" * (width - n), "dim"))


class MemoryPanel(Vertical):
    """The column on the right."""

    DEFAULT_CSS = """
    MemoryPanel {
        width: 34;
        padding: 1 1 0 2;
        border-left: solid $panel;
        & > Static { height: auto; color: $foreground 80%; }
        & > .title { color: $foreground 50%; text-style: bold; margin: 1 0 0 0; }
        & > .title:first-child { margin: 0; }
        & > Sparkline { height: 2; width: 28; }
        & > Sparkline > .sparkline--max-color { color: $primary; }
        & > Sparkline > .sparkline--min-color { color: $primary 45%; }
        & > Heatmap { width: 28; min-height: 4; margin: 0 0 1 0; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._speeds: deque[float] = deque([0.0] * _SPEEDS, _SPEEDS)
        self._numbers = Static("no model is loaded")
        self._speed_title = Static("speed", classes="title")
        self._sparkline = Sparkline(list(self._speeds))
        self._snapshots = Static("")
        self._round_s: float | None = None
        self._n_lines = 0
        self._stats: RuntimeStats | None = None
        self.heatmap = Heatmap()

    def compose(self) -> ComposeResult:
        yield Static("memory", classes="title")
        yield self._numbers
        yield self._speed_title
        yield self._sparkline
        yield Static("what each layer keeps", classes="title")
        yield self.heatmap
        yield self._snapshots

    def forget(self, stats: RuntimeStats | None) -> None:
        """Another conversation begins: with these numbers, and without a past."""
        self._stats = self._round_s = None
        self._speeds.extend([0.0] * _SPEEDS)
        self.show_speed(0.0)
        self.show_stats(stats)
        self.show_retained(None)

    def show_stats(self, stats: RuntimeStats | None) -> None:
        """The runtime's own numbers, and nothing else."""
        old, self._stats = self._stats, stats
        if stats is None:
            self._numbers.update("no model is loaded")
            self._n_lines = 0
            return
        if old is not None and stats.n_evictions > old.n_evictions:
            self._round_s = time.monotonic()
        elif old is not None and stats.n_evictions < old.n_evictions:
            self._round_s = None
        numbers = self._describe(stats)
        n_lines = numbers.plain.count("\n")
        # four times a second: the whole screen is laid out anew only when lines come or go
        self._numbers.update(numbers, layout=n_lines != self._n_lines)
        self._n_lines = n_lines

    def _describe(self, s: RuntimeStats) -> Text:
        lines = Text()
        lines.append(f"context   {s.n_past:,} of {s.n_ctx:,}\n")
        lines.append_text(bar(s.n_past, s.n_ctx))
        if s.budget_tokens is None:
            lines.append("\nfull attention keeps all of it\n")
        else:
            lines.append(f"\ncells     {s.n_cells_used:,} of {s.n_cells:,}\n")
            lines.append_text(bar(s.n_cells_used, s.n_cells))
            lines.append(f"\nbudget    {s.budget_tokens:,} a head\n")
        lines.append(f"KV cache  {formats.size(s.kv_bytes)}\n")
        if s.budget_tokens is None:
            return lines
        lines.append(f"full      {formats.size(s.kv_bytes_full)}")
        if s.kv_bytes:
            lines.append(f"  ({s.kv_bytes_full / s.kv_bytes:.1f} ×)", "dim")
        lines.append(f"\nrounds    {s.n_evictions:,}")
        if s.n_evictions:
            lines.append(f"  ({s.evict_ms / s.n_evictions:.1f} ms each)", "dim")
        lines.append(f"\nevicted   {s.tokens_evicted:,} tokens")
        if s.n_pinned:
            lines.append(f"\npinned    {s.n_pinned:,} tokens")
        if s.cold_bytes_max:
            lines.append(f"\nkept cold {formats.size(s.cold_bytes)}")
            lines.append(f"\ncame back {s.rows_recalled:,} rows")
            if s.n_recalls:
                lines.append(f"  ({s.recall_ms / s.n_recalls:.1f} ms a recall)", "dim")
            if s.tokens_destroyed:
                lines.append(f"\ngone      {s.tokens_destroyed:,} tokens for good")
        if self._round_s is not None:
            lines.append(f"\nlast      {formats.seconds(time.monotonic() - self._round_s)} ago")
        return lines

    def show_speed(self, tokens_per_s: float) -> None:
        """One more point of the line; 0 while nothing is written."""
        self._speeds.append(tokens_per_s)
        self._sparkline.data = list(self._speeds)
        self._speed_title.update(f"speed     {tokens_per_s:.1f} tok/s" if tokens_per_s else "speed", layout=False)

    def show_retained(self, retained: Retained | None) -> None:
        self.heatmap.share = None if retained is None else retained.share

    def show_snapshots(self, used: int, limit: int) -> None:
        words = Text(f"snapshots {formats.size(used)} of {formats.size(limit)}", "dim")
        if words != self._snapshots.content:
            self._snapshots.update(words)
