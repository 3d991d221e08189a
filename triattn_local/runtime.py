"""A model, its context and one sequence: load, generate, look, save, restore.

The thinnest layer over ``llama_cpp.Llama`` that gives typed events instead of dictionaries, and that knows what an
evicted sequence can still do (rewind to T and later, see ``native.seq_pos_whole``) and what needs a new prefill.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

from . import native
from .config import EvictionConfig, Mode, RuntimeConfig, SamplingConfig, kv_overrides
from .errors import DoesNotFitError, StateError, StatsError, TriattnError, UsageError
from .metadata import read_stats
from .model_info import fingerprint, read_model_info
from .sampling import Sampler
from .snapshot import Snapshot, read_snapshot, write_snapshot
from .stop import Stop
from .text_stream import TextStream
from .thinking import Kind, TokenSplitter, marks_of
from .tool_calls import MARKS, ToolCall, ToolCallSplitter
from .trial import check_survives
from .vocabulary import Vocabulary, template_syntax_fault

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

    kind: Kind
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
    """T: the sequence can be rewound to here and later"""
    mode: Mode | None
    """None: full attention"""
    budget_tokens: int | None


class Cancel(Protocol):
    """threading.Event is one, ``Stop`` a quicker one."""

    def is_set(self) -> bool: ...


class _Llama(llama_cpp.Llama):  # type: ignore[misc]  # the binding has no types
    """The binding compiles each chat template as it loads, and a broken one would keep the model from loading."""

    @property
    def metadata(self) -> dict[str, str]:
        """As the file has it, without chat templates that are no Jinja."""
        return self._metadata

    @metadata.setter
    def metadata(self, pairs: dict[str, str]) -> None:
        self._metadata = {
            key: value
            for key, value in pairs.items()
            if not (key.startswith("tokenizer.chat_template") and (not value.strip() or template_syntax_fault(value)))
        }


class Runtime:
    """One model with one sequence. Not for several threads at once."""

    def __init__(self, llama: llama_cpp.Llama, config: RuntimeConfig, eviction: EvictionConfig | None) -> None:
        self.llama = llama
        """the binding's own object, for everything that is not here"""
        self.config = config
        self.eviction = eviction
        self.vocabulary = Vocabulary(self._model)
        self._recurs = bool(
            llama_cpp.llama_model_is_recurrent(self._model) or llama_cpp.llama_model_is_hybrid(self._model)
        )
        self._stop: Stop | None = None  # what the library looks at
        self._tokens: list[int] = []  # in the cache, or evicted from it
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
        path = Path(path)
        config = config or RuntimeConfig()
        native.library()
        if config.n_batch > config.n_ctx:
            raise UsageError(
                f"a batch of {config.n_batch} tokens is larger than the context of {config.n_ctx}",
                where="n_batch",
                fix=f"give n_batch {config.n_ctx} or less",
            )
        read_model_info(path)
        if eviction is not None and eviction.policy == "triattention":
            check_stats(path, Path(stats_path) if stats_path else None)
        check_survives(path)

        n_threads = config.n_threads or physical_cores()
        try:
            with _stats_from(stats_path):
                llama = _Llama(
                    model_path=str(path),
                    n_gpu_layers=config.n_gpu_layers,
                    tensor_split=None if config.tensor_split is None else list(config.tensor_split),
                    use_mmap=config.use_mmap,
                    kv_overrides=kv_overrides(eviction),
                    n_ctx=config.n_ctx,
                    n_batch=config.n_batch,
                    n_ubatch=min(config.n_ubatch, config.n_batch),
                    n_threads=n_threads,
                    n_threads_batch=n_threads,
                    flash_attn=config.flash_attn,
                    type_k=ggml_type(config.cache_type_k),
                    type_v=ggml_type(config.cache_type_v),
                    verbose=config.verbose,
                )
        except (ValueError, RuntimeError) as err:
            why = native.last_error()
            if why:
                raise TriattnError(why, where=str(path)) from err
            raise DoesNotFitError(
                f"llama.cpp cannot load it: {err}", where=str(path), fix="run with --verbose to see its log"
            ) from err
        return cls(llama, config, eviction)

    def close(self) -> None:
        self.llama.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ text

    @property
    def _model(self) -> Any:
        return self.llama._model.model

    @property
    def _ctx(self) -> Any:
        return self.llama._ctx.ctx

    @property
    def tokens(self) -> list[int]:
        """The sequence so far: prompt, answer, and the token drawn last."""
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
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation in the model's own template: tokenize the result with parse_special."""
        return self.vocabulary.apply_chat_template(messages, tools=tools, add_generation_prompt=add_generation_prompt)

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
            Texts that end the answer; they are not part of it.
        cancel : Cancel, optional
            Looked at after every batch of the prompt and after every token; a ``Stop`` also amid a batch, on backends
            that ask whether to go on (CPU, Metal).

        Yields
        ------
        Prefill after every batch of the prompt, Token after every token, Done once at the end.

        Raises
        ------
        UsageError
            Empty prompt, or one that does not fit the context.
        """
        sampling = sampling or SamplingConfig()
        n_ctx = llama_cpp.llama_n_ctx(self._ctx)
        tokens = list(prompt) if prompt is not None else self.tokens
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
        start_s = time.perf_counter()
        for i in range(n_cached, len(tokens), self.config.n_batch):
            if not self._decode(tokens[i : i + self.config.n_batch], cancel):
                elapsed_s = time.perf_counter() - start_s
                yield Done("cancelled", len(tokens), n_cached, 0, elapsed_s, 0.0)
                return
            yield Prefill(len(self._tokens), len(tokens), time.perf_counter() - start_s)

        sampler = Sampler(sampling, self.vocabulary.n_vocab, tokens)
        try:
            yield from self._draw(sampler, tokens, n_cached, n_ctx, start_s, max_tokens, stop or (), cancel, ignore_eos)
        finally:
            sampler.close()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
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

        Yields
        ------
        Prefill after every batch of the prompt, Text as it comes, thinking and content told apart, ToolCall once each
        is whole, Done once at the end.

        Raises
        ------
        UsageError
            The template refuses the conversation, or it does not fit the context.
        """
        text = self.apply_chat_template(messages, tools=tools)
        prompt = self.tokenize(text, parse_special=True)
        marks = marks_of(self.vocabulary.chat_template)
        known = [mark for pair in MARKS for mark in pair]
        thinking, calls = TokenSplitter(marks, text, self.token_bytes, known), ToolCallSplitter()
        for event in self.generate(prompt, max_tokens=max_tokens, sampling=sampling, stop=stop, cancel=cancel):
            if isinstance(event, Prefill):
                yield event
                continue
            parts = thinking.push_token(event.id, event.text) if isinstance(event, Token) else thinking.flush()
            for kind, part in parts:
                yield from _told_apart(kind, part, calls)
            if isinstance(event, Done):
                yield from _told_apart("content", None, calls)
                yield event

    def _draw(
        self,
        sampler: Sampler,
        prompt: list[int],
        n_cached: int,
        n_ctx: int,
        start_s: float,
        max_tokens: int | None,
        stop: Sequence[str],
        cancel: Cancel | None,
        ignore_eos: bool,
    ) -> Iterator[Event]:
        text = TextStream(stop)
        first_s = time.perf_counter()
        prefill_s = first_s - start_s
        n_generated = 0
        reason: Literal["stop", "length", "context", "cancelled"] = "length"
        while max_tokens is None or n_generated < max_tokens:
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
            token = sampler.sample(self._ctx, len(self._tokens))
            self._pending = token
            n_generated += 1
            if not ignore_eos and self.vocabulary.ends_turn(token):
                reason = "stop"
                break
            yield Token(token, text.push(self.token_bytes(token)), n_generated)
            if text.stopped:
                reason = "stop"
                break
        rest = text.flush()
        if rest and self._pending is not None:
            yield Token(self._pending, rest, n_generated)
        yield Done(reason, len(prompt), n_cached, n_generated, prefill_s, time.perf_counter() - first_s)

    def _rewind(self, tokens: Sequence[int]) -> int:
        """Cut the sequence to what it shares with `tokens`, one of which is left to decode. Returns its length."""
        n = 0
        while n < min(len(tokens) - 1, len(self._tokens)) and tokens[n] == self._tokens[n]:
            n += 1
        if n == len(self._tokens):
            return n
        memory = llama_cpp.llama_get_memory(self._ctx)
        if n == 0 or not llama_cpp.llama_memory_seq_rm(memory, _SEQ, n, -1):
            llama_cpp.llama_memory_seq_rm(memory, _SEQ, -1, -1)
            n = 0
        self._tokens = self._tokens[:n]
        return n

    def _decode(self, tokens: Sequence[int], cancel: Cancel | None = None) -> bool:
        """One batch into the cache; False if it was cancelled, then nothing of it is there."""
        if cancel is not None and cancel.is_set():
            return False
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        self._heed(cancel)
        status = llama_cpp.llama_decode(self._ctx, llama_cpp.llama_batch_get_one(array, len(tokens)))
        if status == 2:
            # micro-batches that were done go too: the batch is read anew from where rounds would find it
            llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._ctx), _SEQ, len(self._tokens), -1)
            return False
        if status == 1:
            raise DoesNotFitError(
                f"the cache has no room for {len(tokens)} more tokens at position {len(self._tokens)}",
                where="llama_decode",
                fix="give a larger --ctx, or --budget",
            )
        if status != 0:
            raise TriattnError(
                f"llama.cpp failed with status {status} at position {len(self._tokens)}", where="llama_decode"
            )
        self._tokens.extend(tokens)
        return True

    def _heed(self, cancel: Cancel | None) -> None:
        """Have the library look at it amid a batch, if it can."""
        # a recurrent state that a batch has begun to change cannot go back
        stop = cancel if isinstance(cancel, Stop) and not self._recurs else None
        if stop is not self._stop:
            native.set_abort(self._ctx, stop)
            self._stop = stop

    def reset(self) -> None:
        """Forget the sequence; the counters of ``stats`` go on."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._ctx), False)
        self._tokens = []
        self._pending = None

    # ------------------------------------------------------------------ look

    def stats(self) -> RuntimeStats:
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
            pos_whole=native.seq_pos_whole(self._ctx, _SEQ),
            mode=self.eviction.mode if evicts and self.eviction else None,
            budget_tokens=self.eviction.budget_tokens if evicts and self.eviction else None,
        )

    def kept(self, il: int, head_kv: int) -> list[int]:
        """Positions that a KV head of a layer holds, rising."""
        pos, _ = native.get_kept(self._ctx, il, head_kv, _SEQ)
        return sorted(int(p) for p in pos)

    def heads_holding(self) -> NDArray[np.int32]:
        """How many KV heads of each evicting layer hold each position of the sequence: int32 [n_layer, n_past].

        Full attention holds everything everywhere, in one row that stands for all layers.
        """
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

    def _context(self) -> dict[str, str | int | bool]:
        """What another context must share to read this one's state."""
        shape: dict[str, str | int | bool] = {
            "cache_type_k": self.config.cache_type_k,
            "cache_type_v": self.config.cache_type_v,
            "flash_attn": self.config.flash_attn,
            "evicts": self.eviction is not None,
        }
        if self.eviction is not None:
            shape["mode"] = self.eviction.mode
        return shape

    def snapshot(self) -> Snapshot:
        """The sequence and its cache at this moment, in memory; its bytes are as many as the cache holds."""
        size = int(llama_cpp.llama_state_seq_get_size(self._ctx, _SEQ))
        buffer = (ctypes.c_uint8 * size)()
        if llama_cpp.llama_state_seq_get_data(self._ctx, buffer, size, _SEQ) != size:
            raise StateError("llama.cpp wrote less state than it announced")
        return Snapshot(
            model=native.fingerprint(self._model),
            context=self._context(),
            tokens=list(self._tokens),
            pending=self._pending,
            state=bytes(buffer),
            pos_whole=native.seq_pos_whole(self._ctx, _SEQ),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Put a snapshot's sequence in the place of this one; ``generate(None)`` goes on with it, bit for bit.

        Raises
        ------
        StateError
            Of another model, or of a context that stores its cache otherwise. The sequence that was there stays,
            unless llama.cpp itself fails on the state: then it is empty.
        """
        model = native.fingerprint(self._model)
        if snapshot.model != model:
            raise StateError(f"was saved with another model ({snapshot.model}, this is {model})")
        for name, value in self._context().items():
            if snapshot.context.get(name) != value:
                raise StateError(f"was saved with {name} = {snapshot.context.get(name)}, this context has {value}")
        n_ctx = llama_cpp.llama_n_ctx(self._ctx)
        if len(snapshot.tokens) > n_ctx:
            raise StateError(
                f"holds {len(snapshot.tokens)} tokens, the context {n_ctx}",
                fix=f"give --ctx {len(snapshot.tokens) + 512} or more",
            )
        buffer = (ctypes.c_uint8 * len(snapshot.state)).from_buffer_copy(snapshot.state)
        if llama_cpp.llama_state_seq_set_data(self._ctx, buffer, len(snapshot.state), _SEQ) == 0:
            self.reset()
            raise StateError("llama.cpp cannot restore the state", fix="use the same --budget or more")
        self._tokens = list(snapshot.tokens)
        self._pending = snapshot.pending

    def save(self, path: Path | str) -> int:
        """Write the sequence and its cache to a file, whole or not at all. Returns the bytes of the state.

        Raises
        ------
        DoesNotFitError, UsageError
            The disk is full, or the file cannot be written.
        """
        snapshot = self.snapshot()
        write_snapshot(Path(path), snapshot)
        return len(snapshot.state)

    def load_state(self, path: Path | str) -> None:
        """Put a saved sequence in the place of this one, as ``restore``.

        Raises
        ------
        StateError
            Not a saved session, damaged, or one that ``restore`` refuses.
        """
        snapshot = read_snapshot(Path(path))
        try:
            self.restore(snapshot)
        except StateError as error:
            raise StateError(error.what, where=str(path), fix=error.fix) from None


def _told_apart(kind: Kind, text: str | None, calls: ToolCallSplitter) -> Iterator[Text | ToolCall]:
    """Thinking as it is, calls out of the content; the rest of the content if `text` is None."""
    if kind == "thinking" and text:
        yield Text(kind, text)
        return
    for part in calls.flush() if text is None else calls.push(text):
        yield part if isinstance(part, ToolCall) else Text("content", part)


def ggml_type(name: str) -> int:
    """The number of a cache type in ggml.h."""
    return int(gguf.GGMLQuantizationType[name.upper()])


def has_gpu() -> bool:
    """Whether the library can put layers on a device other than the CPU."""
    return bool(llama_cpp.llama_supports_gpu_offload())


def physical_cores() -> int:
    """Cores that this process may use, two hyperthreads counted once."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in allowed:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            siblings.add(str(cpu))
    return max(len(siblings), 1)


def check_stats(path: Path, stats_path: Path | None) -> None:
    """Say what is wrong with a model's statistics before gigabytes of weights are read.

    Raises
    ------
    StatsError
        They are missing, damaged, or of another model.
    TriattnError
        The model is of a kind that cannot evict.
    """
    source = stats_path or Path(os.environ.get("TRIATTN_STATS") or path)
    stats = read_stats(source)
    info = read_model_info(path)
    if info.obstacle is not None:  # then statistics would not help
        raise TriattnError(f"cannot evict: it {info.obstacle}", where=str(path), fix="run it with --no-evict")
    if stats is None:
        raise StatsError(
            "holds no TriAttention statistics", where=str(source), fix=f"make them with: triattn-local convert {path}"
        )
    stats.check_belongs(fingerprint(path))
    stats.validate(info)


_environment = threading.Lock()


@contextlib.contextmanager
def _stats_from(stats_path: Path | str | None) -> Iterator[None]:
    """The sidecar's path for the library: through the environment, since a KV override holds 127 characters only."""
    if stats_path is None:
        yield
        return
    with _environment:
        before = os.environ.get("TRIATTN_STATS")
        os.environ["TRIATTN_STATS"] = str(stats_path)
        try:
            yield
        finally:
            if before is None:
                del os.environ["TRIATTN_STATS"]
            else:
                os.environ["TRIATTN_STATS"] = before
