"""Where a long answer is cut into pieces."""

from __future__ import annotations

import random

import pytest
from markdown_it import MarkdownIt

from triattn_local.tui.cutting import PARAGRAPH_CHARS, PIECE_CHARS, pieces

WORDS = " ".join(["some words"] * 12)
CODE = "```python\n" + "\n".join(f"x{i} = f({i})\n" for i in range(600)) + "\n```"
TABLE = "| a | b |\n|---|---|\n" + "\n".join(f"| cell {i} | {WORDS} |" for i in range(60))
KINDS = {
    "paragraphs": "\n\n".join(f"Paragraph {i}. {WORDS}" for i in range(60)),
    "list": "\n".join(f"- item {i} {WORDS}\n  - below {i}" for i in range(60)),
    "numbers": "\n\n".join(f"{i}. item {WORDS}\n\n    ```\n    code\n    ```" for i in range(10, 90)),
    "code": f"Here:\n\n{CODE}\n\n{WORDS}",
    "tildes": CODE.replace("```", "~~~~"),
    "table": f"{WORDS}\n\n{TABLE}\n\n{WORDS}",
    "lines": "\n".join(f"Line {i} of one paragraph" for i in range(600)),
    "one line": "words " * 3000,
    "mixed": "\n\n".join([f"# Title\n\n{WORDS}", CODE, TABLE, "- a\n- b", f"> {WORDS}", WORDS] * 3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_are_the_text_and_none_is_long(kind: str) -> None:
    found = pieces(KINDS[kind])
    assert "".join(piece.text for piece in found) == KINDS[kind]
    assert len(found) > 1
    most = PARAGRAPH_CHARS if kind in ("lines", "one line") else PIECE_CHARS
    assert max(len(piece.text) for piece in found) < most + 400
    assert not found[0].follows


@pytest.mark.parametrize("kind", KINDS)
def test_every_piece_is_read_as_what_it_is(kind: str) -> None:
    """The blocks of all pieces are those of the whole text, but for the ones that were cut."""

    def blocks(text: str) -> list[str]:
        return [t.type for t in MarkdownIt("gfm-like").parse(text) if t.level == 0 and t.nesting >= 0]

    found: list[str] = []
    for piece in pieces(KINDS[kind]):
        new = blocks(piece.opening + piece.text)
        assert new, "no piece is empty"
        goes_on = piece.follows or piece.opening.startswith("|")
        assert not goes_on or found[-1] == new[0]
        found += new[1:] if goes_on else new
    assert found == blocks(KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_grows_is_cut_where_the_whole_one_is(kind: str) -> None:
    rng = random.Random(1)
    text, done, tail = KINDS[kind], [], pieces("")[0]
    at = 0
    while at < len(text):
        n = rng.randint(1, 300)
        tail, *more = pieces(tail.text + text[at : at + n], tail.opening, tail.follows)
        for piece in more:
            done.append(tail)
            tail = piece
        at += n
    assert [*done, tail] == pieces(text)


def test_code_goes_on_as_code() -> None:
    first, second, *_ = pieces(CODE)
    assert (first.opening, first.follows) == ("", False)
    assert (second.opening, second.follows) == ("```python\n", True)
    assert pieces(CODE)[-1].text.endswith("```")
    assert pieces(CODE)[-1].text.strip() != "```", "no frame around nothing"


def test_a_table_has_its_head_in_each_piece() -> None:
    assert {piece.opening for piece in pieces(TABLE)} == {"", "| a | b |\n|---|---|\n"}


def test_what_is_short_stays_whole() -> None:
    assert [piece.text for piece in pieces("")] == [""]
    assert [piece.text for piece in pieces("- a\n- b\n\nc")] == ["- a\n- b\n\nc"]
