"""Thinking is told from the answer, however the pieces fall."""

from __future__ import annotations

import pytest

from triattn_local.thinking import KNOWN, THINK, ThinkingSplitter, marks_of

HARMONY = KNOWN[1]


def split(text: str, size: int, marks: tuple = (THINK,), prompt: str = "") -> dict[str, str]:
    splitter = ThinkingSplitter(marks, prompt)
    parts = [part for i in range(0, len(text), size) for part in splitter.push(text[i : i + size])]
    whole = {"thinking": "", "content": ""}
    for kind, piece in [*parts, *splitter.flush()]:
        whole[kind] += piece
    return whole


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "thinking", "content"),
    [
        ("<think>\nWell, 3 < 4.\n</think>\n\nYes.\n", "Well, 3 < 4.", "Yes.\n"),
        ("\n <think>a</think>b", "a", "b"),
        ("no thinking <think>at all</think>", "", "no thinking <think>at all</think>"),
        ("<thin ice>", "", "<thin ice>"),
        ("<think>never closed </thin", "never closed </thin", ""),
        ("<think></think>x", "", "x"),
        ("<think>one</think>two <think>three</think>", "one", "two <think>three</think>"),
        ("", "", ""),
        ("<", "", "<"),
    ],
)
def test_marks_in_the_answer(text: str, thinking: str, content: str, size: int) -> None:
    assert {k: v.rstrip(" ") for k, v in split(text, size).items()} == {"thinking": thinking, "content": content}


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_thinking_that_the_prompt_opens(size: int) -> None:
    found = split("hm\n</think>\nyes", size, prompt="<|im_start|>assistant\n<think>\n")
    assert found == {"thinking": "hm", "content": "yes"}


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("marks", KNOWN)
def test_every_known_mark(marks: tuple[str, str], size: int) -> None:
    found = split(f"{marks[0]}let me see{marks[1]}\nso", size, (*KNOWN,))
    assert found == {"thinking": "let me see", "content": "so"}


def test_the_template_says_which_marks_there_are() -> None:
    assert marks_of(None) == (THINK,)
    assert marks_of("{{ '<|channel|>analysis<|message|>' }}") == (HARMONY, THINK)
    assert marks_of("{% if '[THINK]' %}") == (KNOWN[2], THINK)


def test_nothing_is_held_back_longer_than_it_could_be_a_mark() -> None:
    splitter = ThinkingSplitter()
    assert splitter.push("<think>") == []
    assert splitter.kind == "thinking"
    assert splitter.push("Let me") == [("thinking", "Let me")]
    assert splitter.push(" see <") == [("thinking", " see")]
    assert splitter.push("b>") == [("thinking", " <b>")]
    splitter = ThinkingSplitter()
    assert splitter.push("A") == [("content", "A")]
    assert splitter.push(" <thi") == [("content", " <thi")]
