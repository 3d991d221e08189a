"""Thinking is told from the answer, however the pieces fall."""

from __future__ import annotations

import pytest

from triattn_local.answers.thinking import HARMONY, KNOWN, THINK, Marks, ThinkingSplitter, TokenSplitter, marks_of
from triattn_local.answers.tool_calls import ToolCall, ToolCallSplitter


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
@pytest.mark.parametrize("marks", [marks for marks in KNOWN if isinstance(marks, Marks)])
def test_every_known_mark(marks: Marks, size: int) -> None:
    before, after = marks.answer
    for text in (f"{before}so{after}", "so"):
        assert split(f"{marks.open}let me see{marks.close}\n{text}", size, (marks, THINK)) == {
            "thinking": "let me see",
            "content": "so",
        }
    assert marks in marks_of("{# " + " ".join(marks.known_by or (marks.open,)) + " #}")
    assert split(f"{before}so{after}" if before else "so", size, (marks, THINK)) == {"thinking": "", "content": "so"}
    found = split(f"hm{marks.close}{before}so{after}", size, (marks, THINK), prompt=f"assistant\n{marks.open}\n")
    assert found == {"thinking": "hm", "content": "so"}


FINAL = "<|channel|>final<|message|>Four."
NEXT = "<|end|><|start|>assistant"
PROMPT = "<|start|>user<|message|>2+2?<|end|><|start|>assistant"


@pytest.mark.parametrize("size", [1, 2, 5, 11, 1000])
@pytest.mark.parametrize("prompt", ["", PROMPT])
@pytest.mark.parametrize(
    ("text", "thinking", "content"),
    [
        (f"<|channel|>analysis<|message|>Hm.{NEXT}{FINAL}", "Hm.", "Four."),
        (FINAL, "", "Four."),
        ("<|channel|>commentary<|message|>Four.", "", "Four."),
        (f"<|channel|>commentary<|message|>Wait: {NEXT}{FINAL}", "", "Wait: Four."),
        (f"<|channel|>commentary<|channel|>analysis<|message|>Hm.{NEXT}{FINAL}", "Hm.", "Four."),
        (f"<|channel|>commentary to=assistant{FINAL}", "", "Four."),
        (f"<|channel|>analysis<|message|>a{NEXT}<|channel|>analysis<|message|>b{NEXT}{FINAL}", "ab", "Four."),
        (f"<|channel|>analysis<|message|>Hm.{FINAL}", "Hm.", "Four."),
        ("<|channel|>analysis<|message|>never ended", "never ended", ""),
        ("<|channel|>final <|constrain|>json<|message|>{}", "", "{}"),
        (f"<|start|>assistant{FINAL}<|return|>", "", "Four."),
        ("<|channel|>analysis to=python<|message|>2+2<|call|>", "2+2", ""),
        ("Four.", "", "Four."),
        ("4 < 5", "", "4 < 5"),
        ("<", "", "<"),
        ("", "", ""),
    ],
)
def test_messages_in_any_order(text: str, thinking: str, content: str, prompt: str, size: int) -> None:
    assert split(text, size, marks_of("<|channel|>"), prompt) == {"thinking": thinking, "content": content}


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_message_that_the_prompt_opens(size: int) -> None:
    marks = marks_of("<|channel|>")
    opened = f"{PROMPT}<|channel|>analysis<|message|>"
    assert split(f"Hm.{NEXT}{FINAL}", size, marks, opened) == {"thinking": "Hm.", "content": "Four."}
    assert split("Four.", size, marks, f"{PROMPT}{FINAL[:-5]}") == {"thinking": "", "content": "Four."}


@pytest.mark.parametrize(
    "head", [" to=functions.add<|channel|>commentary json", "<|channel|>commentary to=functions.add"]
)
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_message_for_a_function_is_a_call(head: str, size: int) -> None:
    text = f"<|channel|>analysis<|message|>Hm.{NEXT}{head}<|message|>" + '{"a": 2}<|call|>'
    splitter, calls = ThinkingSplitter(marks_of("<|channel|>"), PROMPT), ToolCallSplitter()
    parts = [part for i in range(0, len(text), size) for part in splitter.push(text[i : i + size])]
    found = [call for kind, part in [*parts, *splitter.flush()] if kind == "content" for call in calls.push(part)]
    assert found == [ToolCall("call_1", "add", {"a": 2})]


def test_muse() -> None:
    text = " to=self<|message|>Hm.<|eom|><|start|>assistant to=user<|message|>Four.<|eot|>"
    for size in (1, 3, 1000):
        found = split(text, size, marks_of("<|start|><|message|><|eom|>"), "<|start|>assistant")
        assert found == {"thinking": "Hm.", "content": "Four."}


def test_empty_thinking_and_an_answer_without() -> None:
    gemma = marks_of("<|channel>")
    assert split("<|channel>thought\n<channel|>Four.", 1, gemma) == {"thinking": "", "content": "Four."}
    assert split("Four.", 1, gemma, "<|channel>thought\n<channel|>") == {"thinking": "", "content": "Four."}


def test_the_template_says_which_marks_there_are() -> None:
    assert marks_of(None) == (THINK,)
    assert marks_of("{{ '<|channel|>analysis<|message|>' }}") == (HARMONY, THINK)
    assert marks_of("{% if '[THINK]' %}{% endif %}") == (Marks("[THINK]", "[/THINK]"), THINK)
    assert marks_of("{{ broken") == (THINK,)


WRITES = (
    "{% for m in messages %}{{ '[' ~ m.role ~ ']' }}"
    "{% if m.reasoning_content %}{{ '<mull>\\n' ~ m.reasoning_content ~ '\\n</mull>\\n\\n' }}{% endif %}"
    "{{ m.content }}{{ '<end>' }}{% endfor %}"
)


def test_marks_that_no_table_has_are_those_that_the_template_writes() -> None:
    assert marks_of(WRITES) == (Marks("<mull>", "</mull>"), THINK)
    assert split("<mull>\nHm.\n</mull>\n\nFour.", 3, marks_of(WRITES)) == {"thinking": "Hm.", "content": "Four."}
    # thinking that stands in the text without marks of its own
    bare = "{% for m in messages %}<turn>{{ m.reasoning_content }}<sep>{{ m.content }}<end>{% endfor %}"
    assert marks_of(bare.replace("<sep>", "")) == (THINK,)
    assert marks_of("{% for m in messages %}<turn>{{ m.content }}<end>{% endfor %}") == (THINK,)


def test_control_tokens_are_seen_where_they_are_marks() -> None:
    texts = {1: "<|channel|>", 2: "analysis", 3: "<|message|>", 4: "Hm.", 5: "<|end|>", 6: "<|start|>", 7: "assistant"}
    texts |= {8: "final", 9: "Four.", 10: "<|other|>", 11: "<|tool|>"}

    def token_bytes(token: int, *, special: bool = False) -> bytes:
        return b"" if texts[token].startswith("<|") and not special else texts[token].encode()

    splitter = TokenSplitter(marks_of("<|channel|>"), "", token_bytes, ["<|tool|>"])
    got = {"thinking": "", "content": ""}
    for token in (1, 2, 3, 4, 10, 5, 6, 7, 1, 8, 3, 9, 10, 11):
        for kind, text in splitter.push_token(token, token_bytes(token).decode()):
            got[kind] += text
    assert splitter.flush() == []
    assert got == {"thinking": "Hm.", "content": "Four.<|tool|>"}


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
