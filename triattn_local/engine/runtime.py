"""A model, its context and one sequence: load, generate, look, save, restore.

The thinnest layer over ``contexts`` that gives typed events, and that reads a prompt anew where the cache cannot go
back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from ..answers.text_stream import TextStream
from ..answers.thinking import TextKind, ThinkingLimit, TokenSplitter, marks_of
from ..answers.tool_calls import MARKS, ToolCall, ToolCallSplitter
from ..config import EvictionConfig, Mode, RuntimeConfig, SamplingConfig, ThinkingConfig
from ..errors import DoesNotFitError, StateError, TriattnError, UsageError
from ..model.metadata import usable_stats
from ..model.model_info import read_model_info
from ..support.closing import Closing
from ..support.stop import Stop
from ..support.turns import Turns
from . import native
from .cache_layout import cache_layout
from .contexts import Context, Model
from .pinning import PromptParts
from .sampling import Sampler
from .snapshot import Snapshot, new_rows_beside, read_snapshot, rows_beside, write_snapshot

T = TypeVar("T")

_SEQ = 0  # the one sequence that a Runtime drives


@dataclass(frozen=True)
class Prefill:
    """The prompt is being read. Comes after every batch."""

    n_done: int
    """tokens of the prompt in the cache, those reused included"""
    n_total: int
    elapsed_s: float


@dataclass(frozen=True)
class Token:
    """One more token. `text` may be empty while a character is incomplete."""

    id: int
    text: str
    n_generated: int


@dataclass(frozen=True)
class Done:
    """The last event."""

    reason: Literal["stop", "length", "context", "cancelled"]
    """end of turn or stop text; max_tokens; n_ctx; asked to"""
    n_prompt: int
    n_cached: int
    """tokens of the prompt that were in the cache already"""
    n_generated: int
    prefill_s: float
    decode_s: float


Event = Prefill | Token | Done


@dataclass(frozen=True)
class Text:
    """A piece of an answer."""

    kind: TextKind
    text: str


ChatEvent = Prefill | Text | ToolCall | Done


@dataclass(frozen=True)
class RuntimeStats:
    """What the cache holds and has done since the context was made. Memory in bytes."""

    n_ctx: int
    """logical context, in tokens"""
    n_past: int
    """tokens of the sequence so far, evicted ones included"""
    n_cells: int
    """cells that the evicting cache has"""
    n_cells_used: int
    n_evictions: int
    """rounds"""
    tokens_evicted: int
    """summed over rounds"""
    evict_ms: float
    kv_bytes: int
    """all caches of the context"""
    kv_bytes_full: int
    """what full attention would hold for the same n_ctx"""
    pos_whole: int
    """the sequence can be rewound to here and later: before, heads have evicted or a window has gone on"""
    mode: Mode | None
    """None: full attention"""
    budget_tokens: int | None
    pos_saved: int = 0
    """the same of a snapshot without a file of rows, which has nothing of the cold tier once this runtime is closed"""
    cold_bytes: int = 0
    """memory of this machine that holds what was evicted"""
    cold_bytes_max: int = 0
    """and what it may grow to; 0: what is evicted is gone"""
    n_recalls: int = 0
    rows_recalled: int = 0
    """K rows that came back, summed over layers and heads"""
    recall_ms: float = 0.0
    tokens_destroyed: int = 0
    """that had to leave that memory for good"""
    n_pinned: int = 0
    """tokens of the sequence that no round evicts, beside its first and last ones"""


class Cancel(Protocol):
    """threading.Event is one, ``Stop`` a quicker one."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class _Asked:
    """Of one answer, see ``Runtime.generate``."""

    max_tokens: int | None
    sampling: SamplingConfig
    stop: Sequence[str]
    cancel: Cancel | None
    ignore_eos: bool
    interject: Callable[[], Sequence[int]] | None
    parts: Callable[[], PromptParts] | None


