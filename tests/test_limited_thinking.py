"""Thinking turned off, weighed and limited: on templates with a switch, with an effort, and that open it themselves.

A model that never learned to think does not end its thinking by itself: what ends it is what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from retouched import retouched
from served import Served

from triattn_local import Runtime
from triattn_local.answers.thinking import HARMONY, THINK, ThinkingLimit, TokenSplitter, takes_effort
from triattn_local.config import RuntimeConfig, SamplingConfig, ThinkingConfig
from triattn_local.engine.runtime import Text, Token
from triattn_local.errors import UsageError

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
SWITCH = TURNS + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
"""as Qwen3's: the model opens its thinking itself, unless an empty one stands there"""
OPENS = TURNS + "<think>\n"
"""as DeepSeek R1's and QwQ's: no switch"""
OPENS_AND_KEEPS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""the same, in as many words as llama-server needs to know its marks"""
OWN_MARKS = OPENS_AND_KEEPS.replace("<think>", "<jupyter_start>").replace("</think>", "<jupyter_output>")
"""marks that are one token of the model, as those of reasoning models: llama-server counts by these"""
SWITCHED = TURNS + "{{ '<think>' if thinking else '</think>' }}"
"""as DeepSeek V3.1's: off unless it is turned on"""
EFFORT = "Reasoning: {{ reasoning_effort|default('medium') }}\n" + TURNS + "{# <|channel|> #}"
"""as gpt-oss's"""
ASKED = [{"role": "user", "content": "Tell me a long story about the sea."}]


Loaded = Callable[[str], Runtime]


@pytest.fixture
def loaded(smollm2: Path, tmp_path: Path) -> Iterator[Loaded]:
    """The model with another template."""
    open_ones: list[Runtime] = []

    def load(template: str) -> Runtime:
        path = retouched(smollm2, tmp_path / "m.gguf", {"tokenizer.chat_template": template})
        open_ones.append(Runtime.load(path, RuntimeConfig(n_ctx=1024, n_batch=256, n_threads=1)))
        return open_ones[-1]

    yield load
    for rt in open_ones:
        rt.close()


def answer(rt: Runtime, thinking: ThinkingConfig | None, n: int = 60) -> dict[str, str]:
    found = {"thinking": "", "content": ""}
    for event in rt.chat(ASKED, thinking=thinking, max_tokens=n, sampling=SamplingConfig()):
        if isinstance(event, Text):
            found[event.kind] += event.text
    return found


def n_thought(rt: Runtime, thinking: ThinkingConfig, n: int = 80) -> tuple[int, int]:
    """Tokens of thinking and of the answer, as the chat counts them."""
    prompt = rt.apply_chat_template(ASKED, thinking=thinking)
    splitter = TokenSplitter((THINK,), prompt, rt.token_bytes)
    limit = None if thinking.limit is None else ThinkingLimit(splitter, thinking.limit, rt.tokenize)
    for event in rt.generate(rt.tokenize(prompt, parse_special=True), max_tokens=n, interject=limit):
        if isinstance(event, Token):
            splitter.push_token(event.id, event.text)
    return splitter.n_tokens["thinking"], splitter.n_tokens["content"]


def test_a_template_that_opens_thinking_itself(loaded: Loaded) -> None:
    rt = loaded(OPENS)
    n_mark = len(rt.tokenize("\n</think>\n\n", add_special=False))
    assert n_thought(rt, ThinkingConfig()) == (80, 0)
    n_thinking, n_answer = n_thought(rt, ThinkingConfig(budget_tokens=20))
    # the end mark comes on top, and counts as thinking until it is whole
    assert 20 <= n_thinking < 20 + n_mark
    assert n_thinking + n_answer == 80
    for off in (ThinkingConfig(enabled=False), ThinkingConfig(budget_tokens=0), ThinkingConfig(effort="none")):
        assert rt.apply_chat_template(ASKED, thinking=off).endswith("<think>\n\n</think>\n\n")
        assert n_thought(rt, off) == (0, 80)
    # nobody is to answer here: there is nothing to close
    assert "</think>" not in rt.apply_chat_template(ASKED, thinking=off, add_generation_prompt=False)


