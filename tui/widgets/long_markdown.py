"""Markdown of any length, which may grow while it is read: only what is in sight is laid out.

Whenever one block changes, Textual lays out every widget there is, in sight or not. So a long text is cut into pieces,
those in sight are a Markdown widget each, and an empty space has the height of all the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from markdown_it.token import Token
from textual import events, on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Markdown
from textual.widgets._markdown import MarkdownParagraph
from textual.widgets.markdown import MarkdownBlock

from ..cutting import MarkdownPiece, pieces
from ..markup import BLANK, parser
from .backdrop import Backdrop, Growing
from .code_block import CodeBlock
from .text_blocks import BLOCKS

OPEN_CHARS = 6000
"""from the end, laid out before it is known what is in sight"""
CODE_TOKENS = ("fence", "code_block")
_UNSURE = re.compile(r"\n[ \t]*(?:[-*+>|#]+|\d{1,9}[.)]?|[`~]{1,2})?[ \t]*\Z")
"""a line that may become an item, and is none yet: Textual would take it for a paragraph, and end the list"""


class Paragraph(Growing, MarkdownParagraph):
    """Most of what is written."""

    def _token_to_content(self, token: Token) -> Content:
        content = super()._token_to_content(token)
        return Content(content.plain.replace(BLANK, " "), list(content.spans)) if BLANK in content.plain else content


class Section(Backdrop, Markdown):
    """Some paragraphs that are laid out."""

    DEFAULT_CSS = """
    Section { padding: 0 2 0 2; background: transparent; }
    Section .forgotten { color: $foreground 35%; text-style: dim; }
    Section .forgotten Label { color: $foreground 35%; text-style: dim; }
    Section > .goes-on { margin-bottom: 0; }
    Section > CodeBlock.goes-on { border-bottom: none; }
    Section > CodeBlock.follows { border-top: none; }
    """

    BLOCKS = {  # noqa: RUF012 (as the base class has it)
        **Markdown.BLOCKS,
        **BLOCKS,
        "paragraph_open": Paragraph,
        "fence": CodeBlock,
        "code_block": CodeBlock,
    }

    def __init__(self, piece: MarkdownPiece, follower: MarkdownPiece | None = None, *, grows: bool = False) -> None:
        """Show a piece.

        :param follower: the piece below it
        :param grows: the text is written later, with ``append``: what Textual is given at first cannot grow
        """
        text = "" if grows else piece.opening + piece.text
        super().__init__(text or None, parser_factory=parser, open_links=False)
        self._piece, self.follower = piece, follower

    def on_mount(self) -> None:
        self.call_after_refresh(self.join)

    def join(self) -> None:
        """Show a block that is in several sections as one; called when there are blocks."""
        blocks = [child for child in self.children if isinstance(child, MarkdownBlock)]
        if blocks:
            blocks[0].set_class(_goes_on_in(blocks[0], self._piece), "follows")
            blocks[-1].set_class(_goes_on_in(blocks[-1], self.follower), "goes-on")


def _goes_on_in(block: MarkdownBlock, piece: MarkdownPiece | None) -> bool:
    """Whether a piece begins, or goes on, with what a block shows: code is opened again, other blocks are not."""
    return piece is not None and piece.follows and isinstance(block, CodeBlock) == bool(piece.opening)


class Space(Widget):
    """The place of the parts that are not laid out."""

    DEFAULT_CSS = "Space { height: 0; display: none; }"

    def set_height(self, n_lines: int) -> None:
        self.styles.height = n_lines
        self.styles.display = "block" if n_lines else "none"


@dataclass(eq=False)
class Part:
    """A piece of the text, laid out or not."""

    piece: MarkdownPiece
    section: Section | None = None
    measured: int = 0
    """lines that it took when it was laid out last; 0: never at this width"""

    @property
    def text(self) -> str:
        return self.piece.text

    def n_lines(self, width: int) -> int:
        """What it takes, or what it may take: every line wrapped at ``width``, an empty one between paragraphs."""
        if self.section is not None and self.section.size.height:
            return self.section.size.height
        if not self.measured:
            self.measured = sum(1 + max(0, len(line) - 1) // width for line in self.text.rstrip("\n").split("\n")) + 1
        return self.measured


class LongMarkdown(Backdrop, Vertical):
    """Markdown that is laid out in part; ``write`` adds to its end.

    From top to bottom it holds a space, the parts in sight, a space, and the last part, which is always laid out.
    """

    DEFAULT_CSS = "LongMarkdown { height: auto; }"

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self._parts = [Part(piece) for piece in pieces(text)]
        self._above, self._below = Space(), Space()
        self._width = 80
        """columns of the text"""
        self._n_shown = len(self._parts[-1].text)
        """characters of the last part"""
        n_chars = 0
        for i in reversed(range(len(self._parts))):
            if n_chars < OPEN_CHARS:
                self._open(i)
            n_chars += len(self._parts[i].text)

    def compose(self) -> ComposeResult:
        shown = [part.section for part in self._parts if part.section is not None]
        yield self._above
        yield from shown[:-1]
        yield self._below
        yield shown[-1]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self._parts)

    @property
    def shown(self) -> Sequence[Part]:
        """The parts that are laid out."""
        return [part for part in self._parts if part.section is not None]

    def _open(self, i: int) -> Section:
        part = self._parts[i]
        part.section = Section(part.piece, self._parts[i + 1].piece if i + 1 < len(self._parts) else None)
        return part.section

    def on_resize(self, event: events.Resize) -> None:
        width = max(1, event.size.width - 4)
        if width != self._width:
            self._width = width
            for part in self._parts:
                part.measured = 0
            self._space_out()

    def _space_out(self) -> None:
        """Give the spaces the height of what they stand for."""
        n_lines = [part.n_lines(self._width) if part.section is None else 0 for part in self._parts]
        first = next(i for i, part in enumerate(self._parts) if part.section is not None)
        above = sum(n_lines[:first])
        self._above.set_height(above)
        self._below.set_height(sum(n_lines) - above)

    async def look(self, top: int, bottom: int) -> bool:
        """Lay out what comes into sight, give up what is far out of it.

        :param top, bottom: the lines of this widget that are in sight: [top, bottom)
        :returns: whether something was laid out
        """
        async with self.lock:
            return await self._look(top, bottom)

    async def _look(self, top: int, bottom: int) -> bool:
        view = bottom - top
        edges = list(accumulate((part.n_lines(self._width) for part in self._parts), initial=0))
        last = len(self._parts) - 1

        def within(i: int, n_views: float) -> bool:
            return edges[i + 1] > top - n_views * view and edges[i] < bottom + n_views * view

        near = [i for i in range(last) if within(i, 1.0 if self._parts[i].section is None else 2.0)]
        wanted = range(near[0], near[-1] + 1) if near else range(0)
        gone = [i for i in range(last) if i not in wanted and self._parts[i].section is not None]
        come = [i for i in wanted if self._parts[i].section is None]
        if not gone and not come:
            return False
        with self.app.batch_update():
            for i in gone:
                await self._give_up(self._parts[i])
            for i in come:
                before = self._parts[i - 1].section if i > wanted[0] else self._above
                await self.mount(self._open(i), after=before)
            self._space_out()
        return bool(come)

    async def _give_up(self, part: Part) -> None:
        assert part.section is not None
        part.measured = part.n_lines(self._width)
        section, part.section = part.section, None
        await section.remove()

    async def write(self, piece: str) -> None:
        """Add to the end; back when it is laid out."""
        async with self.lock:
            tail = self._parts[-1]
            before = tail.piece
            tail.piece, *more = pieces(tail.text + piece, before.opening, before.follows)
            for new in more:
                await self._show(len(self._parts[-1].text))
                await self._begin(new)
            text = self._parts[-1].text
            unsure = _UNSURE.search(text)
            await self._show(unsure.start() if unsure else len(text))

    async def finish(self) -> None:
        """Nothing more is added: show what waited for its line."""
        async with self.lock:
            await self._show(len(self._parts[-1].text))

    async def _show(self, n_chars: int) -> None:
        """So much of the last part, and its opening."""
        tail = self._parts[-1]
        assert tail.section is not None
        if n_chars < self._n_shown:
            await tail.section.update("")
            self._n_shown = 0
        opening = "" if self._n_shown else tail.piece.opening
        if n_chars > self._n_shown:
            await tail.section.append(opening + tail.text[self._n_shown : n_chars])
            self._n_shown = n_chars
            tail.section.join()

    async def _begin(self, piece: MarkdownPiece) -> None:
        """One more part at the end."""
        tail = self._parts[-1]
        assert tail.section is not None
        tail.section.follower = piece
        tail.section.join()
        section = Section(piece, grows=True)
        self._parts.append(Part(piece, section))
        self._n_shown = 0
        with self.app.batch_update():
            if self._below.display:
                await self._give_up(tail)
                self._space_out()
            else:
                self.move_child(self._below, after=tail.section)
            await self.mount(section)

    def code(self) -> list[str]:
        """The blocks of code, as they were written."""
        return [token.content.rstrip("\n") for token in parser().parse(self.text) if token.type in CODE_TOKENS]

    @on(CodeBlock.Copied)
    def _copy_whole(self, event: CodeBlock.Copied) -> None:
        """A long block of code is several widgets, and copied as the one that it is."""
        if event.is_part:
            event.stop()
            whole = next((code for code in self.code() if event.code in code), event.code)
            self.post_message(CodeBlock.Copied(whole))

    def mark_forgotten(self, is_forgotten: Callable[[int, int], bool]) -> None:
        """Dim the blocks in sight of whose UTF-8 bytes [begin, end) nothing is kept."""
        base = 0
        for part in self._parts:
            n_opening = len(part.piece.opening.encode())
            lines = (part.piece.opening + part.text).splitlines(keepends=True)
            starts = [max(0, n - n_opening) for n in (0, *accumulate(len(line.encode()) for line in lines))]
            for block in part.section.children if part.section is not None else ():
                if isinstance(block, MarkdownBlock):
                    begin, end = (starts[min(line, len(starts) - 1)] for line in block.source_range)
                    block.set_class(is_forgotten(base + begin, base + end), "forgotten")
            base += starts[-1]
