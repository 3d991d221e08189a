"""Which part of a prompt is pinned, who says so, and that it is still there at the end of a long answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import random_stats
from tiny_models import write_tiny

from triattn_local.config import EvictionConfig, RuntimeConfig
from triattn_local.engine import native
from triattn_local.engine.pinning import PromptParts, pinned_ranges
from triattn_local.engine.runtime import Done, Runtime
from triattn_local.errors import UsageError
from triattn_local.settings import Settings

EVICTION = EvictionConfig(budget_tokens=200, window=32, n_keep=4, cold="off", pin=0.5)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("n_prompt", "n_system", "question", "ranges"),
    [
        (100, 40, 60, [(0, 100)]),
        (101, 40, 60, [(0, 40), (60, 101)]),
        (101, 40, None, [(0, 40)]),
        (900, 100, 850, [(0, 100)]),
        (900, 60, 870, [(0, 60), (870, 900)]),
        (900, 60, 850, [(0, 60)]),
        (900, 101, 850, [(850, 900)]),
        (900, 101, 700, []),
        (900, 0, 20, []),
        (900, 0, 800, [(800, 900)]),
        (0, 0, None, []),
    ],
)
def test_the_whole_prompt_or_what_it_is_about(
    n_prompt: int, n_system: int, question: int | None, ranges: list[tuple[int, int]]
) -> None:
    assert pinned_ranges(n_prompt, EVICTION, lambda: PromptParts(n_system, question)) == ranges


def test_some_of_the_budget_is_left_whatever_the_part() -> None:
    tight = dataclasses.replace(EVICTION, pin=0.9, window=100)
    assert pinned_ranges(95, tight) == [(0, 95)]
    assert pinned_ranges(96, tight) == []
    assert pinned_ranges(10, dataclasses.replace(EVICTION, pin=0.0), lambda: PromptParts(5)) == []
    assert pinned_ranges(10, dataclasses.replace(EVICTION, window=195, pin=0.9), lambda: PromptParts(5)) == []


def test_the_parts_are_not_asked_for_where_all_fits() -> None:
    def parts() -> PromptParts:
        raise AssertionError

    assert pinned_ranges(50, EVICTION, parts) == [(0, 50)]


# ------------------------------------------------------------------ settings


def test_keep_is_a_number_or_auto(tmp_path: Path) -> None:
    def eviction(flags: dict[str, object], environ: dict[str, str] | None = None) -> EvictionConfig:
        found = Settings.load(flags, environ=environ or {}, config_path=tmp_path / "none.toml").eviction()
        assert found is not None
        return found

    assert (eviction({"keep": "auto"}).n_keep, eviction({"keep": "auto"}).pin) == (4, 0.5)
    assert (eviction({"keep": "64"}).n_keep, eviction({"keep": "64"}).pin) == (64, 0.0)
    assert eviction({"keep": "auto"}, {"TRIATTN_PIN": "0.25"}).pin == 0.25
    assert eviction({}, {"TRIATTN_KEEP": "Auto"}).pin == 0.5
    assert eviction({}, {"TRIATTN_WEIGHT_Q": "0.5"}).weight_q == 0.5
    with pytest.raises(UsageError, match="'some' is not a whole number or auto"):
        eviction({"keep": "some"})
    for name, value in (("PIN", "0.95"), ("WEIGHT_Q", "-1")):
        with pytest.raises(UsageError) as caught:
            eviction({"keep": "auto"}, {f"TRIATTN_{name}": value})
        assert caught.value.where == f"environment TRIATTN_{name}"


# ------------------------------------------------------------------- runtime


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    model = write_tiny(tmp_path / "tiny.gguf", add=lambda writer: writer.add_chat_template(CHATML))
    random_stats(model, range(4), tmp_path / "tiny.stats.gguf")
    config = RuntimeConfig(n_ctx=2048, n_batch=64, n_ubatch=64)
    with Runtime.load(model, config, EVICTION, tmp_path / "tiny.stats.gguf") as runtime:
        yield runtime


def answer(runtime: Runtime, prompt: list[int], n: int, parts: PromptParts | None = None) -> Done:
    steps = runtime.generate(prompt, max_tokens=n, ignore_eos=True, parts=None if parts is None else lambda: parts)
    *_, done = steps
    assert isinstance(done, Done)
    return done


def is_whole(runtime: Runtime, first: int, end: int) -> bool:
    return all(
        set(runtime.kept(il, head)) >= set(range(first, end))
        for il in native.get_layers(runtime.context.handle)
        for head in range(2)
    )


def words(runtime: Runtime, tokens: list[int]) -> str:
    return runtime.detokenize(tokens, special=True).replace("▁", " ")


def pins(runtime: Runtime) -> list[tuple[int, int]]:
    return native.get_pins(runtime.context.handle)


def text(n: int, shift: int = 0) -> list[int]:
    return [3 + (i * i * 31 + i * 97 + shift) % 250 for i in range(n)]


def test_a_prompt_stays_through_a_long_answer(runtime: Runtime) -> None:
    answer(runtime, text(90), 400)
    assert runtime.stats().n_evictions > 5
    assert runtime.stats().n_pinned == 90
    assert is_whole(runtime, 0, 90)
    snapshot = runtime.snapshot()
    runtime.reset()
    assert runtime.stats().n_pinned == 0
    runtime.restore(snapshot)
    answer_on = list(runtime.generate(max_tokens=200, ignore_eos=True))
    assert answer_on
    assert is_whole(runtime, 0, 90)


def test_another_prompt_another_pin(runtime: Runtime) -> None:
    first = text(80)
    answer(runtime, first, 10)
    assert pins(runtime) == [(0, 80)]
    longer = [*runtime.tokens, *text(300, 7)]
    answer(runtime, longer, 300, PromptParts(30, len(longer) - 20))
    assert pins(runtime) == [(0, 30), (len(longer) - 20, len(longer))]
    assert is_whole(runtime, 0, 30)
    assert is_whole(runtime, len(longer) - 20, len(longer))
    assert not is_whole(runtime, 30, 80)
    answer(runtime, text(400, 3), 1)
    assert pins(runtime) == []


def test_the_parts_of_a_conversation(runtime: Runtime) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "0 or Z?"},
        {"role": "assistant", "content": "Z"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because."},
        {"role": "user", "content": "Since when?"},
    ]
    whole = runtime.apply_chat_template(messages)
    prompt = runtime.tokenize(whole, parse_special=True)
    parts = runtime.chat_parts(prompt, messages)
    assert words(runtime, prompt[: parts.n_system]).endswith("Be brief.<|im_end|>\n<|im_start|>user\n")
    assert parts.question is not None
    assert words(runtime, prompt[parts.question :]).startswith("Since when?")
    assert runtime.chat_parts(prompt, messages[:1]) == PromptParts()


def test_a_chat_pins_its_question(runtime: Runtime) -> None:
    messages = [{"role": "user", "content": "word " * 60}, {"role": "assistant", "content": "yes"}]
    messages.append({"role": "user", "content": "And now?"})
    list(runtime.chat(messages, max_tokens=200))
    [*_, (first, end)] = pins(runtime)
    assert words(runtime, runtime.tokens[first:end]).startswith("And now?")
    assert is_whole(runtime, first, end)