def test_a_template_with_a_switch(loaded: Loaded) -> None:
    rt = loaded(SWITCH)
    nothing_said = rt.apply_chat_template(ASKED)
    assert nothing_said == rt.apply_chat_template(ASKED, thinking=ThinkingConfig())
    assert "<think>" not in nothing_said
    assert rt.apply_chat_template(ASKED, thinking=ThinkingConfig(enabled=True)) == nothing_said
    off = rt.apply_chat_template(ASKED, thinking=ThinkingConfig(enabled=False))
    assert off == nothing_said + "<think>\n\n</think>\n\n"
    assert n_thought(rt, ThinkingConfig(enabled=False)) == (0, 80)


def test_a_template_whose_switch_has_another_name(loaded: Loaded) -> None:
    rt = loaded(SWITCHED)
    assert rt.apply_chat_template(ASKED).endswith("</think>")
    assert rt.apply_chat_template(ASKED, thinking=ThinkingConfig(enabled=False)).endswith("\n</think>")
    assert rt.apply_chat_template(ASKED, thinking=ThinkingConfig(enabled=True)).endswith("<think>")
    assert n_thought(rt, ThinkingConfig(enabled=True, budget_tokens=9))[0] >= 9
    assert answer(rt, ThinkingConfig(enabled=True, budget_tokens=9))["content"]


def test_a_template_with_an_effort(loaded: Loaded) -> None:
    assert takes_effort(EFFORT)
    assert not takes_effort(SWITCH)
    rt = loaded(EFFORT)
    assert rt.apply_chat_template(ASKED).startswith("Reasoning: medium\n")
    assert rt.apply_chat_template(ASKED, thinking=ThinkingConfig(effort="high")).startswith("Reasoning: high\n")
    # turned off is none of its words
    assert rt.apply_chat_template(ASKED, thinking=ThinkingConfig(enabled=False)).startswith("Reasoning: medium\n")


def test_the_answer_tells_the_two_apart(loaded: Loaded) -> None:
    rt = loaded(OPENS)
    assert answer(rt, None)["content"] == ""
    limited = answer(rt, ThinkingConfig(budget_tokens=12))
    assert 6 < len(rt.tokenize(limited["thinking"], add_special=False)) <= 12
    assert limited["content"]
    assert answer(rt, ThinkingConfig(enabled=False))["thinking"] == ""


def played(text: str, splitter: TokenSplitter, limit: ThinkingLimit) -> str:
    """A model that wants to say `text`, a character a token, and goes on where it was once tokens were put."""
    said, rest = "", list(text)
    while rest:
        for put in limit() or ():
            said += chr(put)
            splitter.push_token(put, chr(put))
        if rest:
            said += rest[0]
            splitter.push_token(ord(rest[0]), rest.pop(0))
    return said


def letters(prompt: str, marks: tuple, n: int) -> tuple[TokenSplitter, ThinkingLimit]:
    splitter = TokenSplitter(marks, prompt, lambda token, special=False: chr(token).encode())
    return splitter, ThinkingLimit(splitter, n, lambda text, **_: [ord(letter) for letter in text])


def test_thinking_that_ends_by_itself_is_not_ended_again() -> None:
    assert played("<think>abc</think>Yes.", *letters("", (THINK,), 20)) == "<think>abc</think>Yes."
    # the limit is reached amid the model's own mark
    n = len("abc</thi")
    assert played("abc</think>Yes.", *letters("<think>", (THINK,), n)) == "abc</think>Yes."


