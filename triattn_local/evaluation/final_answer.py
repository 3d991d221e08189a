"""Which part of a solution is its answer, and the numbers in it as mathematics reads them.

A library compares answers; before, it is spared what it misreads: 1e6 is a number and no product with e, 1 000 000 is
one and not three, 2 1/2 is two and a half, and of several boxes the last one holds. Knows nothing of what is right.
"""

from __future__ import annotations

import re
import unicodedata

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(\d[\d.,]*))")
_BETWEEN = re.compile(r"(?:[\s,;$&]|\\\(|\\\)|\\[,; ]|\\q?quad|and|or|\\text\{\s*(?:and|or)\s*\})*")
_SAYS = re.compile(r"\banswer\b(?:\s+(?:is|are|to|of)\b|\s*[:=])", re.IGNORECASE)

_SEPARATOR = r"(?:\{,\}|\\[,!:; ]|[,'’_\u00a0\u2009\u202f])"
_GROUPED = re.compile(rf"(?<![\d.,])\d{{1,3}}(?:{_SEPARATOR}\d{{3}})+(?![\d]|{_SEPARATOR}\d)")
_BY_SPACES = re.compile(r"[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_BY_POINTS = re.compile(r"[+-]?\d{1,3}(?:\.\d{3}){2,}")
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,3})(?![\w.]*\w)")
_MIXED = re.compile(r"(?<![\w.])(\d+) +(\d+)/(\d+)(?![\w.])")

_DEEP = re.compile(r"\^\s*(?:\{[^{}]*[\^!]|\{?\s*\d{5,}|\w\s*\^)|\d{5,}\s*!|!\s*!|\)\s*!")


def final_answer(text: str) -> str:
    """What a solution says at its end: its last box, or its last words about an answer, or all of it.

    Boxes with nothing but a comma or "and" between them are one answer of several parts.
    """
    boxes = _boxes(text)
    if boxes:
        first = len(boxes) - 1
        while first and _BETWEEN.fullmatch(text[boxes[first - 1][1] : boxes[first][0]]):
            first -= 1
        return ", ".join(content for _, _, content in boxes[first:])
    said = list(_SAYS.finditer(text))
    return text[said[-1].start() :] if said else text


def has_box(text: str) -> bool:
    return bool(_boxes(text))


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """(begin, end, content) of each box that is closed and not empty."""
    found = []
    for match in _BOX.finditer(text):
        if match[1] is not None:
            found.append((match.start(), match.end(), match[1].rstrip(".,")))
            continue
        depth, at = 1, match.end()
        while depth and at < len(text):
            if text[at] == "\\":
                at += 1
            elif text[at] in "{}":
                depth += 1 if text[at] == "{" else -1
            at += 1
        content = text[match.end() : at - 1].strip()
        if depth == 0 and content:
            found.append((match.start(), at, content))
    return found


def plain_numbers(text: str, *, alone: bool) -> str:
    """The same with its numbers in digits: no separators, no powers of ten behind an ``e``.

    Parameters
    ----------
    alone : bool
        The text is an answer and nothing else: then spaces and points too may stand between thousands.
    """
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    text = text.replace("\u2212", "-")
    if alone:
        bare = text.strip().strip("$").strip()
        if _BY_SPACES.fullmatch(bare) or _BY_POINTS.fullmatch(bare):
            text = bare.replace(" ", "") if " " in bare else bare.replace(".", "")
        elif re.fullmatch(r"[+-]?\d+\.", bare):
            text = bare[:-1]
    text = _GROUPED.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    return _SCIENTIFIC.sub(lambda m: _in_digits(m[1], int(m[2])), text)


def _in_digits(mantissa: str, exponent: int) -> str:
    whole, _, part = mantissa.partition(".")
    digits, point = whole + part, len(whole) + exponent
    if point <= 0:
        return f"0.{'0' * -point}{digits}"
    digits = digits.ljust(point, "0")
    return (digits[:point].lstrip("0") or "0") + (f".{digits[point:]}" if digits[point:] else "")


def is_endless(text: str) -> bool:
    """Whether to reckon it may take for ever: a tower of powers, the factorial of a great number."""
    return len(text) > 2000 or _DEEP.search(text) is not None


def same_text(one: str, other: str) -> bool:
    """Whether two answers are the same but for spaces, capitals and dollars."""
    bare = [
        re.sub(r"[\s$]|\\[,!;: ]|\\text|\\left|\\right|[{}]", "", text).rstrip(".").lower() for text in (one, other)
    ]
    return bare[0] == bare[1] != ""
