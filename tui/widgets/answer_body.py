"""The words of an answer: Markdown that streams, in sections.

Whenever one block changes, all that are there are laid out anew. So a long answer is cut, where paragraphs end, into
several Markdown widgets, and those far out of sight are folded: their blocks go, their height and their text stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import accumulate

from markdown_it import MarkdownIt
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Markdown
from textual.widgets.markdown import MarkdownBlock

from .code_block import CodeBlock

SECTION_CHARS = 2000
CODE_TOKENS = ("fence", "code_block")

_BREAK = re.compile(r"\n\n(?=[^\s\-*+>|\d#`~<])")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)


def parser() -> MarkdownIt:
    """HTML is shown as it was written, and not swallowed."""
    return MarkdownIt("gfm-like", {"html": False})


class Section(Markdown):
    """Some paragraphs of an answer."""

    DEFAULT_CSS = """
    Section { padding: 0 2 0 2; background: transparent; }
    Section .forgotten { color: $foreground 35%; text-style: dim; }
    Section .forgotten Label { color: $foreground 35%; text-style: dim; }
    """

    BLOCKS = {  # noqa: RUF012 (as the base class has it)
        **Markdown.BLOCKS,
        "fence": CodeBlock,
        "code_block": CodeBlock,
    }

    def __init__(self, markdown: str = "") -> None:
        super().__init__(markdown or None, parser_factory=parser, open_links=False)
        self.text = markdown
        """what was given, shown or not yet"""
        self.folded = False
        self.grows = False
        """whether more may come"""

    async def fold(self) -> None:
        """Give up the blocks, keep the place."""
        if not self.folded and not self.grows and self.size.height:
            self.folded = True
            self.styles.height = self.size.height
            await self.query_children(MarkdownBlock).remove()
            # Textual remembers the last few layouts and the last list of children, and with them the blocks
            self._clear_arrangement_cache()
            assert not any(isinstance(child, MarkdownBlock) for child in self.displayed_children)

    async def unfold(self) -> None:
        if self.folded:
            self.folded = False
            await self.update(self.text)
            self.styles.height = "auto"


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


class AnswerBody(Vertical):
    """Markdown in sections; ``write`` adds to the last one."""

    DEFAULT_CSS = "AnswerBody { height: auto; }"

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self._sections = [Section(part) for part in sections(text)]

    def compose(self) -> ComposeResult:
        yield from self._sections

    @property
    def text(self) -> str:
        return "".join(section.text for section in self._sections)

    async def write(self, piece: str) -> None:
        """Add to the end; back when it is laid out."""
        last = self._sections[-1]
        shown = len(last.text)
        last.grows = True
        # what is shown has no place to cut in it: the first part only grows
        last.text, *more = sections(last.text + piece)
        if last.text[shown:]:
            await last.append(last.text[shown:])
        for part in more:
            self._sections[-1].grows = False
            section = Section()
            section.grows = True
            self._sections.append(section)
            await self.mount(section)
            section.text = part
            await section.append(part)

    def end(self) -> None:
        """No more comes."""
        self._sections[-1].grows = False

    def code(self) -> list[str]:
        """The blocks of code, as they were written."""
        return [token.content.rstrip("\n") for token in parser().parse(self.text) if token.type in CODE_TOKENS]

    def mark_forgotten(self, is_forgotten: Callable[[int, int], bool]) -> None:
        """Dim the blocks in sight of whose UTF-8 bytes [begin, end) nothing is kept."""
        base = 0
        for section in self._sections:
            starts = [0, *accumulate(len(line.encode()) for line in section.text.splitlines(keepends=True))]
            for block in section.children:
                if isinstance(block, MarkdownBlock):
                    begin, end = (starts[min(line, len(starts) - 1)] for line in block.source_range)
                    block.set_class(is_forgotten(base + begin, base + end), "forgotten")
            base += starts[-1]
