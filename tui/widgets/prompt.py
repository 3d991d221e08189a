"""Where the user writes: as many lines as it takes, one key sends."""

from __future__ import annotations

from collections.abc import Mapping
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
        border: round $foreground 18%;
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
        Binding("enter", "send", "Send", id="send"),
        Binding(
            "ctrl+j,alt+enter,shift+enter",
            "newline",
            "New line; Shift+Enter where the terminal tells it from Enter",
            id="newline",
        ),
        Binding(
            "ctrl+x,super+x", "cut", "Take the last attachment away; or cut what is selected", id="drop_attachment"
        ),
        Binding("up", "edit_last", "Edit your last message (in an empty prompt)", id="edit_last"),
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

    class DropAttachment(Message):
        pass

    def __init__(self, keys: Mapping[str, str], **options: str) -> None:
        super().__init__(
            soft_wrap=True,
            show_line_numbers=False,
            tab_behavior="focus",
            highlight_cursor_line=False,
            placeholder="Ask anything",
            **options,  # type: ignore[arg-type]
        )
        self._actions = {
            key: binding.action
            for binding in self.BINDINGS
            if isinstance(binding, Binding) and binding.id
            for key in keys.get(binding.id, binding.key).split(",")
        }

    async def _on_key(self, event: events.Key) -> None:
        # here, and not as bindings that come first: those would overtake letters that were typed before them
        action = self._actions.get(event.key)
        if action is None or (action == "edit_last" and self.text):
            await super()._on_key(event)
            return
        event.stop()
        event.prevent_default()
        getattr(self, f"action_{action}")()

    def action_send(self) -> None:
        self.post_message(self.Sent(self.text))

    def action_newline(self) -> None:
        self.insert("\n")

    def action_cut(self) -> None:
        """Textual would cut the whole line where nothing is selected."""
        if self.selected_text:
            super().action_cut()
        else:
            self.post_message(self.DropAttachment())

    def action_edit_last(self) -> None:
        self.post_message(self.EditLast())

    async def _on_paste(self, event: events.Paste) -> None:
        if len(event.text) > LONG_PASTE_CHARS or event.text.count("\n") > LONG_PASTE_LINES:
            event.prevent_default()
            event.stop()
            self.post_message(self.LongPaste(event.text))
