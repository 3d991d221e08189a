r"""Markdown as language models write it: with mathematics, and with line breaks that are meant.

CommonMark takes the backslash from \( and \[, half of \\, and joins lines. Here \( \), \[ \], $ $ and $$ $$ are
mathematics, which is shown as ``latex`` renders it; a single line break stays one; and a backslash is dropped only
before what Markdown itself would take for a mark. The text itself is never changed: what is copied is what was written.
"""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from .latex import render

BLANK = "\ue000"
"""stands for a space that is to be kept: Textual makes one of several"""
_PAIRS = (("\\[", "\\]"), ("$$", "$$"))
"""what displayed mathematics stands between"""
_ENVIRONMENT = re.compile(
    r"\\begin\{(equation|align|aligned|gather|multline|eqnarray|alignat|flalign|cases|[pbBvV]?matrix)\*?\}"
)
_MARKS = set("*_`#|~>-+.!<\"'")
"""characters before which a backslash is an escape, and no part of a formula"""
_MOST_LINES = 60
"""of one formula; what has no end is no formula"""
_BOX = re.compile(r"\A\[([ xX])\] ")
_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_TEXT = re.compile(r"\\[A-Za-z]+(\{[^{}]*\})?")
_FORMULA = re.compile(r"[\\^_=<>+*/|!()]|\A\d*[A-Za-zΑ-ω]\d*\Z|\A-?\d+([.,]\d+)?\Z")


def parser() -> MarkdownIt:
    """HTML is shown as it was written, and not swallowed."""
    md = MarkdownIt("gfm-like", {"html": False})
    # a formula is read before anything that takes its lines for a list, a heading, or a paragraph
    md.block.ruler.before("fence", "formula", _block, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    md.inline.ruler.before("escape", "formula", _inline)
    md.inline.ruler.at("escape", _escape)
    md.core.ruler.push("lines", _keep_lines)
    return md


def _block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A formula that begins a line: a paragraph with the lines it is shown in."""
    if state.is_code_block(start):
        return False
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    opening = _ENVIRONMENT.match(first)
    if opening is not None:
        begin, close = "", opening[0].replace("\\begin", "\\end", 1)
    else:
        pair = next((pair for pair in _PAIRS if first.startswith(pair[0])), None)
        if pair is None:
            return False
        begin, close = pair
    lines: list[str] = []
    for line in range(start, min(end, start + _MOST_LINES)):
        if line > start and state.isEmpty(line) and begin != "$$" and begin != "\\[":
            return False
        if line > start and state.sCount[line] < state.blkIndent:
            return False
        text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]]
        if line == start:
            text = text[len(begin) :]
        at = text.find(close)
        if at < 0:
            lines.append(text)
            continue
        if text[at + len(close) :].strip(" .,;:!?"):
            return False  # words go on behind it: then it is in a line of them
        if silent:
            return True
        after = text[at + len(close) :].strip()
        source = "\n".join([*lines, text[:at] + (close if opening else "")])
        state.line = line + 1
        token = state.push("paragraph_open", "p", 1)
        token.map = [start, state.line]
        token = state.push("inline", "", 0)
        token.content, token.map, token.children = source, [start, state.line], []
        token.meta = {"formula": render(source) + after}
        state.push("paragraph_close", "p", -1)
        return True
    return False


def _inline(state: StateInline, silent: bool) -> bool:
    """A formula among words."""
    if state.src[state.pos] not in "\\$":
        return False
    for begin, close in (("\\(", "\\)"), *_PAIRS, ("$", "$")):
        if not state.src.startswith(begin, state.pos, state.posMax):
            continue
        first = state.pos + len(begin)
        last = state.src.find(close, first, state.posMax)
        source = state.src[first:last]
        if last < 0 or not source.strip():
            continue
        if begin == "$" and not _is_formula(source, state.src[last + 1 : last + 2]):
            continue
        if not silent:
            state.push("text", "", 0).content = render(source, in_line=True)
        state.pos = last + len(close)
        return True
    return False


def _is_formula(source: str, after: str) -> bool:
    """Whether dollars are around a formula, and not before two prices or names."""
    if source[0].isspace() or source[-1].isspace() or after.isalnum() or "\n" in source:
        return False
    return bool(_FORMULA.search(source)) and not _WORDS.search(_TEXT.sub(" ", source))


def _escape(state: StateInline, silent: bool) -> bool:
    """A backslash before a mark of Markdown goes; before anything else it stays."""
    if state.src[state.pos] != "\\" or state.pos + 1 >= state.posMax:
        return False
    follows = state.src[state.pos + 1]
    if follows == "\n":
        if not silent:
            state.push("hardbreak", "br", 0)
        state.pos += 2
        return True
    kept = (
        follows
        if follows in _MARKS or (follows == "$" and not silent)
        else "\\" + follows
        if follows in "\\([{}])"
        else ""
    )
    if not kept:
        return False
    if not silent:
        token = state.push("text_special", "", 0)
        token.content = kept
        token.markup, token.info = "\\" + follows, "escape"
    state.pos += 2
    return True


def _keep_lines(state: StateCore) -> None:
    """Line breaks as they are, the lines of formulas, and boxes to tick."""
    for i, token in enumerate(state.tokens):
        if token.type != "inline":
            continue
        if "formula" in token.meta:
            token.children = [child for line in token.meta["formula"].split("\n") for child in _line(f"  {line}")][:-1]
            continue
        for child in token.children or []:
            if child.type == "softbreak":
                child.type = "hardbreak"
        in_item = i > 1 and state.tokens[i - 2].type == "list_item_open"
        if in_item and token.children and token.children[0].type == "text":
            first = token.children[0]
            first.content = _BOX.sub(lambda box: "☐ " if box[1] == " " else "☑ ", first.content)


def _line(line: str) -> list[Token]:
    return [Token("text", "", 0, content=line.replace(" ", BLANK)), Token("hardbreak", "br", 0)]
