"""The conversation: its latest messages, earlier ones on request, the end in sight while an answer comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from triattn_local.sessions import Message
from triattn_local.sessions.conversation import Retained

from .backdrop import Backdrop
from .long_markdown import LongMarkdown, Section
from .messages import AnswerMessage, MessageWidget, Notice, UserMessage
from .tool import Calling, ToolMessage

SHOWN_CHARS = 24_000
"""of the latest messages; what is older is laid out when it is asked for, so that a long session opens at once"""


_KINDS: dict[str, type[MessageWidget]] = {"user": UserMessage, "assistant": AnswerMessage, "tool": ToolMessage}


class Earlier(Static, can_focus=True):
    """A line that stands for the messages above."""

    DEFAULT_CSS = """
    Earlier { height: 1; margin: 0 0 1 0; content-align: center middle; color: $foreground 50%; }
    Earlier:hover, Earlier:focus { color: $primary; }
    """


@dataclass(frozen=True)
class InSight:
    """The uppermost text in sight."""

    section: Section
    place: int
    """its first line in the whole conversation"""
    row: int
    """the same from the top of what is in sight, negative above it"""


class Transcript(Backdrop, VerticalScroll, can_focus=False):
    """The branch that is read."""

    DEFAULT_CSS = """
    Transcript {
        height: 1fr;
        padding: 1 2 0 2;
        scrollbar-size-vertical: 1;
        align-horizontal: center;
        & > * { max-width: 112; }
        & > .empty {
            width: 100%; height: 100%; max-width: 100%;
            content-align: center middle; text-align: center; color: $foreground 45%;
        }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._path: Sequence[Message] = ()
        self._alternatives: Callable[[Message], Sequence[Message]] = lambda message: [message]
        self._n_hidden = 0
        self._looks_soon = False
        self._retained: Retained | None = None
        self._in_sight: InSight | None = None

    def on_mount(self) -> None:
        self.anchor()
        self.screen.screen_layout_refresh_signal.subscribe(self, lambda _: self._laid_out(), immediate=True)

    async def show(
        self,
        path: Sequence[Message],
        alternatives: Callable[[Message], Sequence[Message]],
        *,
        empty: str = "",
    ) -> None:
        """Show a branch from scratch."""
        self._path, self._alternatives = path, alternatives
        n_shown, n_chars = 0, 0
        for message in reversed(path):
            n_chars += len(message.content)
            if n_shown >= 4 and n_chars > SHOWN_CHARS:
                break
            n_shown += 1
        self._n_hidden = len(path) - n_shown
        with self.app.batch_update():
            await self.remove_children()
            if self._n_hidden:
                await self.mount(Earlier(self._earlier_text()))
            await self.mount_all([self._widget(message) for message in path[self._n_hidden :]])
            if empty and not path:
                await self.mount(Static(empty, classes="empty", markup=False))
        self.anchor()

    def _earlier_text(self) -> str:
        n = self._n_hidden
        return f"▲ {n} earlier message{'s' if n > 1 else ''}"

    async def show_earlier(self) -> None:
        """Lay out what is hidden, some messages at a time."""
        if not self._n_hidden:
            return
        first = max(0, self._n_hidden - 10)
        line = self.query_one(Earlier)
        await self.mount_all([self._widget(m) for m in self._path[first : self._n_hidden]], after=line)
        self._n_hidden = first
        if first:
            line.update(self._earlier_text())
        else:
            await line.remove()

    async def on_click(self) -> None:
        if any(line.is_mouse_over for line in self.query(Earlier)):
            await self.show_earlier()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        is_cut = self.max_scroll_y <= new_value < old_value
        if not is_cut:  # by Textual, since there is less text than before: what is read comes back with it
            self._note_reading()

    def _laid_out(self) -> None:
        """Something moved, or was scrolled to: look when it has come to rest."""
        self._hold()
        if not self._looks_soon and self.is_mounted:
            self._looks_soon = True
            self.set_timer(0.1, self.lay_out)

    def scroll_page(self, direction: int) -> None:
        """One view up (-1) or down (1); who is at the end then follows it."""
        self.scroll_relative(y=direction * self.scrollable_content_region.height, animate=False, immediate=True)
        if direction > 0 and self.scroll_y >= self.max_scroll_y:
            self.anchor()

    async def lay_out(self) -> None:
        """What came into sight is laid out, what went far out of it is given up."""
        self._looks_soon = False
        came = False
        for words in self.query(LongMarkdown):
            # where it is scrolled to, and not where it was drawn last
            top = round(self.scroll_y) - self._place(words)
            came = await words.lay_out(top, top + self.size.height) or came
        if came and self._retained is not None:
            self.mark_forgotten(self._retained)

    def _place(self, widget: Widget) -> int:
        """The line of the whole conversation where a widget begins, wherever it is scrolled to."""
        line = 0
        while widget is not self and isinstance(widget.parent, Widget):
            line += widget.virtual_region.y
            widget = widget.parent
        return line

    def _note_reading(self) -> None:
        """Remember where the uppermost text in sight stands, unless the end is followed."""
        self._in_sight = None
        if self._anchored and not self._anchor_released:
            return
        for section in self.query(Section):
            place = self._place(section)
            n_lines = section.size.height  # 0: not laid out, so that its place means nothing
            if n_lines and place < self.scroll_y + self.size.height and place + n_lines > self.scroll_y:
                self._in_sight = InSight(section, place, place - round(self.scroll_y))
                break

    def _hold(self) -> None:
        """What is read stays where it is, also when something above takes more or fewer lines than was guessed."""
        reading = self._in_sight
        if reading is None:
            self._note_reading()  # it may have come after the scroll
        elif reading.section.is_attached and (place := self._place(reading.section)) != reading.place:
            self._in_sight = replace(reading, place=place)
            self.scroll_to(y=place - reading.row, animate=False, immediate=True)

    def _widget(self, message: Message) -> MessageWidget:
        others = [other.id for other in self._alternatives(message)] or [message.id]
        return _KINDS[message.role](message, others.index(message.id), len(others))

    async def add(self, message: Message) -> MessageWidget:
        """One more message at the end."""
        widget = self._widget(message)
        await self._add(widget)
        return widget

    async def say(self, notice: Notice) -> None:
        """Something from the app itself at the end."""
        await self._add(notice)

    async def calling(self, text: str) -> Calling:
        """A call that is on its way, at the end; to be removed when it has come back."""
        widget = Calling(text, markup=False)
        await self._add(widget)
        return widget

    async def _add(self, widget: Widget) -> None:
        await self.query(".empty").remove()
        await self.mount(widget)
        self.anchor()

    async def clear_notices(self) -> None:
        await self.query(Notice).remove()

    def message_widgets(self) -> list[MessageWidget]:
        return list(self.query(MessageWidget))

    def find(self, message: int) -> MessageWidget | None:
        return next((w for w in self.query(MessageWidget) if w.message.id == message), None)

    def mark_forgotten(self, retained: Retained | None) -> None:
        """Dim what is in no head's cache any more; None shows all of it plainly."""
        self._retained = retained
        for widget in self.message_widgets():
            widget.mark_forgotten(retained)
