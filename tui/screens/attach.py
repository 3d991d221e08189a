"""Attach a text file: its size in tokens is shown before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input, Static

from triattn_local.errors import TriattnError, UsageError
from triattn_local.sessions import Attachment
from triattn_local.support import formats
from triattn_local.support.paths import decode, expanded, is_file

from .ask import PathSuggester
from .dialog import Dialog

if TYPE_CHECKING:
    from ..app import ChatApp

MAX_BYTES = 16 << 20


def read_text_file(path: Path) -> Attachment:
    """A file as an attachment.

    Raises
    ------
    UsageError
        It is not there, is a folder, is larger than MAX_BYTES, or is not text.
    """
    where = str(path)
    try:
        if path.is_dir():
            raise UsageError("is a folder", where=where, fix="name a file in it")
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"has more than {MAX_BYTES >> 20} MiB", where=where, fix="attach a part of it")
        words = decode(path.read_bytes()).replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise UsageError("is not UTF-8 text", where=where, fix="attach a text file") from None
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=where) from None
    if "\0" in words:
        raise UsageError("is not text", where=where, fix="attach a text file")
    return Attachment(path.name, words)


class AttachScreen(Dialog[Attachment]):
    """A path, and what stands behind it."""

    app: ChatApp

    def __init__(self) -> None:
        super().__init__()
        self._file: Attachment | None = None

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = "Attach a text file"
            yield Input(placeholder="path", suggester=PathSuggester())
            yield Static("", id="size", markup=False)
            yield Static("", classes="problem", markup=False)
            yield Static("Enter attaches · → completes · Esc leaves", classes="hint", markup=False)

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        self._measure(event.value)

    @work(thread=True, exclusive=True)
    def _measure(self, value: str) -> None:
        path = expanded(value)
        about = ""
        if value and is_file(path):
            try:
                file = read_text_file(path)
            except TriattnError as error:
                about = error.what
            else:
                n_tokens = self.app.engine.count_tokens(file.as_prompt())
                about = formats.plural(file.text.count("\n") + 1, "line")
                if n_tokens is not None:
                    stats = self.app.chat.status.stats
                    room = f" of {stats.n_ctx - stats.n_past:,} left" if stats else ""
                    about += f" · {n_tokens:,} tokens{room}"
        self.app.call_from_thread(self.query_one("#size", Static).update, about)

    @on(Input.Submitted)
    def _take(self, event: Input.Submitted) -> None:
        with self.telling():
            self.dismiss(read_text_file(expanded(event.value)))
