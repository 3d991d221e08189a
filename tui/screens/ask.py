"""One line of input: a name, or a path that is completed while it is written."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.suggester import Suggester
from textual.widgets import Input, Static

from triattn_local.support.paths import expanded, is_dir

from .dialog import Dialog


class PathSuggester(Suggester):
    """The first file or folder whose name begins with what is written."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        folder, _, begun = value.rpartition("/")
        try:
            names = sorted(expanded(f"{folder}/" if "/" in value else ".").iterdir())
        except (OSError, ValueError):
            return None
        for path in names:
            if begun and path.name.startswith(begun):
                ending = "/" if is_dir(path) else ""
                return f"{folder}/{path.name}{ending}" if "/" in value else f"{path.name}{ending}"
        return None


class AskScreen(Dialog[str]):
    """Gives back what was written; None if it was left."""

    def __init__(self, title: str, value: str = "", *, files: bool = False) -> None:
        super().__init__()
        self._heading, self._value, self._files = title, value, files

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = self._heading
            yield Input(self._value, suggester=PathSuggester() if self._files else None)
            keys = "Enter takes it · → completes · Esc leaves" if self._files else "Enter takes it · Esc leaves"
            yield Static(keys, classes="hint", markup=False)

    @on(Input.Submitted)
    def _take(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)