class Runtime(Closing):
    """One model with one sequence.

    Any thread may call: a call waits for those of other threads, an answer for the answers that other threads read. An
    answer whose iterator was left open is over once another begins, or the sequence changes: going on with it raises
    StateError, as everything does after ``close``.
    """

    def __init__(self, context: Context, eviction: EvictionConfig | None) -> None:
        self._context = context
        self._layout = cache_layout(context.model.info, context.model.config)
        self._turns = Turns("Runtime")
        self.config = context.model.config
        self.eviction = eviction
        self.vocabulary = context.model.vocabulary
        self.forgets = eviction is not None or context.model.n_window > 0 or context.model.recurs
        """whether there are rewinds that the cache refuses"""
        self._stop: Stop | None = None  # what the library looks at
        self._rows: Path | None = None  # what `save` wrote, or `load_state` found
        self._pending: int | None = None  # drawn, given out, and not decoded yet

    # ------------------------------------------------------------------ load

    @classmethod
    def load(
        cls,
        path: Path | str,
        config: RuntimeConfig | None = None,
        eviction: EvictionConfig | None = None,
        stats_path: Path | str | None = None,
    ) -> Runtime:
        """Load a model and make its context.

        Parameters
        ----------
        path : Path
            GGUF file; the first shard of a split one.
        eviction : EvictionConfig, optional
            None: full attention.
        stats_path : Path, optional
            Sidecar with the statistics; None: the model file's own.

        Raises
        ------
        ModelNotFoundError
            The file is not there, or not a GGUF.
        StatsError
            Statistics are missing, damaged, or of another model.
        UsageError
            Settings that cannot be taken.
        TriattnError
            The model or context cannot evict, or llama.cpp cannot load it.
        """
        path = _path(path, "path")
        stats_path = None if stats_path in (None, "") else _path(stats_path, "stats_path")
        config = RuntimeConfig() if config is None else _of_type(config, RuntimeConfig, "config")
        if eviction is not None:
            _of_type(eviction, EvictionConfig, "eviction")
        if config.n_batch > config.n_ctx:
            raise UsageError(
                f"a batch of {config.n_batch} tokens is larger than the context of {config.n_ctx}",
                where="n_batch",
                fix=f"give n_batch {config.n_ctx} or less",
            )
        if eviction is not None and eviction.policy == "triattention":
            check_stats(path, stats_path)

        model = Model(path, config, stats_path)
        try:
            return cls(model.context(eviction, config.n_ctx), eviction)
        except BaseException:
            model.close()
            raise

    @property
    def context(self) -> Context:
        """What holds the sequence, for everything that is not here; it knows nothing of turns."""
        self._turns.check()
        return self._context

    @property
    def model(self) -> Model:
        """The weights, as ``context``."""
        return self.context.model

    def close(self) -> None:
        """Free the model and its cache, once the call at hand is through. Every later call raises StateError."""
        self._turns.close(self._free)

    def _free(self) -> None:
        self._context.close()
        self._context.model.close()

    def __enter__(self) -> Runtime:
        self._turns.check()
        return self

    # ------------------------------------------------------------------ text

    @property
    def _model(self) -> Any:
        return self.model.handle

    @property
    def _ctx(self) -> Any:
        self._turns.check()
        return self.context.handle

    @property
    def _tokens(self) -> list[int]:
        """In the cache, or evicted from it."""
        return self.context.tokens

    @property
    def tokens(self) -> list[int]:
        """The sequence so far: prompt, answer, and the token drawn last."""
        self._turns.check()
        return [*self._tokens, *([] if self._pending is None else [self._pending])]

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids. add_special puts the model's BOS in front; parse_special reads `<|im_start|>` as one token."""
        return self.vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        return self.vocabulary.token_bytes(token, special=special)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        return self.vocabulary.detokenize(tokens, special=special)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: ThinkingConfig | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation in the model's own template: tokenize the result with parse_special."""
        return self.vocabulary.apply_chat_template(
            messages, tools=tools, thinking=thinking, add_generation_prompt=add_generation_prompt
        )

    def suggested_sampling(self) -> dict[str, float]:
        """What the model's file says of how its tokens are to be drawn: fields of SamplingConfig -> their values."""
        with self._turns.alone():
            return self.model.suggested_sampling()

    # -------------------------------------------------------------- generate

    def generate(
        self,
        prompt: Sequence[int] | None = None,
        *,
        max_tokens: int | None = None,
        sampling: SamplingConfig | None = None,
        stop: Sequence[str] | None = None,
        cancel: Cancel | None = None,
        ignore_eos: bool = False,
        interject: Callable[[], Sequence[int]] | None = None,
        parts: Callable[[], PromptParts] | None = None,
    ) -> Iterator[Event]:
        """Read the prompt and draw tokens after it.

        What the prompt shares with the sequence is not read again, as far as the cache can be rewound.

        Parameters
        ----------
        prompt : sequence of int, optional
            The whole sequence up to where generation starts. None: go on where the last call or the restored session
            stopped.
        max_tokens : int, optional
            None: up to the end of the turn or of the context.
        stop : sequence of str, optional
            Texts that end the answer; they are not part of it. A single text is one of them.
        cancel : Cancel, optional
            Looked at after every batch of the prompt and after every token; a ``Stop`` also amid a batch, on backends
            that ask whether to go on (CPU, Metal).
        interject : callable, optional
            Called before a token is drawn, at the end of a character: the tokens that it returns come in its place, as
            if they had been drawn. ``thinking.ThinkingLimit`` is one.
        parts : callable, optional
            Says where system prompt and question lie, if the prompt as a whole is too long to be pinned
            (``EvictionConfig.pin``).

        Yields
        ------
        Prefill after every batch of the prompt, Token after every token, Done once at the end.

        Raises
        ------
        UsageError
            Empty prompt, one that does not fit the context, or that is no list of the model's token ids.
        StateError
            The runtime is closed, or the sequence was taken by another call since the last step.
        """
        sampling = SamplingConfig() if sampling is None else _of_type(sampling, SamplingConfig, "sampling")
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise UsageError("has no is_set(): give a Stop or a threading.Event", where="cancel")
        max_tokens = None if max_tokens is None else _index(max_tokens, "max_tokens")
        asked = _Asked(max_tokens, sampling, _texts(stop), cancel, ignore_eos, interject, parts)
        return self._turns.each(self._generate(prompt, asked))

    def _generate(self, prompt: Sequence[int] | None, asked: _Asked) -> Iterator[Event]:
        n_ctx = llama_cpp.llama_n_ctx(self._ctx)
        tokens = self.vocabulary.check_tokens(prompt) if prompt is not None else self.tokens
        if not tokens:
            raise UsageError("the prompt is empty")
        if len(tokens) > n_ctx:
            raise UsageError(
                f"a prompt of {len(tokens)} tokens exceeds the context of {n_ctx}",
                where="--ctx",
                fix=f"give --ctx {len(tokens) + 512} or more",
            )

        n_cached = self._rewind(tokens)
        self._pending = None
        if prompt is not None:
            self.context.pin_prompt(len(tokens), asked.parts)
        start_s = time.perf_counter()
        for i in range(n_cached, len(tokens), self.config.n_batch):
            if not self._decode(tokens[i : i + self.config.n_batch], asked.cancel):
                elapsed_s = time.perf_counter() - start_s
                yield Done("cancelled", len(tokens), n_cached, 0, elapsed_s, 0.0)
                return
            yield Prefill(len(self._tokens), len(tokens), time.perf_counter() - start_s)

        sampler = Sampler(asked.sampling, self.vocabulary.n_vocab, tokens)
        try:
            yield from self._draw(sampler, len(tokens), n_cached, start_s, asked)
        finally:
            sampler.close()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: ThinkingConfig | None = None,
        max_tokens: int | None = None,
        sampling: SamplingConfig | None = None,
        stop: Sequence[str] | None = None,
        cancel: Cancel | None = None,
    ) -> Iterator[ChatEvent]:
        """Answer a conversation in the model's own template.

        Parameters
        ----------
        messages : sequence of mapping
            As in OpenAI's protocol, `tool_calls` and role `tool` included.
        tools : sequence of mapping
            As there. A template that knows no tools is told of them in the system prompt.
        thinking : ThinkingConfig, optional
            Whether, how hard and how long the model thinks; None: as its template has it.

        Yields
        ------
        Prefill after every batch of the prompt, Text as it comes, thinking and content told apart, ToolCall once each
        is whole, Done once at the end.

        Raises
        ------
        UsageError
            The template refuses the conversation, or it does not fit the context.
        """
        thoughts = ThinkingConfig() if thinking is None else _of_type(thinking, ThinkingConfig, "thinking")
        text = self.apply_chat_template(messages, tools=tools, thinking=thoughts)
        prompt = self.tokenize(text, parse_special=True)
        marks = marks_of(self.vocabulary.chat_template)
        known = [mark for pair in MARKS for mark in pair]
        splitter, calls = TokenSplitter(marks, text, self.token_bytes, known), ToolCallSplitter()
        limit = None if thoughts.limit is None else ThinkingLimit(splitter, thoughts.limit, self.tokenize)
        for event in self.generate(
            prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            cancel=cancel,
            interject=limit,
            parts=lambda: self.chat_parts(prompt, messages, tools=tools, thinking=thoughts),
        ):
            if isinstance(event, Prefill):
                yield event
                continue
            parts = splitter.push_token(event.id, event.text) if isinstance(event, Token) else splitter.flush()
            for kind, part in parts:
                yield from _by_kind(kind, part, calls)
            if isinstance(event, Done):
                yield from _by_kind("content", None, calls)
                yield event

    def chat_parts(
        self,
        prompt: Sequence[int],
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: ThinkingConfig | None = None,
    ) -> PromptParts:
        """Where system prompt and tools end in the prompt of a conversation, and where its last question begins.

        What the prompt shares with those of conversations in which the user says other things. Nothing is known of a
        template that refuses these.
        """
        asked = [i for i, message in enumerate(messages) if message.get("role") == "user"]
        if not asked:
            return PromptParts()

        def n_before(earlier: Sequence[Mapping[str, Any]]) -> int:
            others = ([*earlier, {"role": "user", "content": content}] for content in ("0", "Z"))
            texts = (self.apply_chat_template(other, tools=tools, thinking=thinking) for other in others)
            return min(n_shared(prompt, self.tokenize(text, parse_special=True)) for text in texts)

        try:
            return PromptParts(n_before(messages[: asked[0]]), n_before(messages[: asked[-1]]))
        except UsageError:
            return PromptParts()

    def _draw(self, sampler: Sampler, n_prompt: int, n_cached: int, start_s: float, asked: _Asked) -> Iterator[Event]:
        n_ctx, cancel = llama_cpp.llama_n_ctx(self._ctx), asked.cancel
        text = TextStream(asked.stop)
        put: deque[int] = deque()  # comes in the place of drawn tokens
        first_s = time.perf_counter()
        prefill_s = first_s - start_s
        n_generated = 0
        reason: Literal["stop", "length", "context", "cancelled"] = "length"
        while asked.max_tokens is None or n_generated < asked.max_tokens:
            if cancel is not None and cancel.is_set():
                reason = "cancelled"
                break
            if self._pending is not None:
                if len(self._tokens) >= n_ctx:
                    reason = "context"
                    break
                if not self._decode([self._pending], cancel):
                    reason = "cancelled"
                    break
                self._pending = None
            if asked.interject is not None and not put and text.is_whole:
                put.extend(asked.interject())
            is_put = bool(put)
            if is_put:
                token = put.popleft()
                sampler.accept(token)
            else:
                token = sampler.sample(self._ctx, len(self._tokens))
            self._pending = token
            n_generated += 1
            if not asked.ignore_eos and not is_put and self.vocabulary.ends_turn(token):
                reason = "stop"
                break
            yield Token(token, text.push(self.token_bytes(token)), n_generated)
            if text.stopped:
                reason = "stop"
                break
        rest = text.flush()
        if rest and self._pending is not None:
            yield Token(self._pending, rest, n_generated)
        yield Done(reason, n_prompt, n_cached, n_generated, prefill_s, time.perf_counter() - first_s)

    def _rewind(self, tokens: Sequence[int]) -> int:
        """Cut the sequence to what it shares with `tokens`, one of which is left to decode. Returns its length."""
        n = n_shared(tokens[:-1], self._tokens)
        if not self.context.can_rewind(n):
            n = 0
        self.context.rewind(n)
        return n

    def _decode(self, tokens: Sequence[int], cancel: Cancel | None = None) -> bool:
        """One batch into the cache; False if it was cancelled, then nothing of it is there."""
        if cancel is not None and cancel.is_set():
            return False
        self._heed(cancel)
        return self.context.put(tokens)

    def _heed(self, cancel: Cancel | None) -> None:
        """Have the library look at it amid a batch, if it can."""
        # a recurrent state that a batch has begun to change cannot go back
        stop = cancel if isinstance(cancel, Stop) and not self.model.recurs else None
        if stop is not self._stop:
            native.set_abort(self._ctx, stop)
            self._stop = stop

    def reset(self) -> None:
        """Forget the sequence; the counters of ``stats`` go on."""
        with self._turns.change():
            self.context.clear()
            self._pending = None

    # ------------------------------------------------------------------ look

    def stats(self) -> RuntimeStats:
        """What the cache holds, and has done since it was made."""
        with self._turns.alone():
            engine, evicts = native.get_stats(self._ctx)
            return RuntimeStats(
                n_ctx=llama_cpp.llama_n_ctx(self._ctx),
                n_past=len(self._tokens),
                n_cells=engine.n_cells,
                n_cells_used=engine.n_cells_used,
                n_evictions=engine.n_rounds,
                tokens_evicted=engine.n_tokens_evicted,
                evict_ms=engine.t_total_us / 1000,
                kv_bytes=engine.kv_bytes + engine.kv_bytes_other,
                kv_bytes_full=engine.kv_bytes_full + engine.kv_bytes_other,
                pos_whole=self.context.pos_cut,
                mode=self.eviction.mode if evicts and self.eviction else None,
                budget_tokens=self.eviction.budget_tokens if evicts and self.eviction else None,
                pos_saved=self.context.pos_cut_of_state,
                cold_bytes=engine.cold_bytes,
                cold_bytes_max=engine.cold_bytes_max,
                n_recalls=engine.n_recalls,
                rows_recalled=engine.n_rows_recalled,
                recall_ms=engine.t_recall_us / 1000,
                tokens_destroyed=engine.n_tokens_destroyed,
                n_pinned=engine.n_pinned,
            )

    def kept(self, il: int, head_kv: int) -> list[int]:
        """Positions that a KV head of a layer holds, rising.

        Raises
        ------
        UsageError
            There is no such layer that evicts, or no such head.
        StateError
            Nothing evicts.
        """
        il, head_kv = _index(il, "il"), _index(head_kv, "head_kv")
        with self._turns.alone():
            pos, _ = native.get_kept(self._ctx, il, head_kv, _SEQ)
        return sorted(int(p) for p in pos)

    def heads_holding(self) -> NDArray[np.int32]:
        """How many KV heads of each evicting layer hold each position of the sequence: int32 [n_layer, n_past].

        Full attention holds everything everywhere, in one row that stands for all layers.
        """
        with self._turns.alone():
            engine, evicts = native.get_stats(self._ctx)
            n_past = len(self._tokens)
            if not evicts:
                return np.full((1, n_past), max(engine.n_head_kv, 1), np.int32)
            layers = native.get_layers(self._ctx)
            held = np.zeros((len(layers), n_past), np.int32)
            for row, il in zip(held, layers, strict=True):
                for head_kv in range(engine.n_head_kv):
                    pos, _ = native.get_kept(self._ctx, il, head_kv, _SEQ)
                    row[pos] += 1  # a head holds a position once
            return held

    # --------------------------------------------------------- save, restore

    def _shape(self) -> dict[str, str | int | bool]:
        """What another context must share to read this one's state."""
        shape = {**self._layout, "evicts": self.eviction is not None}
        if self.eviction is not None:
            shape["mode"] = self.eviction.mode
        return shape

    @property
    def layout_id(self) -> str:
        """The same for two runtimes that can share snapshots and their files of rows: 12 characters."""
        shape = json.dumps([native.fingerprint(self._model), self._shape()], sort_keys=True)
        return hashlib.sha256(shape.encode()).hexdigest()[:12]

    def _has_cold_tier(self) -> bool:
        return native.get_stats(self._ctx)[0].cold_bytes_max > 0

    def snapshot(self, rows: Path | None = None) -> Snapshot:
        """The sequence and its cache at this moment, in memory; its bytes are as many as the cache holds.

        Parameters
        ----------
        rows : Path, optional
            A file that gets what it lacks of the rows that were evicted, for a later process; without a cold tier there
            are none. One file serves all snapshots of a conversation and its branches. It is not synced.

        Raises
        ------
        StateError, DoesNotFitError
            The file is in use elsewhere, of another model, or cannot be written.
        """
        with self._turns.alone():
            if not self._has_cold_tier() or native.seq_pos_whole(self._ctx) == 0:
                rows = None  # nothing was evicted
            if rows is not None:
                with _rows_errors(rows):
                    native.save_cold(self._ctx, rows)
            n_past = len(self._tokens)
            pos_cut = self.context.pos_cut_of_state if rows is None else self.context.pos_cut
            if self.model.n_window and n_past > self.model.n_window:
                pos_cut = max(pos_cut, n_past - 1)  # of a window, what the next token needs is saved, and no more
            return Snapshot(
                model=native.fingerprint(self._model),
                context=self._shape(),
                tokens=list(self._tokens),
                pending=self._pending,
                state=self.context.state().tobytes(),
                pos_whole=pos_cut,
                rows=rows,
            )

    def restore(self, snapshot: Snapshot) -> None:
        """Put a snapshot's sequence in the place of this one; ``generate(None)`` goes on with it, bit for bit.

        Raises
        ------
        StateError
            Of another model, or of a context that stores its cache otherwise; its file of rows is not there or not
            whole. The sequence that was there stays, unless llama.cpp itself fails on the state or the rows are not
            what the state says: then it is empty.
        UsageError
            No snapshot.
        """
        _of_type(snapshot, Snapshot, "snapshot")
        with self._turns.change():
            model = native.fingerprint(self._model)
            if snapshot.model != model:
                raise StateError(f"was saved with another model ({snapshot.model}, this is {model})")
            for name, value in self._shape().items():
                if snapshot.context.get(name) != value:
                    raise StateError(f"was saved with {name} = {snapshot.context.get(name)}, this context has {value}")
            n_ctx = llama_cpp.llama_n_ctx(self._ctx)
            if len(snapshot.tokens) > n_ctx:
                raise StateError(
                    f"holds {len(snapshot.tokens)} tokens, the context {n_ctx}",
                    fix=f"give --ctx {len(snapshot.tokens) + 512} or more",
                )
            rows = snapshot.rows if self._has_cold_tier() else None
            if rows is not None:
                with _rows_errors(rows):
                    if not rows.exists():
                        raise StateError("is not there", where=str(rows), fix="with --cold off it goes on without")
                    native.open_cold(self._ctx, rows)
            try:
                self.context.set_state(np.frombuffer(snapshot.state, np.uint8), snapshot.tokens)
            except StateError:
                self._pending = None
                raise StateError("llama.cpp cannot restore the state", fix="use the same --budget or more") from None
            if rows is not None and self.context.pos_cut > snapshot.pos_whole:
                self.context.clear()
                self._pending = None
                raise StateError(
                    "has not all rows that the session names", where=str(rows), fix="with --cold off it goes on without"
                )
            self._pending = snapshot.pending

    def save(self, path: Path | str) -> int:
        """Write the sequence and its cache to a file, whole or not at all. Returns the bytes of the state.

        What was evicted before goes to a file beside it (``PATH.*.rows``), which a later save of the same conversation
        adds to.

        Raises
        ------
        DoesNotFitError, UsageError
            The disk is full, or the file cannot be written.
        """
        path = _path(path, "path")
        before = rows_beside(path)
        rows = self._rows if self._rows in before else new_rows_beside(path)
        snapshot = self.snapshot(rows)
        write_snapshot(path, snapshot)
        self._rows = snapshot.rows
        for old in before:
            if old != snapshot.rows:
                old.unlink(missing_ok=True)
        return len(snapshot.state)

    def load_state(self, path: Path | str) -> None:
        """Put a saved sequence in the place of this one, as ``restore``.

        Raises
        ------
        StateError
            Not a saved session, damaged, or one that ``restore`` refuses.
        """
        self._turns.check()
        snapshot = read_snapshot(_path(path, "path"))
        try:
            self.restore(snapshot)
        except StateError as error:
            raise StateError(error.what, where=error.where or str(path), fix=error.fix) from None
        self._rows = snapshot.rows


