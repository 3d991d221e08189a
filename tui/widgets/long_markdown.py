"""Markdown of any length, which may grow while it is read: only what is in sight is laid out.

Whenever one block changes, Textual lays out every widget there is, in sight or not. So a long text is cut where
paragraphs end, the parts in sight are a Markdown widget each, and an empty space has the height of all the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from markdown_it import MarkdownIt
from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widget import Widget
from textual.widgets import Markdown
from textual.widgets._markdown import MarkdownParagraph
from textual.widgets.markdown import MarkdownBlock

from .backdrop import Backdrop, Growing
from .code_block import CodeBlock

SECTION_CHARS = 2000
OPEN_CHARS = 6000
"""from the end, laid out before it is known what is in sight"""
CODE_TOKENS = ("fence", "code_block")

_BREAK = re.compile(r"\n\n(?=[^\s\-*+>|\d#`~<])")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)


def parser() -> MarkdownIt:
    """HTML is shown as it was written, and not swallowed."""
    return MarkdownIt("gfm-like", {"html": False})


def sections(text: str) -> list[str]:
    """Cut a text where paragraphs end outside of code, in parts of about SECTION_CHARS; joined they are the text."""
    parts: list[str] = []
    while len(text) > SECTION_CHARS:
        cut = _cut(text)
        if cut is None:
            break
        parts.append(text[:cut])
        text = text[cut:]
    return [*parts, text]


def _cut(text: str) -> int | None:
    """The first place at or after SECTION_CHARS where a section may end."""
    for found in _BREAK.finditer(text, SECTION_CHARS):
        if not _in_fence(text[: found.start()]):
            return found.end()
    return None


def _in_fence(text: str) -> bool:
    fence = ""
    for mark in _FENCE.findall(text):
        if not fence:
            fence = mark
        elif mark[0] == fence[0] and len(mark) >= len(fence):
            fence = ""
    return bool(fence)


class Paragraph(Growing, MarkdownParagraph):
    """Most of what is written."""


class Section(Backdrop, Markdown):
    """Some paragraphs that are laid out."""

    DEFAULT_CSS = """
    Section { padding: 0 2 0 2; background: transparent; }
    Section .forgotten { color: $foreground 35%; text-style: dim; }
    Section .forgotten Label { color: $foreground 35%; text-style: dim; }
    """

    BLOCKS = {  # noqa: RUF012 (as the base class has it)
        **Markdown.BLOCKS,
        "paragraph_open": Paragraph,
        "fence": CodeBlock,
        "code_block": CodeBlock,
    }

    def __init__(self, markdown: str = "") -> None:
        super().__init__(markdown or None, parser_factory=parser, open_links=False)


class Space(Widget):
    """The place of the parts that are not laid out."""

    DEFAULT_CSS = "Space { height: 0; display: none; }"

    def set_height(self, n_lines: int) -> None:
        self.styles.height = n_lines
        self.styles.display = "block" if n_lines else "none"


@dataclass(eq=False)
class Part:
    """Some paragraphs, laid out or not."""

    text: str
    section: Section | None = None
    measured: int = 0
    """lines that it took when it was laid out last; 0: never at this width"""

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
        self._parts = [Part(text) for text in sections(text)]
        self._above, self._below = Space(), Space()
        self._width = 80
        """columns of the text"""
        n_chars = 0
        for part in reversed(self._parts):
            if part.section is None and n_chars < OPEN_CHARS:
                part.section = Section(part.text)
            n_chars += len(part.text)

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
                section = self._parts[i].section = Section(self._parts[i].text)
                await self.mount(section, after=before)
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
            assert tail.section is not None
            n_shown = len(tail.text)
            # what is shown has no place to cut in it: the first part only grows
            tail.text, *more = sections(tail.text + piece)
            if tail.text[n_shown:]:
                await tail.section.append(tail.text[n_shown:])
            for text in more:
                await self._begin(Part(text))

    async def _begin(self, part: Part) -> None:
        """One more part at the end."""
        tail = self._parts[-1]
        assert tail.section is not None
        self._parts.append(part)
        part.section = Section()
        with self.app.batch_update():
            if self._below.display:
                await self._give_up(tail)
                self._space_out()
            else:
                self.move_child(self._below, after=tail.section)
            await self.mount(part.section)
        await part.section.append(part.text)

    def code(self) -> list[str]:
        """The blocks of code, as they were written."""
        return [token.content.rstrip("\n") for token in parser().parse(self.text) if token.type in CODE_TOKENS]

    def mark_forgotten(self, is_forgotten: Callable[[int, int], bool]) -> None:
        """Dim the blocks in sight of whose UTF-8 bytes [begin, end) nothing is kept."""
        base = 0
        for part in self._parts:
            starts = [0, *accumulate(len(line.encode()) for line in part.text.splitlines(keepends=True))]
            for block in part.section.children if part.section is not None else ():
                if isinstance(block, MarkdownBlock):
                    begin, end = (starts[min(line, len(starts) - 1)] for line in block.source_range)
                    block.set_class(is_forgotten(base + begin, base + end), "forgotten")
            base += starts[-1]
