"""The thread that owns the model.

A Runtime is not for several threads, and a call into it takes as long as it takes: everything that touches it happens
here, one job after another, and the interface hears of it by messages. The text of an answer goes through a queue
instead, which the interface empties at its own pace; it is stored before it is shown. Knows nothing of widgets.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textual.message import Message as TextualMessage

from triattn_local import planning
from triattn_local.answers.thinking import TextKind
from triattn_local.config import SamplingConfig, ThinkingConfig
from triattn_local.engine import runtime as runtime_module
from triattn_local.engine.runtime import Prefill
from triattn_local.errors import TriattnError, from_system
from triattn_local.sessions import Message, SessionStore, SnapshotCache, State
from triattn_local.sessions.conversation import Answered, Called, Conversation, Piece, Ready, Settled, TooLongError
from triattn_local.settings import Settings
from triattn_local.store import demo_sampling
from triattn_local.support.stop import Stop

from . import events
from .numbers import Numbers

LOOK_S = 0.25
"""seconds between two looks at the cache's numbers"""
MAP_S = 1.0
"""seconds between two looks at what every head holds, which takes longer"""

_STATES: dict[str, State] = {"stop": "complete", "length": "length", "context": "context", "cancelled": "stopped"}


@dataclass(frozen=True)
class Turn:
    """What is asked of the engine: an answer to the last message of a branch."""

    session: str
    system: str
    path: Sequence[Message]
    answer: int
    """id of the message that the answer is stored in"""
    sampling: SamplingConfig
    max_tokens: int | None
    thinking: ThinkingConfig = field(default_factory=ThinkingConfig)
    stop: Sequence[str] = ()
    tools: Callable[[Stop], Sequence[Mapping[str, Any]]] = lambda _: ()
    """what may be called, as OpenAI's protocol has it; may wait until that is known, or until it is stopped"""
    begun: Message | None = None
    """an answer that was cut, and that this one goes on from"""


