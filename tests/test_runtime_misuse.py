"""Runtime where it is held wrong: closed, used twice at once, given what it cannot take. Errors, and no signal."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triattn_local import Runtime
from triattn_local.answers.messages import for_templates
from triattn_local.config import EvictionConfig, RuntimeConfig, SamplingConfig
from triattn_local.engine.runtime import Event, Token
from triattn_local.errors import ModelNotFoundError, StateError, TriattnError, UsageError

EVICTION = EvictionConfig(budget_tokens=256, window=64)
CONFIG = RuntimeConfig(n_ctx=1024, n_threads=1)


# ---- settings


@pytest.mark.parametrize(
    "make",
    [
        lambda: RuntimeConfig(n_ctx="8k"),  # type: ignore[arg-type]
        lambda: RuntimeConfig(n_ctx=8192.0),  # type: ignore[arg-type]
        lambda: RuntimeConfig(n_ctx=True),
        lambda: RuntimeConfig(n_ctx=2**32 + 512),
        lambda: RuntimeConfig(n_batch=None),  # type: ignore[arg-type]
        lambda: RuntimeConfig(n_threads="two"),  # type: ignore[arg-type]
        lambda: RuntimeConfig(n_gpu_layers="all"),  # type: ignore[arg-type]
        lambda: RuntimeConfig(cache_type_k=["f16"]),  # type: ignore[arg-type]
        lambda: RuntimeConfig(flash_attn="on"),  # type: ignore[arg-type]
        lambda: RuntimeConfig(tensor_split="1,2"),  # type: ignore[arg-type]
        lambda: EvictionConfig(budget_tokens="many"),  # type: ignore[arg-type]
        lambda: EvictionConfig(window=None),  # type: ignore[arg-type]
        lambda: EvictionConfig(mode=7),  # type: ignore[arg-type]
        lambda: EvictionConfig(weight_v=float("nan")),
        lambda: EvictionConfig(weight_v="0.5"),  # type: ignore[arg-type]
        lambda: EvictionConfig(weight_r="no"),  # type: ignore[arg-type]
        lambda: EvictionConfig(seed=-1),
        lambda: SamplingConfig(temperature="hot"),  # type: ignore[arg-type]
        lambda: SamplingConfig(temperature=float("nan")),
        lambda: SamplingConfig(repeat_penalty=0),
        lambda: SamplingConfig(top_k=1.5),  # type: ignore[arg-type]
        lambda: SamplingConfig(seed="x"),  # type: ignore[arg-type]
    ],
)
def test_settings_of_a_wrong_type(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        make()


def test_whole_numbers_of_numpy_are_taken() -> None:
    config = RuntimeConfig(n_ctx=np.int64(512), tensor_split=(np.int32(1), 2))  # type: ignore[arg-type]
    assert type(config.n_ctx) is int
    assert config.tensor_split == (1, 2)
    assert SamplingConfig(temperature=np.float32(0.5)).temperature == 0.5  # type: ignore[arg-type]


# ---- messages


def test_text_parts_are_joined_as_llama_server_does() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    (turn,) = for_templates([{"role": "user", "content": parts}])
    assert turn["content"] == "one\ntwo"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("", {}),
        ("  ", {}),
        (None, {}),
        ("null", {}),
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ("{not json", {"text": "{not json"}),
        ("[1]", {"text": "[1]"}),
        ("[" * 100_000, {"text": "[" * 100_000}),
    ],
)
def test_arguments_of_a_call(given: object, read: object) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": given}}
    (turn,) = for_templates([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert turn["content"] == ""
    assert turn["tool_calls"][0]["function"]["arguments"] == read


@pytest.mark.parametrize(
    "messages",
    [
        "hello",
        5,
        None,
        {"role": "user", "content": "x"},
        ["hello"],
        [{"content": "x"}],
        [{"role": 5, "content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": b"x"}],
        [{"role": "user", "content": ["x"]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "assistant", "tool_calls": [{}]}],
        [{"role": "assistant", "tool_calls": "f"}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}],
    ],
)
def test_what_is_no_message(messages: Any) -> None:
    with pytest.raises(UsageError):
        for_templates(messages)


# ---- a real model


@pytest.fixture(scope="module")
def rt(smollm2_triattn: Path) -> Iterator[Runtime]:
    with Runtime.load(smollm2_triattn, CONFIG, EVICTION) as runtime:
        yield runtime


def text(events: Iterator[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        lambda rt: rt.generate("text"),
        lambda rt: rt.generate(b"text"),
        lambda rt: rt.generate(5),
        lambda rt: rt.generate([1.5]),
        lambda rt: rt.generate([10**9]),
        lambda rt: rt.generate([-1]),
        lambda rt: rt.generate([2**70]),
        lambda rt: rt.generate([rt.vocabulary.n_vocab]),
        lambda rt: rt.generate([1], max_tokens=1.5),
        lambda rt: rt.generate([1], max_tokens=-1),
        lambda rt: rt.generate([1], max_tokens="many"),
        lambda rt: rt.generate([1], stop=[5]),
        lambda rt: rt.generate([1], sampling={"temperature": 1}),
        lambda rt: rt.generate([1], cancel=True),
        lambda rt: rt.chat("hello"),
        lambda rt: rt.chat([{"role": "user", "content": "half a character: \ud83d"}]),
        lambda rt: rt.chat([{"role": "user", "content": "x"}], tools="f"),
        lambda rt: rt.chat([{"role": "user", "content": "x"}], tools=[{"f": {1, 2}}]),
        lambda rt: rt.tokenize("\udcff"),
        lambda rt: rt.tokenize(b"x"),
        lambda rt: rt.tokenize(None),
        lambda rt: rt.detokenize("text"),
        lambda rt: rt.detokenize([10**9]),
        lambda rt: rt.token_bytes(-1),
        lambda rt: rt.token_bytes(2**40),
        lambda rt: rt.token_bytes("a"),
        lambda rt: rt.vocabulary.ends_turn(10**9),
        lambda rt: rt.kept(10**6, 0),
        lambda rt: rt.kept(0, 10**6),
        lambda rt: rt.kept(-1, 0),
        lambda rt: rt.kept("a", 0),
        lambda rt: rt.restore(None),
        lambda rt: rt.restore(b"state"),
        lambda rt: rt.save(5),
        lambda rt: rt.save("a\0b"),
        lambda rt: rt.load_state(None),
        lambda rt: rt.load_state("a\0b"),
    ],
)
def test_what_a_call_cannot_take(call: Callable[[Any], Any], rt: Runtime) -> None:
    with pytest.raises(UsageError):
        list(call(rt))
    assert text(rt.generate(rt.tokenize("The sea is"), max_tokens=2))


@pytest.mark.slow
def test_a_single_stop_text_is_one(rt: Runtime) -> None:
    prompt = rt.tokenize("One two three four five six seven")
    whole = text(rt.generate(prompt, max_tokens=30))
    word = whole.split()[2]
    assert text(rt.generate(prompt, max_tokens=30, stop=word)) == whole[: whole.index(word)]


@pytest.mark.slow
def test_text_in_parts_is_the_text(rt: Runtime) -> None:
    plain = rt.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert rt.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]) == plain


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        (None,),
        (5,),
        ("a\0b",),
        ("{model}", {"n_ctx": 512}),
        ("{model}", None, {"budget_tokens": 256}),
        ("{model}", None, None, 5),
    ],
)
def test_what_cannot_be_loaded(args: tuple[Any, ...], smollm2_triattn: Path) -> None:
    given = [smollm2_triattn if value == "{model}" else value for value in args]
    with pytest.raises((UsageError, ModelNotFoundError)):
        Runtime.load(*given)


@pytest.mark.slow
def test_an_iterator_left_open_is_over_when_the_sequence_changes(rt: Runtime) -> None:
    prompt = rt.tokenize("The sea is wide and")
    alone = text(rt.generate(prompt, max_tokens=20))
    other = rt.tokenize("Python code: def main():")
    saved = rt.snapshot()
    for change in (
        lambda: list(rt.generate(other, max_tokens=2)),
        rt.reset,
        lambda: rt.restore(saved),
    ):
        events = rt.generate(prompt, max_tokens=20)
        next(events), next(events)
        rt.stats(), rt.snapshot(), rt.heads_holding(), rt.tokenize("a look changes nothing"), rt.tokens
        next(events)
        change()
        with pytest.raises(StateError, match="other work"):
            list(events)
    assert text(rt.generate(prompt, max_tokens=20)) == alone


@pytest.mark.slow
def test_threads_take_turns(rt: Runtime) -> None:
    prompts = [rt.tokenize(t) for t in ("The sea is wide and", "Python code: def main():", "Once upon a time")]
    alone = [text(rt.generate(prompt, max_tokens=24)) for prompt in prompts]
    got: dict[int, str] = {}

    def job(i: int) -> None:
        got[i] = text(rt.generate(prompts[i], max_tokens=24))

    threads = [threading.Thread(target=job, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        rt.stats()
        rt.tokenize("beside it")
    assert [got[i] for i in range(3)] == alone


_CLOSED = """
import gc, sys, threading, time
from triattn_local import Runtime
from triattn_local.config import EvictionConfig, RuntimeConfig
from triattn_local.errors import StateError
def load():
    return Runtime.load(sys.argv[1], RuntimeConfig(n_ctx=1024, n_threads=1), EvictionConfig(budget_tokens=256))
