"""The thinking of an answer: its last lines while it comes, one line when it is over, all of it on request."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.reactive import reactive
from textual.widgets import Static

from triattn_local.support import formats

from .long_markdown import LongMarkdown

_TAIL_LINES = 6
_TAIL_CHARS = 1600


class Thinking(Vertical):
    """Streams as plain text; unfolded, it is Markdown."""

    DEFAULT_CSS = """
    Thinking {
        height: auto;
        margin: 0 0 1 0;
        & > .head { color: $foreground 55%; height: 1; padding: 0 0 0 2; }
        & > .head:hover { color: $foreground; }
        & > .tail { color: $foreground 45%; height: auto; max-height: 6; padding: 0 2 0 4; }
        & > LongMarkdown {
            color: $foreground 60%; margin: 0 0 0 2; border-left: solid $foreground 18%;
        }
    }
    """

    unfolded: reactive[bool] = reactive(False)

    def __init__(self, thinking: str = "", *, n_tokens: int = 0, elapsed_s: float = 0.0, streams: bool = False) -> None:
        super().__init__()
        self.thinking = thinking
        self.n_tokens, self.elapsed_s, self.streams = n_tokens, elapsed_s, streams
        self._head = Static("", classes="head", markup=False)
        self._tail = Static("", classes="tail", markup=False)

    def compose(self) -> ComposeResult:
        yield self._head
        yield self._tail

    def on_mount(self) -> None:
        self._show()

    def extend(self, piece: str, n_tokens: int, elapsed_s: float) -> None:
        """More of it."""
        self.thinking += piece
        self.n_tokens, self.elapsed_s = n_tokens, elapsed_s
        self._show()

    def end(self, n_tokens: int, elapsed_s: float) -> None:
        """It is over: fold it away."""
        self.streams = False
        self.n_tokens, self.elapsed_s = n_tokens, elapsed_s
        self._show()
        if self.unfolded:
            self.call_later(self.watch_unfolded)

    async def watch_unfolded(self) -> None:
        for old in self.query(LongMarkdown):
            await old.remove()
        if self.unfolded and not self.streams:
            await self.mount(LongMarkdown(self.thinking))
        self._show()

    def _show(self) -> None:
        self.display = bool(self.thinking)
        mark = "▾" if self.unfolded or self.streams else "▸"
        word = "thinking" if self.streams else "thought"
        about = f"{formats.seconds(self.elapsed_s)}, {formats.plural(self.n_tokens, 'token')}"
        self._head.update(f"{mark} {word} · {about}")
        self._tail.display = self.streams
        if self.streams:
            lines = self.thinking[-_TAIL_CHARS:].split("\n")
            self._tail.update("\n".join(lines[-_TAIL_LINES:]).strip("\n"))
            self._tail.scroll_end(animate=False)

    def on_click(self) -> None:
        self.toggle()

    def toggle(self) -> None:
        self.unfolded = not self.unfolded
