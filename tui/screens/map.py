"""F8: the whole map of what each layer keeps, with the words behind each column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Static

from triattn_local.sessions import Message
from triattn_local.sessions.conversation import Retained

from ..widgets.heatmap import Heatmap
from .dialog import Dialog

if TYPE_CHECKING:
    from ..app import ChatApp


class MapScreen(Dialog[None]):
    """A picture over the conversation, and a pointer to walk along it."""

    app: ChatApp

    DEFAULT_CSS = """
    MapScreen {
        & > .box { width: 100%; height: 100%; }
        & Heatmap { height: 1fr; }
        & #turns { height: 1; color: $foreground 60%; }
        & #words { height: 4; margin: 1 0 0 0; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "Older", show=False),
        Binding("right", "move(1)", "Newer", show=False),
        Binding("shift+left,pageup", "move(-10)", "Much older", show=False),
        Binding("shift+right,pagedown", "move(10)", "Much newer", show=False),
        Binding("home", "move(-100000)", "Oldest", show=False),
        Binding("end", "move(100000)", "Newest", show=False),
        Binding("f8", "leave", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._retained: Retained | None = None
        self._path: Sequence[Message] = ()
        self._map = Heatmap()

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = "What each layer keeps"
            box.border_subtitle = "← → walk · Esc leaves"
            yield Static("", id="turns", markup=False)
            yield self._map
            yield Static("Nothing is in the cache yet.", id="words")

    def on_unmount(self) -> None:
        self.app.map_open = False
        self.app.chat.lay_out()

    def show(self, retained: Retained, path: Sequence[Message]) -> None:
        """Take a newer look."""
        self._retained, self._path = retained, path
        self._map.share = retained.share
        self._map.refresh()
        self._describe()

    def on_resize(self) -> None:
        self.call_after_refresh(self._describe)

    def action_move(self, step: int) -> None:
        last = self._map.n_columns - 1
        at = last if self._map.column is None else self._map.column
        self._map.column = min(max(0, at + step), last)
        self._describe()

    def _describe(self) -> None:
        retained = self._retained
        if retained is None or not retained.share.shape[1]:
            return
        n_past = retained.share.shape[1]
        self.query_one("#turns", Static).update(self._turns(retained, n_past))
        column = self._map.column
        if column is None:
            held = float(retained.share.mean())
            anywhere = float(retained.share.any(axis=0).mean())
            self.query_one("#words", Static).update(
                Text.assemble(
                    f"{n_past:,} positions, {retained.share.shape[0]} layers from top to bottom, old on the left. ",
                    f"A head holds {held:.0%} of them; {anywhere:.0%} are held by at least one.\n",
                    ("← and → show the words behind a column.", "dim"),
                )
            )
            return
        first, last = self._map.positions(min(column, self._map.n_columns - 1))
        part = retained.share[:, first:last]
        about = f"positions {first:,} to {last - 1:,} · held by {part.mean():.0%} of the heads"
        if not part.any():
            about += " · forgotten"
        words = " ".join(retained.words(first, last).split())
        self.query_one("#words", Static).update(Text.assemble((about, "bold"), "\n", (words, "")))

    def _turns(self, retained: Retained, n_past: int) -> str:
        """Where the messages begin: ▾ the user's, ▿ the answers."""
        line = [" "] * self._map.n_columns
        for message in self._path:
            span = retained.spans.get(message.id)
            if span is not None:
                line[min(len(line) - 1, span.first * len(line) // n_past)] = "▾" if message.role == "user" else "▿"
        return "".join(line)
