"""The one line that is always there: what is being done, and how the memory is."""

from __future__ import annotations

from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

from triattn_local.engine.runtime import RuntimeStats
from triattn_local.support import formats


class StatusLine(Widget):
    """State on the left, numbers on the right; numbers are shortened, then left out, when there is no room."""

    DEFAULT_CSS = """
    StatusLine { height: 1; background: $panel; color: $foreground 70%; padding: 0 1; }
    """

    state: reactive[str] = reactive("no model")
    busy: reactive[bool] = reactive(False)
    stats: reactive[RuntimeStats | None] = reactive(None)

    def render(self) -> Text:
        width = self.size.width - 2
        left = Text.assemble(("● " if self.busy else "○ ", "bold" if self.busy else ""), self.state)
        for numbers in self._numbers():
            right = Text(numbers)
            if left.cell_len + 2 + right.cell_len <= width:
                left.append(" " * (width - left.cell_len - right.cell_len))
                left.append_text(right)
                return left
        left.truncate(width, overflow="ellipsis")
        return left

    def _numbers(self) -> list[str]:
        """From the longest to the shortest."""
        s = self.stats
        if s is None:
            return [""]
        if s.budget_tokens is None:
            return [
                f"context {s.n_past:,} of {s.n_ctx:,} · full attention · KV {formats.size(s.kv_bytes)}",
                f"{formats.short(s.n_past)}/{formats.short(s.n_ctx)} ctx · full · KV {formats.size(s.kv_bytes)}",
                f"{formats.short(s.n_past)}/{formats.short(s.n_ctx)} ctx",
            ]
        ctx = f"{formats.short(s.n_past)}/{formats.short(s.n_ctx)} ctx"
        cells = f"{formats.short(s.n_cells_used)}/{formats.short(s.budget_tokens)} kept"
        kv = f"KV {formats.size(s.kv_bytes)}/{formats.size(s.kv_bytes_full)}"
        short_kv = f"KV {formats.short_size(s.kv_bytes)}/{formats.short_size(s.kv_bytes_full)}"
        all_rounds, rounds, evicted = "nothing evicted", "nothing evicted", ""
        if s.n_evictions:
            evicted = f" · −{formats.short(s.tokens_evicted)}"
            rounds = f"{formats.plural(s.n_evictions, 'round')} −{formats.short(s.tokens_evicted)}"
            all_rounds = f"{formats.plural(s.n_evictions, 'round')}, {s.tokens_evicted:,} tokens evicted"
        return [
            f"context {s.n_past:,} of {s.n_ctx:,} · cells {s.n_cells_used:,}, budget {s.budget_tokens:,} · "
            f"KV {formats.size(s.kv_bytes)}, full {formats.size(s.kv_bytes_full)} · {all_rounds}",
            f"{ctx} · {cells} · {kv} · {rounds}",
            f"{ctx} · {cells} · {short_kv} · {rounds}",
            f"{ctx} · {cells} · {short_kv}{evicted}",
            f"{ctx} · {cells}{evicted}",
            f"{ctx} · {cells}",
            ctx,
        ]