def raises(call):
    try:
        call()
    except StateError:
        return
    raise SystemExit("no error")
rt = load()
prompt, saved, vocabulary = rt.tokenize("The sea is wide and"), rt.snapshot(), rt.vocabulary
events = rt.generate(prompt, max_tokens=20)
next(events), next(events)
unstarted = rt.chat([{"role": "user", "content": "x"}])
busy, reasons = threading.Event(), []
rt.close()
rt.close()
for call in (
    lambda: next(events), lambda: next(unstarted), lambda: list(rt.generate(prompt)), lambda: rt.tokens,
    lambda: list(rt.chat([{"role": "user", "content": "x"}])), lambda: rt.apply_chat_template([]), rt.__enter__,
    lambda: rt.tokenize("x"), lambda: rt.detokenize(prompt), lambda: rt.token_bytes(1), rt.stats, rt.snapshot,
    rt.reset, rt.heads_holding, lambda: rt.kept(0, 0), lambda: rt.restore(saved), lambda: rt.save("x"),
    lambda: rt.load_state("x"), lambda: rt.context, lambda: rt.model,
    lambda: vocabulary.tokenize("x"), lambda: vocabulary.bos, lambda: vocabulary.chat_template,
    lambda: vocabulary.ends_turn(1), lambda: vocabulary.detokenize(prompt),
):
    raises(call)
