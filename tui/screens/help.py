"""F1: all keys, with the names by which the settings can change them."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from ..keys import groups, spelled
from .dialog import Dialog


class HelpScreen(Dialog[None]):
    """A table that is made from the bindings themselves."""

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="box") as box:
            box.border_title = "Keys"
            box.border_subtitle = "Esc leaves"
            for title, bindings in groups():
                yield Static(Text(f"\n{title}", "bold"))
                yield Static(self._table(bindings))
            yield Static(
                Text(
                    '\nOther keys: name = "key" below [keys] in config.toml, or '
                    "TRIATTN_KEYS=stop=f12,sessions=ctrl+f. Select text with the mouse, Ctrl+C copies it. "
                    "Ctrl+P is the command palette, with the themes.\n",
                    "dim",
                )
            )

    def _table(self, bindings: list[Any]) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False, expand=True, padding=(0, 2, 0, 0))
        table.add_column(width=18)
        table.add_column(ratio=1)
        table.add_column(style="dim", justify="right")
        keymap = self.app.settings.keys  # type: ignore[attr-defined]
        for binding in bindings:
            key = keymap.get(binding.id, binding.key)
            table.add_row(Text(spelled(key), "bold"), binding.description, binding.id)
        return table

    def on_mount(self) -> None:
        self.query_one(".box").focus()
