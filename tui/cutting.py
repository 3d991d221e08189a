"""Where a long Markdown text is cut, so that each piece stands for itself: what is laid out at once stays small.

A piece ends where a paragraph does; and if none ends for long, between the lines of a block of code, before an item of
a list or a row of a table, or amid a paragraph.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PIECE_CHARS = 2000
PARAGRAPH_CHARS = 4000
"""of a paragraph at most"""

_FENCE = re.compile(r"( {0,3})(`{3,}(?=[^`]*$)|~{3,})(.*)")
_ITEM = re.compile(r"(?:[-*+]|\d{1,9}[.)])[ \t]+\S")
_WORD = re.compile(r" (?=[^\W\d_])")
_PLAIN = re.compile(r"[^\s\-*+>|\d#`~<]")


@dataclass(frozen=True)
class MarkdownPiece:
    """Some paragraphs, or a part of one block."""

    text: str
    opening: str = ""
    """what has to stand before the text, so that it is read as what it is: how a block of code or a table begins"""
    follows: bool = False
    """it goes on with the block that the piece before it ends with"""


def pieces(text: str, opening: str = "", follows: bool = False) -> list[MarkdownPiece]:
    """Cut a text; the texts of the pieces, joined, are the text.

    A text that grows is cut where it was: what is left as the last piece is all that can change.

    :param opening, follows: of the first piece
    """
    found: list[MarkdownPiece] = []
    while (cut := _cut(text, opening)) is not None:
        found.append(MarkdownPiece(text[: cut.at], opening, follows))
        text, opening, follows = text[cut.at :], cut.opening, cut.follows
    return [*found, MarkdownPiece(text, opening, follows)]


@dataclass(frozen=True)
class _Cut:
    at: int
    opening: str = ""
    follows: bool = False


class _Reader:
    """Reads lines, and knows in what block it is."""

    def __init__(self, opening: str) -> None:
        first, *more = opening.split("\n")
        self.fence = _FENCE.fullmatch(first)
        """the line that opened the code in which it is"""
        self.first, self.second = first, more[0] if more else ""
        """lines of the block; of a list, its last item"""
        self.blank = not opening
        """whether the last line was empty"""

    @property
    def in_paragraph(self) -> bool:
        return self.fence is None and bool(_PLAIN.match(self.first))

    def cut(self, at: int, line: str, *, whole: bool) -> _Cut | None:
        """A cut before a line that comes next, if one may be there; ``whole``: the line has ended."""
        if at < PIECE_CHARS:
            return None
        if self.fence:
            first = line.lstrip(" ")[:1]
            closes = first == self.fence[2][0] or not (first or whole)
            return None if closes or self.fence[1] else _Cut(at, self.fence[0] + "\n", True)
        if self.blank and _PLAIN.match(line):
            return _Cut(at)
        if _ITEM.match(line) and _ITEM.match(self.first):
            return _Cut(at, "", True)
        if self.blank or not line:
            return None
        if line.startswith("|") and self.first.startswith("|"):
            return _Cut(at, f"{self.first}\n{self.second}\n")
        if at >= PARAGRAPH_CHARS and self.in_paragraph and _PLAIN.match(line):
            return _Cut(at, "", True)
        return None

    def read(self, line: str) -> None:
        mark = _FENCE.fullmatch(line)
        if self.fence:
            if mark and mark[2].startswith(self.fence[2]) and not mark[3].strip():
                self.first, self.blank = self.first if self.fence[1] else "", True
                self.fence = None
            return
        if self.blank and line and not line.startswith(" "):
            self.first, self.second = line, ""
        elif not self.second:
            self.second = line
        self.blank = not line.strip()
        self.fence = mark


def _cut(text: str, opening: str) -> _Cut | None:
    """The first place where the next piece begins."""
    reader, at = _Reader(opening), 0
    for line in text.split("\n") if len(text) > PIECE_CHARS else ():
        end = at + len(line)
        if (cut := reader.cut(at, line, whole=end < len(text))) is not None:
            return cut
        reader.read(line)
        if end > PARAGRAPH_CHARS and reader.in_paragraph:
            word = _WORD.search(line, max(0, PARAGRAPH_CHARS - at))
            if word is not None:
                return _Cut(at + word.end(), "", True)
        at = end + 1
    return None
