"""Where a long Markdown text is cut, so that each piece stands for itself: what is laid out at once stays small.

A piece ends where a paragraph does; and if none ends for long, between the lines of a block of code, before an item of
a list or a row of a table, or amid a paragraph.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

PIECE_CHARS = 2000
PARAGRAPH_CHARS = 4000
"""of a paragraph at most"""

_FENCE = re.compile(r"( {0,3})(`{3,}|~{3,})(.*)")
_ITEM = re.compile(r"(?:[-*+]|\d{1,9}[.)])[ \t]+\S")
_WORD = re.compile(r" (?=[^\W\d_])")
_PLAIN = re.compile(r"[^\s\-*+>|\d#`~<]")


@dataclass(frozen=True)
class Piece:
    """Some paragraphs, or a part of one block."""

    text: str
    opening: str = ""
    """what has to stand before the text, so that it is read as what it is: how a block of code or a table begins"""
    follows: bool = False
    """it goes on with the block that the piece before it ends with"""


def pieces(text: str, opening: str = "", follows: bool = False) -> list[Piece]:
    """Cut a text; the texts of the pieces, joined, are the text.

    A text that grows is cut where it was: what is left as the last piece is all that can change.

    :param opening, follows: of the first piece
    """
    found: list[Piece] = []
    while (cut := _cut(text, opening)) is not None:
        at, next_opening, next_follows = cut
        found.append(Piece(text[:at], opening, follows))
        text, opening, follows = text[at:], next_opening, next_follows
    return [*found, Piece(text, opening, follows)]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    at = 0
    for line in text.split("\n"):
        yield at, line
        at += len(line) + 1


def _cut(text: str, opening: str) -> tuple[int, str, bool] | None:
    """The first place where the next piece begins, what opens it, and whether it goes on with the same block."""
    if len(text) <= PIECE_CHARS:
        return None
    head = opening.split("\n")
    fence = head[0] if _FENCE.fullmatch(head[0]) else ""
    blank, block, second = not opening, head[0], head[1] if len(head) > 1 else ""
    for at, line in _lines(text):
        mark = _FENCE.fullmatch(line)
        if fence:
            opened = _FENCE.fullmatch(fence)
            assert opened is not None
            first = line.lstrip(" ")[:1] or ("\n" if at + len(line) < len(text) else "")
            if at >= PIECE_CHARS and first not in ("", opened[2][0]) and not opened[1] and at > 0:
                return at, fence + "\n", True
            if mark and mark[2][0] == opened[2][0] and len(mark[2]) >= len(opened[2]) and not mark[3].strip():
                fence, blank, block = "", True, block if opened[1] else ""
            continue
        if at >= PIECE_CHARS and line:
            if blank and _PLAIN.match(line):
                return at, "", False
            if _ITEM.match(line) and _ITEM.match(block):
                return at, "", True
            if line.startswith("|") and block.startswith("|") and not blank:
                return at, f"{block}\n{second}\n", False
        if at >= PARAGRAPH_CHARS and line and not blank and _PLAIN.match(block) and _PLAIN.match(line):
            return at, "", True
        if blank and line and not line.startswith(" "):
            block, second = line, ""
        elif not second:
            second = line
        if at + len(line) > PARAGRAPH_CHARS and _PLAIN.match(block):
            word = _WORD.search(line, max(0, PARAGRAPH_CHARS - at))
            if word is not None:
                return at + word.end(), "", True
        blank = not line.strip()
        if mark:
            fence = line
    return None
