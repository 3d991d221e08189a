"""Lists and tables of Markdown as one widget each.

Textual makes three or four widgets of every item and one of every cell, and all of them anew whenever the block grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from textual.app import ComposeResult
from textual.content import Content
from textual.geometry import Size
from textual.widgets._markdown import (
    MarkdownBlock,
    MarkdownFence,
    MarkdownListItem,
    MarkdownOrderedListItem,
    MarkdownParagraph,
    MarkdownTable,
    MarkdownTH,
)

from .backdrop import Growing

LEAST_COLUMN = 4
"""columns of the terminal that a table's column has at least, before others lose more"""


class Lines(Growing, MarkdownBlock):
    """A block that says itself which lines it has at a width."""

    COMPONENT_CLASSES = {"symbol", "rule"}  # noqa: RUF012 (as the base class has it)

    DEFAULT_CSS = """
    Lines {
        & > .symbol { color: $text-primary; }
        &:light > .symbol { color: $text-secondary; }
        & > .rule { color: $foreground 25%; }
    }
    """

    _laid: tuple[int, list[Content]] = (0, [])

    def lay_out(self, width: int) -> Iterable[Content]:
        raise NotImplementedError

    def changed(self) -> None:
        self._laid = (0, [])
        self.refresh(layout=True)

    def _lines(self, width: int) -> list[Content]:
        if self._laid[0] != width:
            self._laid = (width, list(self.lay_out(width)))
        return self._laid[1]

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002  # of the base class
        return len(self._lines(width))

    def render(self) -> Content:
        return Content("\n").join(self._lines(max(1, self.content_size.width)))


@dataclass
class TableRow:
    """A paragraph of an item."""

    indent: int
    symbol: str
    """what stands before its first line; blanks for the second paragraph of an item"""
    content: Content
    _wrapped: tuple[int, list[Content]] = field(default=(0, []), repr=False)

    def is_same(self, other: TableRow) -> bool:
        return (self.indent, self.symbol) == (other.indent, other.symbol) and self.content.is_same(other.content)

    def lines(self, width: int) -> list[Content]:
        if self._wrapped[0] != width:
            n_before = self.indent + len(self.symbol)
            symbol = Content.assemble(" " * self.indent, (self.symbol, ".symbol"))
            blank = Content(" " * n_before)
            wrapped = self.content.wrap(max(1, width - n_before)) or [Content("")]
            self._wrapped = (width, [(blank if i else symbol) + line for i, line in enumerate(wrapped)])
        return self._wrapped[1]


class Rows(Lines):
    """Items of a list, one below the other."""

    rows: Sequence[TableRow] = ()

    def change(self, rows: Sequence[TableRow]) -> None:
        """Take other rows; those that stay as they were are not wrapped again."""
        before = self.rows
        self.rows = [
            old if old is not None and old.is_same(row) else row
            for old, row in zip([*before, *[None] * len(rows)], rows, strict=False)
        ]
        if list(map(id, before)) != list(map(id, self.rows)):
            self.changed()

    def lay_out(self, width: int) -> Iterable[Content]:
        return [line for row in self.rows for line in row.lines(width)]


class ListBlock(Growing, MarkdownBlock):
    """A list with the lists in it; code and tables between its items are widgets of their own."""

    DEFAULT_CSS = """
    ListBlock {
        height: auto; layout: vertical; margin: 0 0 1 0;
        & > Rows { margin: 0; }
    }
    """

    def compose(self) -> ComposeResult:
        yield from self.widgets()

    def widgets(self) -> list[MarkdownBlock]:
        """What this block consists of, not mounted."""
        found: list[MarkdownBlock] = []
        for part in _flat(self, 0):
            if isinstance(part, MarkdownBlock):
                found.append(part)
            elif found and isinstance(found[-1], Rows):
                found[-1].rows = [*found[-1].rows, part]
            else:
                rows = Rows(self._markdown, self._token)
                rows.rows = [part]
                found.append(rows)
        self._blocks.clear()
        return found

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if not isinstance(block, ListBlock):
            await super()._update_from_block(block)
            return
        self._copy_context(block)
        have, want = list(self.children), block.widgets()
        n_kept = 0
        for old, new in zip(have, want, strict=False):
            if isinstance(old, Rows) and isinstance(new, Rows):
                old.change(new.rows)
            elif isinstance(old, MarkdownFence) and isinstance(new, MarkdownFence):
                if old.code != new.code:
                    await old._update_from_block(new)
            else:
                break
            n_kept += 1
        if have[n_kept:]:
            await self.remove_children(have[n_kept:])
        if want[n_kept:]:
            await self.mount_all(want[n_kept:])


