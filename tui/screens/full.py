"""The conversation is longer than the context: what can be done about it."""

from __future__ import annotations

from typing import Literal, cast

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from ..events import TooLong
from .dialog import Dialog

Way = Literal["summary", "oldest", "raise", "shorten"]


class FullScreen(Dialog[Way]):
    """Asks before anything is read; None: nothing of it."""

    DEFAULT_CSS = "FullScreen { & OptionList { height: auto; margin: 1 0; } }"

    def __init__(self, event: TooLong) -> None:
        super().__init__()
        self._event = event

    def compose(self) -> ComposeResult:
        event, n_turns = self._event, sum(1 for message in self._event.oldest if message.role == "user")
        what = event.error.what
        with Vertical(classes="box") as box:
            box.border_title = "The context is full"
            yield Static(f"{what[:1].upper()}{what[1:]}. Nothing was sent yet.", markup=False)
            turns = "turn" if n_turns == 1 else f"{n_turns} turns"
            yield OptionList(
                self._option(
                    "oldest",
                    f"Leave out the oldest {turns}, and answer",
                    f"the rest has {event.n_after:,} tokens; all stays on the screen, d takes a turn in again",
                ),
                self._option("raise", "Raise the context", "F4, if the model and the memory have room for more"),
                self._option("shorten", "Shorten the message", "it goes back into the prompt"),
                self._option(
                    "summary",
                    f"Summarise the oldest {turns}, and answer",
                    "the model writes it, and reads it in their place; d on one of them takes them in again",
                ),
            )
            yield Static("Enter chooses · Esc leaves the message where it is", classes="hint", markup=False)

    def _option(self, way: Way, what: str, about: str) -> Option:
        return Option(Text.assemble((what, "bold"), "\n", (f"  {about}", "dim")), id=way)

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(cast(Way, event.option_id))
