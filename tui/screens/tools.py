"""The servers of tools and what they offer: what the model may call, and what was said for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from triattn_local.tools.permissions import Word

from ..widgets.messages import harmless
from .dialog import Dialog

if TYPE_CHECKING:
    from ..app import ChatApp

_NEXT: dict[Word, Word] = {"ask": "always", "always": "never", "never": "ask"}
_SHOWN: dict[Word, tuple[str, str]] = {"ask": ("asks", ""), "always": ("always", "green"), "never": ("never", "red")}


class ToolsScreen(Dialog[None]):
    """Enter goes through ask, always and never."""

    app: ChatApp

    DEFAULT_CSS = "ToolsScreen { & OptionList { height: auto; max-height: 20; margin: 1 0 0 0; } }"

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = "Tools"
            yield Static("", id="servers", markup=False)
            yield OptionList()
            yield Static("Enter goes through: asks each time, always, never · Esc leaves", classes="hint", markup=False)

    def on_mount(self) -> None:
        self._show()
        self.set_interval(0.5, self._show_servers)

    def _show_servers(self) -> None:
        lines = []
        for at in self.app.toolbox.host.states():
            problem = f": {at.problem}" if at.problem else ""
            lines.append(f"{at.server.name} · {at.state}{problem} · {at.server.place}")
        none = "There are none: [mcp.NAME] in config.toml and --mcp name servers."
        self.query_one("#servers", Static).update(harmless("\n".join(lines) or none))
        if self.query_one(OptionList).option_count != len(self.app.toolbox.host.tools()):
            self._show()

    def _show(self) -> None:
        options = self.query_one(OptionList)
        at = options.highlighted or 0
        options.clear_options()
        for tool in self.app.toolbox.host.tools():
            word, style = _SHOWN[self.app.toolbox.word(tool)]
            about = harmless(" ".join(tool.description.split()))[:60]
            line = Text.assemble((f"{word:<7}", style), f" {tool.name}", (f"  {tool.server} · {about}", "dim"))
            options.add_option(Option(line, id=tool.name))
        if options.option_count:
            options.highlighted = min(at, options.option_count - 1)
        options.display = options.option_count > 0
        self._show_servers()

    @on(OptionList.OptionSelected)
    def _turn(self, event: OptionList.OptionSelected) -> None:
        tool = self.app.toolbox.find(event.option_id or "")
        if tool is not None:
            self.app.toolbox.permissions.say(tool, _NEXT[self.app.toolbox.word(tool)])
            self._show()