def _flat(block: ListBlock, indent: int) -> Iterator[TableRow | MarkdownBlock]:
    """The paragraphs of a list and its lists in order; and what is no paragraph."""
    items = [item for item in block._blocks if isinstance(item, MarkdownListItem)]
    symbols = [item.bullet for item in items]
    if items and isinstance(items[0], MarkdownOrderedListItem):
        first = int(items[0].bullet)  # the numbers after the first are not asked for: that is what Markdown says
        symbols = [f" {first + i}. " for i in range(len(items))]
    n_most = max(map(len, symbols), default=0)
    for item, symbol in zip(items, symbols, strict=True):
        before = symbol.rjust(n_most)
        inner = indent + n_most
        for part in item._blocks or (None,):
            if part is None or isinstance(part, MarkdownParagraph):
                yield TableRow(indent, before, part._content if part is not None else Content(""))
            else:
                if before.strip():
                    yield TableRow(indent, before, Content(""))
                if isinstance(part, ListBlock):
                    yield from _flat(part, inner)
                else:
                    part.styles.margin = (0, 0, 1, inner)
                    yield part
            before = " " * n_most


class TableBlock(Lines, MarkdownTable):
    """A table in which no column is wider than it must be, and cells are wrapped where there is no room."""

    DEFAULT_CSS = """
    TableBlock {
        margin: 0 0 1 0; background: transparent;
        &:light { background: transparent; }
    }
    """

    def compose(self) -> ComposeResult:
        self._headers, self._rows = self._get_headers_and_rows()
        self._sides = _sides(self)
        self._blocks.clear()
        yield from ()

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if not isinstance(block, TableBlock):
            await MarkdownBlock._update_from_block(self, block)
            return
        self._copy_context(block)
        self._headers, self._rows = block._get_headers_and_rows()
        self._sides = _sides(block)
        self.changed()

    def lay_out(self, width: int) -> Iterator[Content]:
        n = len(self._headers)
        rows = [[*row[:n], *[Content("")] * (n - len(row))] for row in self._rows]
        columns = zip(self._headers, *rows, strict=True)
        widths = column_widths([max(cell.cell_length for cell in column) for column in columns], width)
        yield from _cells([cell.stylize("bold") for cell in self._headers], widths, self._sides)
        yield _rule("━", widths)
        laid = [list(_cells(row, widths, self._sides)) for row in rows]
        apart = any(len(lines) > 1 for lines in laid)
        for i, lines in enumerate(laid):
            if i and apart:
                yield _rule("─", widths)
            yield from lines


def column_widths(natural: Sequence[int], width: int) -> list[int]:
    """What columns get: what they want, or the widest ones lose first; a space on both sides and a line between."""
    room = width - 3 * len(natural) + 1
    most = max(natural, default=0)
    while most > LEAST_COLUMN and sum(min(w, most) for w in natural) > room:
        most -= 1
    return [max(1, min(w, most)) for w in natural]


def _sides(block: MarkdownBlock) -> list[str]:
    """To which side the columns of a table go: left, right or center."""
    if isinstance(block, MarkdownTH):
        _, _, side = str(block._token.attrGet("style") or "").partition("text-align:")
        return [side or "left"]
    return [side for inner in block._blocks for side in _sides(inner)]


def _padded(text: Content, width: int, side: str) -> Content:
    room = max(0, width - text.cell_length)
    left = {"right": room, "center": room // 2}.get(side, 0)
    return text.pad_left(left).pad_right(room - left)


def _cells(row: Sequence[Content], widths: Sequence[int], sides: Sequence[str]) -> Iterator[Content]:
    wrapped = [cell.wrap(width) or [Content("")] for cell, width in zip(row, widths, strict=True)]
    for i in range(max(map(len, wrapped), default=0)):
        line = [lines[i] if i < len(lines) else Content("") for lines in wrapped]
        padded = [_padded(*cell) for cell in zip(line, widths, sides, strict=True)]
        yield " " + Content.styled(" │ ", ".rule").join(padded)


def _rule(character: str, widths: Sequence[int]) -> Content:
    crossing = {"━": "┿", "─": "┼"}[character]
    return Content.styled(crossing.join(character * (width + 2) for width in widths), ".rule")


BLOCKS: dict[str, type[MarkdownBlock]] = {
    "bullet_list_open": ListBlock,
    "ordered_list_open": ListBlock,
    "table_open": TableBlock,
}
