"""What all smaller screens share: a quiet box over the conversation, Esc leaves it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import ClassVar, TypeVar

from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import Static

from triattn_local.errors import TriattnError

Result = TypeVar("Result")


class Dialog(ModalScreen[Result]):
    """A box in the middle."""

    DEFAULT_CSS = """
    Dialog {
        align: center middle;
        background: $background 60%;
        & > .box {
            width: 84; max-width: 100%;
            height: auto; max-height: 100%;
            padding: 0 2; border: round $primary; background: $background;
            border-title-color: $primary; border-subtitle-color: $foreground 50%;
        }
        & .hint { color: $foreground 55%; height: auto; }
        & .problem { color: $error; height: auto; }
        & Input { border: round $foreground 18%; background: $background; height: 3; }
        & Input:focus { border: round $primary; }
        & OptionList { border: none; background: $background; padding: 0; scrollbar-size-vertical: 1; }
        & OptionList:focus { border: none; background-tint: $foreground 0%; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Leave", show=False)]

    def action_leave(self) -> None:
        self.dismiss(None)

    def say_problem(self, words: str) -> None:
        self.query_one(".problem", Static).update(words)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """What goes wrong inside is told in the box, and ends what is inside only."""
        try:
            yield
        except TriattnError as error:
            self.say_problem(str(error))
