"""Turns through a cache that forgets: what is read again is counted, and is never more than the last turn."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from scripted_runtime import ScriptedRuntime
from talk import Talk

from triattn_local.config import EvictionConfig, RuntimeConfig, SamplingConfig
from triattn_local.engine.runtime import Prefill, Runtime
from triattn_local.errors import UsageError
from triattn_local.sessions.conversation import Answered, Piece, TooLongError

EVICTION = EvictionConfig(budget_tokens=64, window=16, n_keep=4)
LONG = " ".join(f"word{i}" for i in range(150))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    def set_script(answers: Sequence[str]) -> None:
        monkeypatch.setattr(ScriptedRuntime, "script", answers)

    return set_script  # type: ignore[return-value]


def runtime(n_ctx: int = 8192, eviction: EvictionConfig | None = EVICTION, name: str = "m") -> ScriptedRuntime:
    return ScriptedRuntime(Path(name), RuntimeConfig(n_ctx=n_ctx, n_batch=32, n_ubatch=32), eviction)


def n_words(text: str) -> int:
    return len(text.split())


def test_the_answer_comes_in_pieces_with_its_thinking_apart(script) -> None:
    script([f"<think>\n{LONG}\n</think>\n\nThe sea is wide."])
    talk = Talk(runtime())
    answer = talk.ask("How is the sea?")
    assert answer.content == "The sea is wide."
    assert answer.thinking == LONG
    assert talk.answered.reason == "stop"
    marks_and_lines = 2 + 4
    assert talk.answered.n_thinking + talk.answered.n_content == 150 + 4 + marks_and_lines
    assert 4 <= talk.answered.n_content <= 4 + 3


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "<|channel|>",
            "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>It is wide.",
        ),
        ("<|channel|>", "<|channel|>commentary<|channel|>analysis<|message|>{}<|channel|>final<|message|>It is wide."),
        ("<|channel>", "<|channel>thought\n{}<channel|>It is wide."),
        ("<|START_THINKING|> <|START_RESPONSE|>", "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>It is wide."),
        ("\u25c1think\u25b7", "\u25c1think\u25b7{}\u25c1/think\u25b7It is wide."),
    ],
)
def test_thinking_leaves_the_cache_whatever_its_marks(script, template: str, text: str) -> None:
    script([text.format(LONG)])
    rt = runtime()
    rt.vocabulary.chat_template = "{# " + template + " #}"
    talk = Talk(rt)
    answer = talk.ask("How is the sea?")
    assert (answer.thinking, answer.content) == (LONG, "It is wide.")
    assert "word1" not in rt.detokenize(rt.tokens, special=True)


def test_thinking_is_dropped_by_the_snapshot_and_only_the_answer_is_read_again(script) -> None:
    script([f"<think>{LONG}</think>The sea is wide."])
    rt = runtime()
    talk = Talk(rt)
    talk.ask("How is the sea?")
    assert talk.settled is not None
    assert rt.stats().n_evictions > 0
    assert 0 < talk.settled.n_read < 20
    assert talk.settled.n_dropped > 140
    assert "word1" not in rt.detokenize(rt.tokens)
    assert rt.n_restored == 1
    talk.ask("And the sky?")
    assert talk.ready.origin == "cache"
    assert talk.ready.n_again == 0
    assert talk.n_read < 12, "the new question, and nothing else"
    assert "word1" not in rt.prompts[-1]


def test_without_thinking_the_cache_is_left_as_it_is(script) -> None:
    script([LONG])
    rt = runtime()
    talk = Talk(rt)
    talk.ask("Talk")
    assert talk.settled is not None
    assert talk.settled.n_read < 8, "what stands around the next message"
    assert rt.n_restored == 0
    talk.ask("More")
    assert (talk.ready.origin, talk.ready.n_again) == ("cache", 0)


def test_answering_anew_and_editing_use_the_snapshot(script) -> None:
    script([LONG])
    rt = runtime()
    talk = Talk(rt)
    for question in ("one", "two", "three"):
        talk.ask(question)
    talk.path.pop()
    talk.answer()
    assert talk.ready.origin == "memory"
    assert talk.ready.n_again == 0
    assert talk.n_read == 1, "one token, for its logits"
    talk.path = talk.path[:-2]
    talk.ask("other three")
    assert talk.ready.origin == "memory"
    assert talk.ready.n_again == 0
    assert talk.n_read < 12
    talk.path = talk.path[:1]
    talk.answer()
    assert talk.ready.n_again == 0, "the first turn's snapshot is still there"


def test_what_no_snapshot_covers_is_read_again_and_told(script) -> None:
    script([LONG])
    rt = runtime()
    talk = Talk(rt, memory_bytes=0)
    talk.ask("one")
    talk.ask("two")
    talk.path.pop()
    talk.answer()
    assert talk.ready.origin == "nothing"
    assert talk.ready.n_again > 150
    assert talk.ready.why == "no snapshot of this point is kept"
    assert talk.n_read == talk.answered.n_prompt


def test_another_process_resumes_from_the_disk(script, tmp_path: Path) -> None:
    script([LONG])
    talk = Talk(runtime(), tmp_path)
    talk.ask("one")
    talk.ask("two")
    talk.snapshots.close()
    later = Talk(runtime(), tmp_path)
    later.path, later.n_messages = talk.path, talk.n_messages
    later.ask("three")
    assert later.ready.origin == "disk"
    assert later.ready.n_again == 0
    assert later.n_read < 12


def test_snapshots_of_another_model_are_not_used_and_it_is_said(script, tmp_path: Path) -> None:
    script([LONG])
    talk = Talk(runtime(), tmp_path)
    talk.ask("one")
    talk.snapshots.close()
    later = Talk(runtime(name="other"), tmp_path)
    later.path, later.n_messages = talk.path, talk.n_messages
    later.ask("two")
    assert later.ready.origin == "nothing"
    assert later.ready.n_again > 150
    assert "another model" in str(later.ready.why)


def test_cancel_keeps_what_there_is_and_the_next_turn_goes_on(script) -> None:
    script([LONG])
    rt = runtime()
    talk = Talk(rt)
    talk.path.append(talk.message("user", "one"))
    cancel = threading.Event()
    text, reason = "", ""
    for event in talk.conversation.respond("s", "", talk.path, cancel=cancel):
        if isinstance(event, Piece):
            text += event.text
            if event.n_tokens == 100:
                cancel.set()
        elif isinstance(event, Answered):
            reason = event.reason
    assert reason == "cancelled"
    assert n_words(text) == 100
    talk.system = ""
    talk.path.append(talk.message("assistant", text))
    talk.settle()
    assert talk.settled is not None
    talk.ask("two")
    assert talk.ready.n_again == 0


def test_cancel_between_batches_of_the_prompt(script) -> None:
    script([LONG])
    rt = runtime()
    talk = Talk(rt)
    talk.path.append(talk.message("user", LONG))
    cancel = threading.Event()
    events = []
    for event in talk.conversation.respond("s", "", talk.path, cancel=cancel):
        events.append(event)
        if isinstance(event, Prefill) and event.n_done >= 64:
            cancel.set()
    assert isinstance(events[-1], Answered)
    assert events[-1].reason == "cancelled"
    assert rt.n_read == 64


def test_a_settling_that_is_stopped_costs_nothing_but_time(script) -> None:
    script([f"<think>{LONG}</think>{LONG}"])
    rt = runtime()
    talk = Talk(rt)
    talk.path.append(talk.message("user", "one"))
    list(talk.conversation.respond("s", talk.system, talk.path))
    talk.path.append(talk.message("assistant", LONG, LONG))
    cancel = threading.Event()
    cancel.set()
    talk.settle(cancel)
    assert talk.settled is None
    talk.ask("two")
    assert talk.n_read < n_words(LONG) + 20, "the answer, and the new question"


def test_full_attention_rewinds_and_takes_no_snapshots_in_memory(script) -> None:
    script([f"<think>{LONG}</think>The sea is wide."])
    rt = runtime(eviction=None)
    talk = Talk(rt)
    talk.ask("one")
    talk.ask("two")
    talk.path.pop()
    talk.answer()
    assert (talk.ready.origin, talk.ready.n_again, talk.n_read) == ("cache", 0, 1)
    assert rt.n_restored == 0
    assert talk.snapshots.memory_bytes == 0


def test_a_template_without_system_role_gets_it_before_the_first_message(script) -> None:
    script(["Yes."])

    class Strict(ScriptedRuntime):
        def apply_chat_template(self, messages, **options):  # type: ignore[no-untyped-def]
            if messages[0]["role"] == "system":
                raise UsageError("System role not supported")
            return super().apply_chat_template(messages, **options)

    rt = Strict(Path("m"), RuntimeConfig(), EVICTION)
    Talk(rt).ask("Is it?")
    assert "Be brief.\n\nIs it?" in rt.prompts[-1]


def test_a_conversation_beyond_the_context_is_refused(script) -> None:
    script(["Yes."])
    talk = Talk(runtime(n_ctx=100))
    with pytest.raises(TooLongError, match="exceeds the context of 100; a context of 256 has room for it"):
        talk.ask(LONG)
    assert talk.conversation.rt.n_read == 0


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused_unless_less_is_wanted(script) -> None:
    script(["Yes."])
    talk = Talk(runtime(n_ctx=160))
    with pytest.raises(TooLongError, match="leaves no room for an answer in the context of 160"):
        talk.ask(" ".join(["so"] * 140))
    talk.answer(max_tokens=1)


def test_the_oldest_turns_to_leave_out(script) -> None:
    script(["Yes."])
    talk = Talk(runtime(n_ctx=200))
    for word in "abcde":
        talk.ask(" ".join([word] * 20))
    path = [*talk.path, talk.message("user", " ".join(["f"] * 20))]
    oldest, n_tokens = talk.conversation.oldest_to_leave_out(talk.system, path)
    assert oldest == path[: len(oldest)]
    assert len(oldest) % 2 == 0, "whole turns"
    assert n_tokens == len(talk.conversation.prompt(talk.system, path[len(oldest) :])) <= 150
    assert len(talk.conversation.prompt(talk.system, path[len(oldest) - 2 :])) > 150, "and no more than need be"
    alone, n_tokens = talk.conversation.oldest_to_leave_out(talk.system, [*path[:-1], talk.message("user", LONG * 2)])
    assert len(alone) == len(path) - 1
    assert n_tokens > 200


@pytest.mark.slow
def test_twelve_turns_beyond_6000_tokens_on_a_real_model(smollm2_triattn: Path, tmp_path: Path) -> None:
    """Budget 512: it keeps answering, and neither thinking-drop nor answering anew reads more than the last turn."""
    from texts import prose

    config = RuntimeConfig(n_ctx=8192, n_batch=256, n_ubatch=256)
    sampling = SamplingConfig(temperature=0.7, repeat_penalty=1.1, seed=3)
    with Runtime.load(smollm2_triattn, config, EvictionConfig(budget_tokens=512)) as rt:
        talk = Talk(rt, tmp_path)
        words = prose(6000).split()
        for turn in range(12):
            text = " ".join(words[turn * 380 : (turn + 1) * 380])
            answer = talk.ask(f"{text}\n\nWhat is this about?", sampling=sampling, max_tokens=24)
            assert answer.content.strip()
            assert talk.ready.n_again <= 1 or turn == 0, "only what is new is read"
            assert talk.n_read < 700
            assert talk.settled is not None
            assert talk.settled.n_read <= 24 + 8, "never more than the answer"
        stats = rt.stats()
        assert stats.n_past > 6000
        assert stats.n_cells_used <= 512 + 128
        assert stats.n_evictions > 15

        # the same question again: nothing but one token is read
        last = talk.path.pop()
        talk.answer(sampling=SamplingConfig(temperature=0.7, repeat_penalty=1.1, seed=4), max_tokens=24)
        assert talk.ready.origin in ("cache", "memory"), "24 tokens lie within the window: the cache itself may go back"
        assert talk.n_read == 1
        talk.path.pop()

        # as if the answer had begun with thinking: only the answer is read again
        list(rt.generate([*rt.tokens, *rt.tokenize(prose(200), add_special=False)], max_tokens=0))
        talk.path.append(last)
        talk.settle()
        assert talk.settled is not None
        assert 0 < talk.settled.n_read <= 24 + 8
        assert talk.settled.n_dropped > 200
        talk.snapshots.close()

    # another process: from the disk, and nothing of the 6,000 tokens is read again
    with Runtime.load(smollm2_triattn, config, EvictionConfig(budget_tokens=512)) as rt:
        later = Talk(rt, tmp_path)
        later.path, later.n_messages = talk.path, talk.n_messages
        later.ask("And what else?", sampling=sampling, max_tokens=8)
        assert (later.ready.origin, later.ready.n_again) == ("disk", 0)
        assert later.n_read < 30

        # an early question anew: what was evicted before and since lies in the session's file
        later.path = later.path[:5]
        later.answer(sampling=sampling, max_tokens=8)
        assert (later.ready.origin, later.ready.n_again) == ("cache", 0)
        assert later.n_read == 1
        later.snapshots.close()

    # a file of rows that was cut off: an older snapshot is used, of which all is there, and it is said
    [rows] = tmp_path.glob("*/*.rows")
    os.truncate(rows, rows.stat().st_size // 2)
    with Runtime.load(smollm2_triattn, config, EvictionConfig(budget_tokens=512)) as rt:
        later = Talk(rt, tmp_path)
        later.path, later.n_messages = talk.path, talk.n_messages
        later.ask("And what else?", sampling=sampling, max_tokens=8)
        assert later.ready.n_again > 0
        assert later.ready.why is not None
        assert "has not all rows" in later.ready.why
        later.snapshots.close()


def test_going_on_with_a_cut_answer_reads_nothing_again(script) -> None:
    script([LONG, " and the rest"])
    rt = runtime()
    talk = Talk(rt)
    talk.ask("Go", max_tokens=100)
    cut = talk.path.pop()
    assert talk.answered.reason == "length"
    whole = talk.answer(begun=cut)
    assert whole.content == " and the rest", "what comes is what is new"
    assert talk.ready.n_again == 0
    assert talk.n_read <= 2
    assert rt.prompts[-1].endswith(f"assistant\n{cut.content}")


def test_an_answer_goes_on_without_its_thinking_and_cut_thinking_with_it(script) -> None:
    script([f"<think>{LONG}</think>The sea is wide and much more", " deep.", " word150</think>Wide."])
    rt = runtime()
    talk = Talk(rt)
    talk.ask("How is the sea?", max_tokens=156)
    cut = talk.path.pop()
    assert cut.thinking == LONG
    assert talk.answer(begun=cut).content == " deep."
    assert "word1" not in rt.prompts[-1]
    talk.path.pop()
    thought = talk.message("assistant", "", LONG)
    answer = talk.answer(begun=thought)
    assert rt.prompts[-1].endswith(f"assistant\n<think>\n{LONG}")
    assert (answer.thinking.strip(), answer.content) == ("word150", "Wide.")


def test_thinking_in_messages_cannot_go_on(script) -> None:
    rt = runtime()
    rt.vocabulary.chat_template = "<|channel|>"
    talk = Talk(rt)
    talk.path.append(talk.message("user", "Go"))
    with pytest.raises(UsageError, match="cannot go on with that"):
        talk.answer(begun=talk.message("assistant", "", "First"))


def test_an_answer_in_messages_goes_on(script) -> None:
    script([" deep."])
    rt = runtime()
    rt.vocabulary.chat_template = "<|channel|>"
    talk = Talk(rt)
    talk.path.append(talk.message("user", "Go"))
    assert talk.answer(begun=talk.message("assistant", "It is wide and")).content == " deep."