def test_a_model_that_thinks_in_messages_is_sent_on() -> None:
    head = "<|channel|>analysis<|message|>"
    splitter, limit = letters("<|start|>assistant", (HARMONY, THINK), 4)
    end = "<|end|><|start|>assistant"
    # it goes on thinking, in another message, and is told to answer
    said = played(f"{head}abcd", splitter, limit) + played(f"{head}efgh", splitter, limit)
    assert said.startswith((f"{head}abc{end}", f"{head}abcd{end}")), said
    assert f"{end}<|channel|>final<|message|>" in said
    assert said.count(end) == 2


@pytest.mark.parametrize(
    "values",
    [
        {"enabled": "no"},
        {"effort": "very"},
        {"budget_tokens": -1},
        {"budget_tokens": 1.5},
        {"enabled": True, "budget_tokens": 0},
        {"enabled": True, "effort": "none"},
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ThinkingConfig(**values)  # type: ignore[arg-type]


def test_tokens_are_put_in_the_place_of_drawn_ones(loaded: Loaded) -> None:
    rt = loaded(TURNS)
    prompt = rt.tokenize("Once")
    plain = [event.id for event in rt.generate(prompt, max_tokens=6) if isinstance(event, Token)]
    put = rt.tokenize("Hi", add_special=False)
    at = iter([(), (), put, *[()] * 9])
    mixed = [
        event.id for event in rt.generate(prompt, max_tokens=6, interject=lambda: next(at)) if isinstance(event, Token)
    ]
    assert mixed[:2] == plain[:2]
    assert mixed[2 : 2 + len(put)] == put
    assert len(mixed) == 6
    # what was put is in the sequence: read as a prompt, it goes on the same
    rt.reset()
    again = [*prompt, *mixed[: 2 + len(put)]]
    rest = [event.id for event in rt.generate(again, max_tokens=4 - len(put)) if isinstance(event, Token)]
    assert rest == mixed[2 + len(put) :]


@pytest.mark.parametrize("flags", [("--no-think",), ("--think-budget", "10"), ()])
def test_the_server_ends_thinking(smollm2: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    model = retouched(smollm2, tmp_path / "m.gguf", {"tokenizer.chat_template": OWN_MARKS})
    args = ("--ctx", "512", "--no-evict", "--threads", "1", *flags)
    with Served(model, tmp_path / "log", *args) as served:

        def counted(**fields: object) -> tuple[int, int]:
            """Tokens of thinking and of the answer."""
            message = served.chat(ASKED, 60, ignore_eos=True, **fields)["choices"][0]["message"]
            texts = message.get("reasoning_content") or "", message["content"]
            thinking, content = (len(served.post("/tokenize", {"content": text})["tokens"]) for text in texts)
            return thinking, content

        thinking, content = counted()
        if "--no-think" in flags:
            assert thinking <= 1
            assert content > 40
        elif flags:
            assert 8 <= thinking <= 12
            assert content > 30
        else:
            assert thinking > 40
            assert content == 0
            thinking, content = counted(thinking_budget_tokens=10)
            assert 8 <= thinking <= 12
            assert content > 30


def test_the_server_turns_the_switch_and_sets_the_effort(smollm2: Path, tmp_path: Path) -> None:
    said = "Effort {{ reasoning_effort|default('unsaid') }}, {{ enable_thinking }}.\n"
    template = said + SWITCH + "{% if reasoning_content %}<think>{{ reasoning_content }}</think>{% endif %}"
    model = retouched(smollm2, tmp_path / "m.gguf", {"tokenizer.chat_template": template})
    args = ("--ctx", "512", "--no-evict", "--threads", "1", "--no-think", "--effort", "low")
    with Served(model, tmp_path / "log", *args) as served:

        def prompt(**fields: object) -> str:
            return str(served.post("/apply-template", {"messages": ASKED, **fields})["prompt"])

        assert prompt().startswith("Effort low, False.")
        assert prompt().endswith("<think>\n\n</think>\n\n")
        # a request has the last word: OpenAI's field, and llama-server's
        assert prompt(reasoning_effort="high").startswith("Effort high, False.")
        on = prompt(chat_template_kwargs={"enable_thinking": True})
        assert on.startswith("Effort low, True.")
        assert "</think>" not in on