@contextlib.contextmanager
def _rows_errors(path: Path) -> Iterator[None]:
    """What the engine says of a file of rows, as errors of it."""
    try:
        yield
    except (StateError, UsageError):
        raise
    except TriattnError as error:
        what = error.what.removeprefix(f"{path}: ")
        kind = DoesNotFitError if "disk" in what else StateError
        raise kind(what, where=str(path)) from None


def n_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _of_type(value: T, wanted: type[T], where: str) -> T:
    if not isinstance(value, wanted):
        raise UsageError(f"is a {type(value).__name__}, and a {wanted.__name__} is wanted", where=where)
    return value


def _path(value: object, where: str) -> Path:
    if not isinstance(value, (str, Path)) or "\0" in str(value):
        raise UsageError(f"{value!r} is no path", where=where)
    return Path(value)


def _index(value: object, where: str) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        raise UsageError(f"{value!r} is not a whole number", where=where) from None
    if not 0 <= number < 2**31:
        raise UsageError(f"there is no {number}", where=where)
    return number


def _texts(stop: Sequence[str] | None) -> tuple[str, ...]:
    """One text stands for a list of it, as in OpenAI's protocol."""
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"{text!r} is no text", where="stop")
    return texts


def _by_kind(kind: TextKind, text: str | None, calls: ToolCallSplitter) -> Iterator[Text | ToolCall]:
    """Thinking as it is, calls out of the content; the rest of the content if `text` is None."""
    if kind == "thinking" and text:
        yield Text(kind, text)
        return
    for part in calls.flush() if text is None else calls.push(text):
        yield part if isinstance(part, ToolCall) else Text("content", part)


def has_gpu() -> bool:
    """Whether the library can put layers on a device other than the CPU."""
    return bool(llama_cpp.llama_supports_gpu_offload())


def check_stats(path: Path, stats_path: Path | None) -> None:
    """Say what is wrong with a model's statistics before gigabytes of weights are read.

    Raises
    ------
    StatsError
        They are missing, damaged, or of another model.
    TriattnError
        The model is of a kind that cannot evict.
    """
    info = read_model_info(path)
    if info.obstacle is not None:  # then statistics would not help
        raise TriattnError(f"cannot evict: it {info.obstacle}", where=str(path), fix="run it with --no-evict")
    named = os.environ.get("TRIATTN_STATS")
    usable_stats(info, stats_path or (Path(named) if named else None), lacks="holds no TriAttention statistics")
