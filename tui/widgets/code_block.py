"""A block of code that can be copied on its own."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets.markdown import MarkdownFence


class CodeBlock(MarkdownFence, can_focus=True):
    """A fence with its language above, reached with Tab, copied with a key or a click on its title."""

    DEFAULT_CSS = """
    CodeBlock {
        border: round $foreground 18%;
        border-title-color: $foreground 50%;
        border-subtitle-color: $foreground 40%;
        background: $surface;
        color: $foreground;
        margin: 0 0 1 0;
        &:light { background: $surface; }
        & > Label { padding: 0 1; }
        &:focus { border: round $primary; border-subtitle-color: $primary; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c,enter", "copy", "Copy this code", id="copy_code"),
    ]

    class Copied(Message):
        def __init__(self, code: str, *, is_part: bool = False) -> None:
            super().__init__()
            self.code, self.is_part = code, is_part

    @classmethod
    def highlight(cls, code: str, language: str, ansi: bool = False, dark: bool = False) -> Content:
        return _highlight(code, language, ansi, dark)

    def on_mount(self) -> None:
        self._show_language()

    def set_content(self, content: Content) -> None:
        super().set_content(content)
        self._show_language()

    def _show_language(self) -> None:
        self.border_title = self.lexer or "text"

    def on_focus(self) -> None:
        self.border_subtitle = "c copies"

    def on_blur(self) -> None:
        self.border_subtitle = ""

    def action_copy(self) -> None:
        is_part = self.has_class("follows") or self.has_class("goes-on")
        self.post_message(self.Copied(self.code.rstrip("\n"), is_part=is_part))


@lru_cache(64)
def _highlight(code: str, language: str, ansi: bool, dark: bool) -> Content:
    """The same code stands in a list each time the list grows."""
    return MarkdownFence.highlight(code, language, ansi=ansi, dark=dark)
