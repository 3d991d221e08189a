"""The model wants to call a tool: the user says whether it may."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, cast

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from triattn_local.tools.host import Tool

from ..widgets.messages import harmless
from .dialog import Dialog

Way = Literal["once", "always", "not", "never"]


class AllowScreen(Dialog[Way | None]):
    """Shows all that would be sent; Esc stops the turn."""

    DEFAULT_CSS = """
    AllowScreen {
        & OptionList { height: auto; margin: 1 0; }
        & VerticalScroll { height: auto; max-height: 14; margin: 1 0 0 0; }
        & .arguments { height: auto; }
        & .about { height: auto; max-height: 4; color: $foreground 60%; }
    }
    """

    def __init__(self, tool: Tool, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self._tool, self._arguments = tool, arguments

    def compose(self) -> ComposeResult:
        tool = self._tool
        with Vertical(classes="box") as box:
            box.border_title = "May the model call this tool?"
            yield Static(harmless(f"{tool.own_name} · {tool.server} · {tool.place}"), markup=False)
            yield Static(harmless(tool.description.strip()), classes="about", markup=False)
            with VerticalScroll(can_focus=False):
                text = json.dumps(dict(self._arguments), ensure_ascii=False, indent=1)
                yield Static(harmless(text), classes="arguments", markup=False)
            yield OptionList(
                Option("This time", id="once"),
                Option("Always: this tool of this server is not asked for again", id="always"),
                Option("Not this time: the model is told so, and goes on", id="not"),
                Option("Never: the model is not told of this tool any more", id="never"),
            )
            hint = "Enter chooses · PgUp, PgDn scroll · Esc stops the answer"
            yield Static(hint, classes="hint", markup=False)

    def on_mount(self) -> None:
        self.query_one(OptionList).focus()

    def key_pageup(self) -> None:
        self.query_one(VerticalScroll).scroll_page_up(animate=False)

    def key_pagedown(self) -> None:
        self.query_one(VerticalScroll).scroll_page_down(animate=False)

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(cast(Way, event.option_id))
