"""Where the user writes: as many lines as it takes, one key sends."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

LONG_PASTE_CHARS = 2000
LONG_PASTE_LINES = 20
"""a pasted text beyond either goes with the message as an attachment, and not into its words"""


class Prompt(TextArea):
    """A text area that sends."""

    DEFAULT_CSS = """
    Prompt {
        height: auto;
        min-height: 3;
        max-height: 12;
        border: round $panel-lighten-2;
        background: $background;
        padding: 0 1;
        border-title-color: $foreground 60%;
        border-title-align: left;
        border-subtitle-color: $foreground 45%;
        border-subtitle-align: right;
        scrollbar-size-vertical: 1;
        &:focus { border: round $primary; background: $background; }
        &.editing { border: round $accent; border-title-color: $accent; }
        & .text-area--cursor-line { background: $background; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", id="send", priority=True),
        Binding("ctrl+j,shift+enter,alt+enter", "newline", "New line", id="newline", priority=True),
        Binding("up", "up_or_edit", "Edit your last message (in an empty prompt)", id="edit_last", priority=True),
    ]

    class Sent(Message):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class LongPaste(Message):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class EditLast(Message):
        pass

    def __init__(self, **options: str) -> None:
        super().__init__(
            soft_wrap=True,
            show_line_numbers=False,
            tab_behavior="focus",
            highlight_cursor_line=False,
            placeholder="Ask anything",
            **options,  # type: ignore[arg-type]
        )

    def action_send(self) -> None:
        self.post_message(self.Sent(self.text))

    def action_newline(self) -> None:
        self.insert("\n")

    def action_up_or_edit(self) -> None:
        if self.text:
            self.action_cursor_up()
        else:
            self.post_message(self.EditLast())

    async def _on_paste(self, event: events.Paste) -> None:
        if len(event.text) > LONG_PASTE_CHARS or event.text.count("\n") > LONG_PASTE_LINES:
            event.prevent_default()
            event.stop()
            self.post_message(self.LongPaste(event.text))
