"""F1: all keys, with the names by which the settings can change them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.widgets import Static

from ..keys import Group, spelled
from .dialog import Dialog


class HelpScreen(Dialog[None]):
    """A table that is made from the bindings themselves."""

    def __init__(self, groups: Iterable[Group], keymap: Mapping[str, str]) -> None:
        """`keymap`: name -> key that the settings gave it."""
        super().__init__()
        self._groups = groups
        self._keymap = keymap

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="box") as box:
            box.border_title = "Keys"
            box.border_subtitle = "Esc leaves"
            for title, bindings in self._groups:
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

    def _table(self, bindings: Sequence[Binding]) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False, expand=True, padding=(0, 2, 0, 0))
        table.add_column(width=18)
        table.add_column(ratio=1)
        table.add_column(style="dim", justify="right")
        for binding in bindings:
            key = self._keymap.get(str(binding.id), binding.key)
            table.add_row(Text(spelled(key), "bold"), binding.description, binding.id)
        return table

    def on_mount(self) -> None:
        self.query_one(".box").focus()
