"""One message of the transcript: what the user said, what was answered, and what the app has to say."""

from __future__ import annotations

import re
import time
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message as TextualMessage
from textual.widgets import Static

from triattn_local.answers.thinking import TextKind
from triattn_local.errors import TriattnError
from triattn_local.sessions import Message
from triattn_local.sessions.conversation import Retained
from triattn_local.support import formats

from .backdrop import Backdrop
from .long_markdown import LongMarkdown
from .thinking import Thinking

_ENDS = {
    "stopped": "stopped: F6 goes on",
    "length": "stopped at the answer's token limit: F6 goes on",
    "context": "the context is full: F4 raises it, then F6 goes on; or ask on, and leave the oldest turns out",
    "interrupted": "cut off when the program ended: F6 goes on",
    "failed": "failed",
}

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """Without what a terminal would obey."""
    return _CONTROL.sub("�", text.replace("\r\n", "\n"))


LEFT_OUT = "left out: the model does not read it (d lets it)"


class MessageWidget(Vertical, can_focus=True):
    """A message that can be reached, copied, and followed into its alternatives."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "want('copy')", "Copy this message", id="copy_message"),
        Binding(
            "left_square_bracket",
            "want('previous')",
            "Earlier alternative",
            key_display="[",
            id="previous_branch",
        ),
        Binding("right_square_bracket", "want('next')", "Later alternative", key_display="]", id="next_branch"),
        Binding("r", "want('again')", "Answer anew", id="again_here"),
        Binding("e", "want('edit')", "Edit and send again", id="edit_here"),
        Binding("w", "want('rewrite')", "Edit the words of this answer", id="edit_answer"),
        Binding("o", "want('go_on')", "Go on with this cut answer", id="go_on_here"),
        Binding("t", "want('fold')", "Show or hide the thinking", id="fold_here"),
        Binding(
            "d,delete",
            "want('leave_out')",
            "Keep the model from reading this turn; again lets it",
            id="leave_out",
        ),
    ]

    class Wanted(TextualMessage):
        """A key was pressed on a message."""

        def __init__(self, what: str, message: Message) -> None:
            super().__init__()
            self.what, self.message = what, message

    def __init__(self, message: Message, place: int = 0, n_alternatives: int = 1) -> None:
        super().__init__(id=f"message-{message.id}")
        self.message = message
        self.place, self.n_alternatives = place, n_alternatives

    @property
    def branch(self) -> str:
        """‹2/3› where there are alternatives."""
        return f"‹ {self.place + 1}/{self.n_alternatives} ›" if self.n_alternatives > 1 else ""

    def on_mount(self) -> None:
        self._show_foot()

    def mark_forgotten(self, retained: Retained | None) -> None:
        raise NotImplementedError

    def is_forgotten(self, retained: Retained | None) -> bool:
        """Whether nothing of the whole content is held any more."""
        size = len(self.message.content.encode())
        return retained is not None and retained.is_forgotten(self.message.id, 0, size)

    def action_want(self, what: str) -> None:
        self.post_message(self.Wanted(what, self.message))

    def change(self, message: Message) -> None:
        """The same message, with other things to say about it."""
        self.message = message
        self._show_foot()

    def _show_foot(self) -> None:
        raise NotImplementedError


class UserMessage(MessageWidget):
    """As it was written, with its files as one line each."""

    DEFAULT_CSS = """
    UserMessage {
        height: auto;
        margin: 0 0 1 0;
        padding: 0 1;
        border-left: outer $primary;
        background: $panel;
        & > .words { width: 1fr; height: auto; }
        & > .file { color: $accent; height: auto; }
        & > .foot { color: $foreground 50%; height: 1; }
        & > .forgotten { color: $foreground 35%; text-style: dim; }
        &.left-out { border-left: outer $foreground 18%; color: $foreground 45%; }
        &:focus { border-left: outer $accent; }
    }
    """

    def __init__(self, message: Message, place: int = 0, n_alternatives: int = 1) -> None:
        super().__init__(message, place, n_alternatives)
        self._foot = Static("", classes="foot", markup=False)

    def compose(self) -> ComposeResult:
        for file in self.message.attachments:
            lines = file.text.count("\n") + 1
            yield Static(f"▤ {file.name} · {formats.plural(lines, 'line')}", classes="file", markup=False)
        if self.message.content:
            yield Static(self.message.content, classes="words", markup=False)
        yield self._foot

    def _show_foot(self) -> None:
        parts = [part for part in (self.branch, LEFT_OUT if self.message.left_out else "") if part]
        self._foot.update(" · ".join(parts))
        self._foot.display = bool(parts)
        self.set_class(self.message.left_out, "left-out")

    def mark_forgotten(self, retained: Retained | None) -> None:
        self.query(".words").set_class(self.is_forgotten(retained), "forgotten")


class AnswerMessage(Backdrop, MessageWidget):
    """Thinking, words, and one line about them."""

    DEFAULT_CSS = """
    AnswerMessage {
        height: auto;
        margin: 0 0 1 0;
        padding: 0 0 0 1;
        & > .foot { color: $foreground 40%; padding: 0 2; height: auto; }
        &.left-out { color: $foreground 45%; }
        &:focus > .foot { color: $accent; }
    }
    """

    def __init__(self, message: Message, place: int = 0, n_alternatives: int = 1) -> None:
        super().__init__(message, place, n_alternatives)
        report = message.report
        self.thinking = Thinking(
            message.thinking,
            n_tokens=int(report.get("n_thinking", 0)),
            elapsed_s=float(report.get("thinking_s", 0.0)),
        )
        self.body = LongMarkdown(message.content)
        self._foot = Static("", classes="foot", markup=False)
        self._started_s = 0.0
        self.note = ""
        """what there is to say about the way to this answer"""

    def compose(self) -> ComposeResult:
        yield self.thinking
        yield self.body
        yield self._foot

    async def write(self, kind: TextKind, piece: str, n_tokens: int) -> None:
        """More of the answer."""
        now_s = time.monotonic()
        if kind == "thinking":
            if not self.thinking.streams:
                self.thinking.streams, self._started_s = True, now_s
            self.thinking.extend(piece, n_tokens, now_s - self._started_s)
        else:
            if self.thinking.streams:
                self.thinking.end(self.thinking.n_tokens, now_s - self._started_s)
            if piece:
                await self.body.write(piece)

    def say(self, note: str) -> None:
        """A remark below the answer."""
        self.note = note
        self._show_foot()

    def end(self, message: Message) -> None:
        """The answer is whole, or ended otherwise."""
        self.message = message
        report = message.report
        if self.thinking.streams:
            self.thinking.end(self.thinking.n_tokens, float(report.get("thinking_s", 0.0)))
        self.call_later(self.body.finish)
        self._show_foot()

    def _show_foot(self) -> None:
        report, state = self.message.report, self.message.state
        parts = [self.branch] if self.branch else []
        if state != "streaming" and report.get("n_content") is not None:
            parts.append(formats.plural(int(report["n_content"]), "token"))
            if report.get("tokens_per_s"):
                parts.append(f"{report['tokens_per_s']} tok/s")
        if state in _ENDS:
            parts.append(_ENDS[state])
        if report.get("edited"):
            parts.append("edited by you: F6 has the model go on")
        if self.message.left_out:
            parts.append(LEFT_OUT)
        if self.note:
            parts.append(self.note)
        if self.message.summary is not None:
            text, n = self.message.summary
            parts.append(f"in the place of {n} messages the model reads this:\n{harmless(text)}")
        self.set_class(self.message.left_out, "left-out")
        self._foot.update(" · ".join(parts))
        self._foot.display = bool(parts)

    def mark_forgotten(self, retained: Retained | None) -> None:
        id_ = self.message.id
        self.body.mark_forgotten(lambda begin, end: retained is not None and retained.is_forgotten(id_, begin, end))


class Notice(Static):
    """What the app has to say: an error with its next step, or a remark."""

    DEFAULT_CSS = """
    Notice {
        height: auto; margin: 0 0 1 0; padding: 0 1;
        border-left: outer $secondary; color: $foreground 75%;
        &.error { border-left: outer $error; }
    }
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None, error: bool = False) -> None:
        lines = [what if not where else f"{what}\n{where}"]
        if fix:
            lines.append(f"→ {fix}")
        super().__init__("\n".join(lines), markup=False, classes="error" if error else None)

    @classmethod
    def of(cls, error: TriattnError, next_step: str | None = None) -> Notice:
        fix = "\n→ ".join(step for step in (error.fix, next_step) if step)
        what = error.what[:1].upper() + error.what[1:]
        return cls(what, where=error.where, fix=fix or None, error=True)