rt = load()
def talk():
    try:
        for _ in rt.generate(prompt, ignore_eos=True):
            busy.set()
    except StateError as error:
        reasons.append(str(error))
def count():
    try:
        while True:
            rt.tokenize("beside it " * 1000)
    except StateError as error:
        reasons.append(str(error))
threads = [threading.Thread(target=talk), threading.Thread(target=count)]
[thread.start() for thread in threads]
busy.wait(60)
rt.close()
[thread.join(60) for thread in threads]
assert len(reasons) == 2, reasons
vocabulary = load().vocabulary
gc.collect()
assert vocabulary.tokenize("The sea is wide and") == prompt, "it keeps its model"
rt = load()
events = rt.generate(prompt)
next(events), next(events)  # left open when the interpreter ends
print("well")
"""


@pytest.mark.slow
def test_after_close_every_call_raises_and_nothing_dies(smollm2_triattn: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _CLOSED, str(smollm2_triattn)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "well"), done.stderr[-2000:]


@pytest.mark.slow
def test_many_abandoned_iterators(rt: Runtime) -> None:
    prompt = rt.tokenize("The sea is wide and")
    kept = []
    for _ in range(20):
        events = rt.generate(prompt, max_tokens=5, sampling=SamplingConfig(temperature=0.5))
        next(events), next(events)
        kept.append(events)
    del events
    kept.clear()
    gc.collect()
    assert text(rt.generate(prompt, max_tokens=5))


@pytest.mark.slow
def test_an_error_of_the_event_that_is_asked_goes_through(rt: Runtime) -> None:
    class Broken:
        def is_set(self) -> bool:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(rt.generate(rt.tokenize("x"), cancel=Broken()))
    with pytest.raises(TriattnError, match="empty"):
        list(rt.generate([]))
    assert text(rt.generate(rt.tokenize("The sea is"), max_tokens=2))
