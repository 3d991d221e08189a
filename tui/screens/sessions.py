"""F2: all sessions. Search while typing; open, rename, delete and take it back, export, import."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from triattn_local.sessions import Hit, Session, import_file, to_json, to_markdown
from triattn_local.support import formats
from triattn_local.support.atomic import write_whole
from triattn_local.support.paths import expanded

from .ask import AskScreen
from .dialog import Dialog

if TYPE_CHECKING:
    from ..app import ChatApp


class SessionsScreen(Dialog[None]):
    """A search line and what it finds."""

    app: ChatApp

    DEFAULT_CSS = """
    SessionsScreen {
        & > .box { height: 80%; min-height: 12; }
        & OptionList { height: 1fr; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Search", id="search_sessions"),
        Binding("r", "rename", "Rename", id="rename_session"),
        Binding("d,delete", "delete", "Delete", id="delete_session"),
        Binding("u", "undo", "Bring the last deleted back", id="undelete_session"),
        Binding("m", "export('md')", "Export as Markdown", id="export_markdown"),
        Binding("j", "export('json')", "Export as JSON, with all branches", id="export_json"),
        Binding("i", "import", "Import a file", id="import_session"),
        Binding("down", "to_list", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._hits: list[Hit] = []
        self._deleted: list[Session] = []

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = "Sessions"
            yield Input(placeholder="Search titles and contents", id="search")
            yield OptionList(id="list")
            yield Static("", classes="problem", markup=False)
            yield Static(
                "Enter opens · / search · r rename · d delete · u undo · m Markdown · j JSON · i import · Esc",
                classes="hint",
                markup=False,
            )

    def on_mount(self) -> None:
        self._list()
        self.query_one(OptionList).focus()

    @property
    def _current(self) -> Session | None:
        index = self.query_one(OptionList).highlighted
        return self._hits[index].session if index is not None and index < len(self._hits) else None

    @on(Input.Changed, "#search")
    def _list(self) -> None:
        options = self.query_one(OptionList)
        highlighted = options.highlighted or 0
        self._hits = self.app.store.search(self.query_one("#search", Input).value)
        options.clear_options()
        options.add_options([Option(self._line(hit), id=hit.session.id) for hit in self._hits])
        if not self._hits:
            options.add_option(
                Option(Text("nothing found" if self._searching else "no sessions yet", "dim"), None, True)
            )
        elif self._hits:
            options.highlighted = min(highlighted, len(self._hits) - 1)

    @property
    def _searching(self) -> bool:
        return bool(self.query_one("#search", Input).value.strip())

    def _line(self, hit: Hit) -> Text:
        session = hit.session
        here = session.id == self.app.session.id
        line = Text.assemble(
            ("● " if here else "  ", "bold"),
            (session.title or "Untitled", "bold"),
            (
                f"  {formats.ago(session.updated)} · {formats.plural(session.n_messages, 'message')} · {session.id}",
                "dim",
            ),
        )
        if hit.snippet:
            line.append("\n  ")
            for i, part in enumerate(re.split("[«»]", hit.snippet)):
                line.append(part, "bold" if i % 2 else "dim")
        return line

    @on(Input.Submitted, "#search")
    def action_to_list(self) -> None:
        self.query_one(OptionList).focus()

    def action_search(self) -> None:
        self.query_one("#search").focus()

    @on(OptionList.OptionSelected)
    async def _open(self, event: OptionList.OptionSelected) -> None:
        with self.telling():
            await self.app.open_session(self._hits[event.option_index].session)
            self.dismiss(None)

    def action_rename(self) -> None:
        session = self._current
        if session is None:
            return

        def rename(title: str | None) -> None:
            if not title:
                return
            with self.telling():
                self.app.store.update(session.id, title=title.strip())
                self.say_problem("")
                if session.id == self.app.session.id:
                    self.app.session.reload()
                    self.app.chat.refresh_title()
                self._list()

        self.app.push_screen(AskScreen("Rename", session.title), rename)

    async def action_delete(self) -> None:
        session = self._current
        if session is None:
            return
        with self.telling():
            self.app.store.delete(session.id)
            self.say_problem("")
            self._deleted.append(session)
            if session.id == self.app.session.id:
                await self.app.open_session(None)
            self._list()
            self.notify(f"Deleted “{session.title}”; u brings it back.")

    def action_undo(self) -> None:
        if not self._deleted:
            return
        session = self._deleted[-1]
        with self.telling():
            self.app.store.undelete(session.id)
            self.say_problem("")
            self._deleted.pop()
            self._list()
            self.notify(f"“{session.title}” is back.")

    def action_export(self, kind: str) -> None:
        session = self._current
        if session is None:
            return
        name = re.sub(r"[^\w]+", "-", session.title.lower()).strip("-")[:40] or session.id

        def write(answer: str | None) -> None:
            if not answer:
                return
            path = expanded(answer)
            with self.telling():
                messages = self.app.store.messages(session.id)
                current = self.app.store.get(session.id)
                data = (to_json if kind == "json" else to_markdown)(current, messages).encode()
                write_whole(path, data)
                self.say_problem("")
                self.notify(f"Written: {path}")

        with contextlib.suppress(OSError):  # the folder that we are in was removed
            name = str(Path.cwd() / name)
        self.app.push_screen(AskScreen("Export to", f"{name}.{kind}"), write)

    def action_import(self) -> None:
        def read(answer: str | None) -> None:
            if not answer:
                return
            with self.telling():
                session = self.app.store.add_draft(import_file(expanded(answer)))
                self.app.store.release(session.id)
                self.say_problem("")
                self._list()
                self.notify(f"Imported “{session.title}”.")

        self.app.push_screen(AskScreen("Import a .md or .json file", "", files=True), read)
