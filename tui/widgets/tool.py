"""A call of a tool and what came of it: one line, and all of it on request."""

from __future__ import annotations

import json

from textual.app import ComposeResult
from textual.reactive import reactive
from textual.widgets import Static

from triattn_local.sessions import Message
from triattn_local.sessions.conversation import Retained
from triattn_local.support import formats

from ..toolbox import spelled
from .messages import LEFT_OUT, MessageWidget, harmless

SHOWN_CHARS = 20_000


class ToolMessage(MessageWidget):
    """Folded; t or a click shows arguments and result."""

    DEFAULT_CSS = """
    ToolMessage {
        height: auto;
        margin: 0 0 1 0;
        padding: 0 1;
        border-left: outer $secondary;
        & > .head { color: $foreground 65%; height: auto; }
        & > .head:hover { color: $foreground; }
        & > .result { color: $foreground 60%; height: auto; padding: 0 0 0 2; }
        & > .forgotten { color: $foreground 35%; text-style: dim; }
        &.failed { border-left: outer $warning; }
        &.left-out { border-left: outer $foreground 18%; color: $foreground 45%; }
        &:focus { border-left: outer $accent; }
    }
    """

    unfolded: reactive[bool] = reactive(False)

    def __init__(self, message: Message, place: int = 0, n_alternatives: int = 1) -> None:
        super().__init__(message, place, n_alternatives)
        self._head = Static("", classes="head", markup=False)
        self._result = Static("", classes="result", markup=False)

    def compose(self) -> ComposeResult:
        yield self._head
        yield self._result

    def on_mount(self) -> None:
        self.set_class(bool(self.message.report.get("failed")), "failed")

    def watch_unfolded(self) -> None:
        self._show_foot()

    def _show_foot(self) -> None:
        report, text = self.message.report, self.message.content
        parts = [spelled(str(report.get("name", "")), report.get("arguments", {}))]
        parts += [str(report["server"])] if report.get("server") else []
        parts.append(report["word"] if report.get("word") else formats.plural(text.count("\n") + 1, "line"))
        parts += [LEFT_OUT] if self.message.left_out else []
        self._head.update(harmless(f"{'▾' if self.unfolded else '▸'} ⚒ {' · '.join(parts)}"))
        self._result.display = self.unfolded
        if self.unfolded:
            arguments = json.dumps(report.get("arguments", {}), ensure_ascii=False, indent=1)
            shown = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}\n… c copies all of it"
            self._result.update(harmless(f"{arguments}\n\n{shown}"))
        self.set_class(self.message.left_out, "left-out")

    def on_click(self) -> None:
        self.toggle()

    def toggle(self) -> None:
        self.unfolded = not self.unfolded

    def mark_forgotten(self, retained: Retained | None) -> None:
        self._result.set_class(self.is_forgotten(retained), "forgotten")


class Calling(Static):
    """A call that is on its way."""

    DEFAULT_CSS = """
    Calling { height: auto; margin: 0 0 1 0; padding: 0 1; border-left: outer $secondary; color: $foreground 65%; }
    """