class Engine:
    """Loads, answers, settles, looks; ``post`` takes its messages from any thread."""

    def __init__(self, post: Callable[[TextualMessage], object], store: SessionStore, snapshots: SnapshotCache) -> None:
        self._post = post
        self._store = store
        self._snapshots = snapshots
        self._thread = ThreadPoolExecutor(1, "engine")
        self._conversation: Conversation | None = None
        self._vocabulary_in_use = threading.Lock()
        """held while another thread counts tokens, and while the model they are counted with is freed"""
        self._stop = Stop()
        self._settling = Stop()
        self.pieces: deque[tuple[TextKind, str, int]] = deque()
        """(kind, text, tokens of this kind so far) of the answer that is coming"""
        self.map_wanted = False
        """whether somebody looks at what every head holds"""
        self._looked_s = self._mapped_s = 0.0
        self._numbers: Numbers | None = None

    # ------------------------------------------------------------------- jobs

    def load(self, path: Path, settings: Settings, *, evict: bool, verbose: bool = False) -> None:
        """Let go of the model that is there, plan for this one and load it: ``Loaded`` or ``LoadFailed``."""
        self.stop()
        self._settling.set()
        self._submit(self._load, path, settings, evict, verbose)

    def answer(self, turn: Turn) -> None:
        """``TurnReady``, ``Reading``, pieces, ``CacheRead``, ``TurnEnded``; then ``TurnSettled``. Or ``TooLong``."""
        self._settling.set()
        self._stop = Stop()
        self._settling = Stop()
        self._submit(self._answer, turn, self._stop, self._settling)

    def summarise(self, turn: Turn) -> None:
        """Of the messages of a turn, which asks nothing: ``Reading``, ``Summarised``."""
        self._settling.set()
        self._stop = Stop()
        self._submit(self._summarise, turn, self._stop)

    def stop(self) -> None:
        """End the answer that is coming, in its prompt too."""
        self._stop.set()

    def read_cache(self, session: str | None = None, path: Sequence[Message] = ()) -> None:
        """``CacheRead`` as soon as the engine is free: what the cache holds of a session."""
        self._submit(self._read_cache, True, session, tuple(path))

    def close(self) -> None:
        """Stop all, free the model."""
        self._stop.set()
        self._settling.set()
        self._thread.submit(self._unload)
        self._thread.shutdown()

    def count_tokens(self, text: str) -> int | None:
        """Tokens of a text; None without a model. May be called from any thread: the model stays meanwhile."""
        with self._vocabulary_in_use:
            conversation = self._conversation
            return None if conversation is None else len(conversation.rt.tokenize(text, add_special=False))

    # ----------------------------------------------------------- in the thread

    def _submit(self, job: Callable[..., None], *args: object) -> Future[None]:
        def run() -> None:
            try:
                job(*args)
            except Exception as error:
                self._post(events.Failed(_found(error)))

        return self._thread.submit(run)

    def _unload(self) -> None:
        with self._vocabulary_in_use:
            conversation, self._conversation = self._conversation, None
            if conversation is not None:
                conversation.rt.close()

    def _load(self, path: Path, settings: Settings, evict: bool, verbose: bool) -> None:
        self._unload()
        try:
            plan = planning.plan_run(
                path, settings, evict=evict, checkpoint_bytes=settings.snapshot_memory << 20, verbose=verbose
            )
            rt = runtime_module.Runtime.load(path, plan.config, plan.eviction, stats_path=settings.stats)
        except BaseException as error:  # the interface waits for one of the two
            self._post(events.LoadFailed(path, _found(error)))
            return
        self._conversation = Conversation(rt, self._snapshots)
        self._numbers = Numbers(rt.stats())
        suggested = {**demo_sampling(path), **rt.suggested_sampling()}
        self._post(events.Loaded(path, rt.stats(), rt.eviction, plan.why, suggested))

    def _answer(self, turn: Turn, stop: Stop, settling: Stop) -> None:
        conversation = self._conversation
        if conversation is None:
            self._fail(turn, TriattnError("no model is loaded", fix="choose one with F3"))
            return
        assert self._numbers is not None
        conversation.thinking = turn.thinking
        self._numbers.hold(turn.session, conversation.rt.stats())
        start_s = time.perf_counter()
        state: State = "complete"
        calls: list[dict[str, object]] = []
        try:
            conversation.tools = turn.tools(stop)
            for event in conversation.respond(
                turn.session,
                turn.system,
                turn.path,
                sampling=turn.sampling,
                max_tokens=turn.max_tokens,
                stop=turn.stop,
                cancel=stop,
                begun=turn.begun,
            ):
                if isinstance(event, Ready):
                    ready = event
                    self._post(events.TurnReady(turn.answer, event))
                elif isinstance(event, Prefill):
                    n_new = event.n_done - ready.n_cached
                    tps = n_new / event.elapsed_s if event.elapsed_s > 0 else 0.0
                    self._post(events.Reading(event.n_done, event.n_total, tps))
                    self._read_cache(event.n_done == event.n_total, turn.session, turn.path)
                    start_s = time.perf_counter()
                elif isinstance(event, Piece):
                    if event.text:
                        self._store.append(turn.answer, event.kind, event.text)
                    self.pieces.append((event.kind, event.text, event.n_tokens))
                    self._read_cache(False, turn.session, turn.path)
                elif isinstance(event, Called):
                    # nine letters and digits, as some templates want, and no two the same in a conversation
                    id_ = f"c{turn.answer % 1_000_000:06d}{len(calls) % 100:02d}"
                    calls.append({"id": id_, "name": event.call.name, "arguments": dict(event.call.arguments)})
                elif isinstance(event, Answered):
                    state = _STATES[event.reason]
                    report = self._report(event, time.perf_counter() - start_s, ready, turn.begun)
                    if calls and state == "complete":
                        report["calls"] = calls
                    answer = self._finish(turn, state, report)
                    self._read_cache(True, turn.session, [*turn.path, answer])
                    self._post(events.TurnEnded(answer))
        except TooLongError as error:
            self._post(events.TooLong(turn.answer, error, *conversation.oldest_to_leave_out(turn.system, turn.path)))
            return
        except BaseException as error:
            self._fail(turn, _found(error))
            return
        if state == "stopped" and not (answer.content or answer.thinking):
            return  # stopped in the prompt: reading on is what was not wanted
        if answer.calls:
            return  # it goes on with what the tools say
        for event in conversation.settle(turn.session, turn.system, [*turn.path, answer], cancel=settling):
            if isinstance(event, Settled):
                self._read_cache(True, turn.session, [*turn.path, answer])
                self._post(events.TurnSettled(turn.answer, event))

    def _summarise(self, turn: Turn, stop: Stop) -> None:
        conversation, parts, whole = self._conversation, list[str](), False
        try:
            if conversation is None:
                raise TriattnError("no model is loaded", fix="choose one with F3")
            conversation.thinking, conversation.tools = turn.thinking, turn.tools(stop)
            for event in conversation.summarise(
                turn.session, turn.system, turn.path, sampling=turn.sampling, cancel=stop
            ):
                if isinstance(event, Prefill):
                    self._post(events.Reading(event.n_done, event.n_total, 0.0))
                elif isinstance(event, Piece) and event.kind == "content":
                    parts.append(event.text)
                elif isinstance(event, Answered):
                    whole = event.reason != "cancelled"
        except BaseException as error:
            self._post(events.Summarised(turn.path, None, _found(error)))
            return
        text = "".join(parts).strip()
        self._post(events.Summarised(turn.path, text if whole and text else None))

    def _fail(self, turn: Turn, error: TriattnError) -> None:
        answer = self._finish(turn, "failed", {"error": str(error)})
        self._post(events.TurnEnded(answer, error))

    def _finish(self, turn: Turn, state: State, report: Mapping[str, object]) -> Message:
        """Whatever the disk says, the turn ends: nobody could speak any more if it did not."""
        try:
            return self._store.finish(turn.answer, state, report)
        except TriattnError as error:
            if state != "failed":  # else it is being told already
                self._post(events.Failed(error))
            return self._store.message(turn.answer)

    def _report(self, done: Answered, decode_s: float, ready: Ready, begun: Message | None) -> dict[str, object]:
        conversation = self._conversation
        assert conversation is not None
        n = done.n_thinking + done.n_content
        before: Mapping[str, Any] = begun.report if begun is not None else {}
        return {
            "n_prompt": done.n_prompt,
            "n_cached": done.n_cached,
            "n_again": ready.n_again,
            "n_thinking": done.n_thinking + int(before.get("n_thinking", 0)),
            "n_content": done.n_content + int(before.get("n_content", 0)),
            "thinking_s": round(done.thinking_s + float(before.get("thinking_s", 0.0)), 2),
            "prefill_s": round(done.prefill_s, 2),
            "decode_s": round(decode_s, 2),
            "tokens_per_s": round(n / decode_s, 1) if decode_s > 0 else 0.0,
        }

    def _read_cache(self, now: bool, session: str | None, path: Sequence[Message]) -> None:
        """Tell how the cache is: at once, or if it is some time ago that it was told."""
        conversation, numbers = self._conversation, self._numbers
        clock_s = time.monotonic()
        if conversation is None or numbers is None or (not now and clock_s - self._looked_s < LOOK_S):
            return
        self._looked_s = clock_s
        stats = numbers.of(session, conversation.rt.stats())
        retained = None
        if self.map_wanted and (now or clock_s - self._mapped_s >= MAP_S):
            retained = conversation.retained(path) if session == numbers.holder else conversation.nothing_retained()
            self._mapped_s = time.monotonic()
        self._post(events.CacheRead(session, stats, retained, self._snapshots.memory_bytes))


def _found(error: BaseException) -> TriattnError:
    """What is no error of ours, told."""
    return from_system(error) or TriattnError(f"{type(error).__name__}: {error}", fix="this is a bug")
