"""Models and contexts of llama.cpp: the only place that makes them.

``runtime`` drives one context for one user; ``benchmark`` and ``evaluation`` put several side by side, so that full
attention and the ways to forget meet the same tokens in the same process; ``planning`` makes them without allocation,
and calibration watches one. Knows no text and no sampling.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from ..config import EvictionConfig, RuntimeConfig, SamplingConfig
from ..errors import DoesNotFitError, StateError, TriattnError, UsageError
from ..model.model_info import read_model_info
from ..support.closing import Closing
from ..support.threads import Threads
from . import native
from .context_options import ContextOptions
from .devices import Device
from .pinning import PromptParts, pinned_ranges
from .trial import check_survives
from .vocabulary import Vocabulary

_SAMPLING_KEYS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
    "penalty_last_n": "repeat_last_n",
}
_ALL_LAYERS = 0x7FFFFFFF
_ABORTED = 2
"""what ``llama_decode`` returns when an abort callback ended it"""


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


class _Loaded:
    """What llama.cpp loaded, freed once: by its Model, or when no Model, Context and Vocabulary holds it any more."""

    def __init__(self, handle: Any) -> None:
        self.contexts: list[Any] = []  # that are open
        self.end = weakref.finalize(self, _free_model, handle, self.contexts)
        self.end.atexit = False


def _free_context(handle: Any, contexts: list[Any]) -> None:
    if handle in contexts:
        contexts.remove(handle)
        llama_cpp.llama_free(handle)


def _free_model(handle: Any, contexts: list[Any]) -> None:
    # whoever collects garbage may come to a model before its contexts
    while contexts:
        llama_cpp.llama_free(contexts.pop())
    llama_cpp.llama_model_free(handle)


class Model(Closing):
    """Weights, and the contexts that are made of them."""

    def __init__(
        self,
        path: Path,
        config: RuntimeConfig | None = None,
        stats_path: Path | None = None,
        device: Device | None = None,
        *,
        vocab_only: bool = False,
        no_alloc: bool = False,
        goes_on: Callable[[float], bool] | None = None,
    ) -> None:
        """Load a file.

        Parameters
        ----------
        device : Device, optional
            Where every layer goes; None: where the configuration puts them.
        vocab_only : bool
            Read the vocabulary alone; no context can be made then.
        no_alloc : bool
            Read the header alone; contexts can be made and asked, and hold nothing.
        goes_on : callable, optional
            Called with the part that is read, 0 to 1; False gives up.

        Raises
        ------
        ModelNotFoundError
            The file is not there, not a GGUF, or would end the process.
        StatsError
            The sidecar cannot be taken.
        TriattnError
            llama.cpp cannot load the file.
        """
        config = config or RuntimeConfig()
        self.info = read_model_info(path)
        native.library()
        check_survives(path)
        # the binding takes warnings for errors and errors for debugging: all or nothing
        logging.getLogger("llama-cpp-python").setLevel(logging.DEBUG if config.verbose else logging.CRITICAL)
        llama_cpp.llama_backend_init()
        self.path, self.config = path, config
        self.threads = Threads(config.n_threads or physical_cores()) if config.yield_cores else None
        """how many compute at a time; None: always the same number"""
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = _ALL_LAYERS if config.n_gpu_layers < 0 else config.n_gpu_layers
        mapped = config.use_mmap and not no_alloc
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if mapped else llama_cpp.LLAMA_LOAD_MODE_NONE
        params.vocab_only, params.no_alloc = vocab_only, no_alloc
        # a CPU with AMX takes the matrices that unpack a latent, and ends the process when it should multiply with them
        params.use_extra_bufts = not self.info.is_mla
        # the library keeps these pointers, and ctypes does not keep what they point to
        if config.tensor_split is not None:
            shares = [*config.tensor_split, *[0.0] * llama_cpp.LLAMA_MAX_DEVICES][: llama_cpp.LLAMA_MAX_DEVICES]
            self._split = (ctypes.c_float * len(shares))(*shares)
            params.tensor_split = self._split
        if goes_on is not None:
            self._goes_on = llama_cpp.llama_progress_callback(lambda part, _: goes_on(part))
            params.progress_callback = self._goes_on
        if device is not None:
            self._devices = (ctypes.c_void_p * 2)(device.handle if device.is_gpu else None, None)
            params.devices = ctypes.addressof(self._devices)
            params.n_gpu_layers = _ALL_LAYERS if device.is_gpu else 0
        self.handle: Any = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise TriattnError(
                native.last_error() or "llama.cpp cannot load it",
                where=str(path),
                fix="run with --verbose to see its log",
            )
        self._loaded = _Loaded(self.handle)
        self.vocabulary = Vocabulary(self.handle, self._loaded)
        if stats_path is not None:
            try:
                native.load_stats(self.handle, stats_path)
            except TriattnError:
                self.close()
                raise

    @property
    def n_head(self) -> int:
        """Query heads of a layer, at most."""
        return max(self.info.n_head)

    @property
    def head_dim(self) -> int:
        return self.info.head_dim

    @property
    def n_window(self) -> int:
        """Tokens that the sliding-window layers attend to; 0: there are none."""
        return int(llama_cpp.llama_model_n_swa(self.handle))

    @property
    def recurs(self) -> bool:
        """Whether some layers have a recurrent state, which cannot go back."""
        return bool(llama_cpp.llama_model_is_recurrent(self.handle) or llama_cpp.llama_model_is_hybrid(self.handle))

    def suggested_sampling(self) -> dict[str, float]:
        """What the file says of how tokens are to be drawn: fields of SamplingConfig -> values that can be taken."""
        found: dict[str, float] = {}
        for key, name in _SAMPLING_KEYS.items():
            text = ctypes.create_string_buffer(64)
            n = llama_cpp.llama_model_meta_val_str(self.handle, f"general.sampling.{key}".encode(), text, 64)
            with contextlib.suppress(ValueError, UsageError):
                value = float(text.value) if n > 0 else math.nan
                value = int(value) if name in ("top_k", "repeat_last_n") else value
                SamplingConfig(**{name: value})  # type: ignore[arg-type]  # checked there
                found[name] = value
        return found

    def context(self, eviction: EvictionConfig | None, n_ctx: int | None = None, n_seq: int = 1) -> Context:
        """A context with empty sequences of n_ctx tokens each; eviction None: full attention."""
        return Context(self, eviction, ContextOptions.of(self.config, n_ctx, n_seq))

    def close(self) -> None:
        """Free the weights, and the contexts that are still open. Safe to call twice."""
        self.vocabulary.close()
        self._loaded.end()
        self.handle = None


class Context(Closing):
    """One sequence, or several that hold the same tokens. Close it before its model."""

    def __init__(
        self,
        model: Model,
        eviction: EvictionConfig | None,
        options: ContextOptions,
        *,
        on_node: Callable[[int, bool, object], bool] | None = None,
        stops: Callable[[], bool] | None = None,
    ) -> None:
        """Allocate the cache.

        Parameters
        ----------
        eviction : EvictionConfig, optional
            None: full attention, whatever the environment says.
        on_node : callable, optional
            llama.cpp's evaluation callback: sees the nodes of its graph.
        stops : callable, optional
            Asked amid a graph, where the backend asks; True gives up.

        Raises
        ------
        DoesNotFitError
            There is no memory for it.
        StatsError, TriattnError
            The model or the context cannot evict.
        """
        native.set_params(model.handle, eviction)
        params = llama_cpp.llama_context_default_params()
        for name, value in options.c_fields().items():
            setattr(params, name, value)
        params.n_threads = params.n_threads_batch = model.config.n_threads or physical_cores()
        # ctypes does not keep the callbacks alive, so they live as long as the context
        if on_node is not None:
            self._on_node = llama_cpp.ggml_backend_sched_eval_callback(on_node)
            params.cb_eval = self._on_node
        if stops is not None:
            self._stops = llama_cpp.ggml_abort_callback(lambda _: stops())
            params.abort_callback = self._stops
        self.model, self.options, self.eviction = model, options, eviction
        self.handle: Any = llama_cpp.llama_init_from_model(model.handle, params)
        if not self.handle:
            n_seq, n_ctx = options.n_seq_max, options.n_ctx
            sequences = f"{n_seq} sequences of {n_ctx} tokens" if n_seq > 1 else f"a context of {n_ctx} tokens"
            if why := native.last_error():
                raise TriattnError(why, where=str(model.path))
            raise DoesNotFitError(
                f"no room for {sequences}", where=str(model.path), fix="give a smaller --ctx, or --budget"
            )
        contexts = model._loaded.contexts
        contexts.append(self.handle)
        self._end = weakref.finalize(self, _free_context, self.handle, contexts)
        self._end.atexit = False
        self._memory = llama_cpp.llama_get_memory(self.handle)
        self._ranking: native.Ranking | None = None
        self.n_batch = options.n_batch
        self.n_recall = eviction.recall_period if eviction is not None and eviction.cold != "off" else 0
        """tokens between two recalls of the cold tier; 0: there are none"""
        self.n_seq = options.n_seq_max
        self.tokens: list[int] = []
        """the first sequence so far, evicted tokens included"""

    def close(self) -> None:
        """Free it. Safe to call twice, and after its model was closed."""
        self._end()
        self.handle = None

    @property
    def n_past(self) -> int:
        return len(self.tokens)

    def pin(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Pin these tokens [first, end) of the first sequence, those to come included, and no others.

        Of what heads have evicted already nothing can be pinned. Raises UsageError where the budget has no room.
        """
        for first, end in native.get_pins(self.handle):
            for wanted, behind in sorted(ranges):
                if first < wanted:
                    native.unpin(self.handle, first, min(wanted, end))
                first = max(first, behind)
            if first < end:
                native.unpin(self.handle, first, end)
        for first, end in ranges:
            native.pin(self.handle, first, end)

    def pin_prompt(self, n_tokens: int, parts: Callable[[], PromptParts] | None = None) -> None:
        """Pin what the settings ask for of a prompt that makes the first sequence n_tokens long, see ``pinning``."""
        if self.eviction is not None and self.eviction.pin > 0:
            self.pin(pinned_ranges(n_tokens, self.eviction, parts))

    def rank_with(self, rank: Callable[[native.Round], None]) -> None:
        """Let a function of one's own rewrite the scores of every round from now on."""
        self._ranking = native.Ranking(self.handle, rank)

    def decode(self, tokens: Sequence[int], n_logits: int = 0) -> NDArray[np.float32]:
        """Put a batch behind the first sequence. Logits of its last n_logits tokens, float32 [n_logits, n_vocab].

        The array is the library's own memory: it holds until the next decode.

        Raises
        ------
        DoesNotFitError
            The cache has no room for the batch.
        """
        n, n_past = len(tokens), self.n_past
        rows = [(token, n_past + i, 0, i >= n - n_logits) for i, token in enumerate(tokens)]
        if not self._decode(rows, tokens):
            raise TriattnError(f"a batch was aborted at position {n_past}", where="llama_decode")
        return self._logits(n_logits)

    def decode_each(self, token: int) -> NDArray[np.float32]:
        """Put a token behind every sequence, in one batch. Logits as ``decode``, float32 [n_seq, n_vocab].

        The sequences must have been made equal by ``copy_to_all`` before. Raises the same.
        """
        self._decode([(token, self.n_past, seq, True) for seq in range(self.n_seq)], [token])
        return self._logits(self.n_seq)

    def put(self, tokens: Sequence[int]) -> bool:
        """Put a batch behind the first sequence; False if it was aborted, and then nothing of it is there.

        What an aborted batch has made the cache forget cannot come back: where that is needed, the sequence is empty
        afterwards. Raises as ``decode``.
        """
        n_past = self.n_past
        if self._decode([(token, n_past + i, 0, i == len(tokens) - 1) for i, token in enumerate(tokens)], tokens):
            return True
        self._after_abort(n_past)
        return False

    def _after_abort(self, n_past: int) -> None:
        """Take micro-batches that were done out of the cache."""
        llama_cpp.llama_memory_seq_rm(self._memory, 0, n_past if self._can_cut(n_past) else -1, -1)
        if int(llama_cpp.llama_memory_seq_pos_max(self._memory, 0)) + 1 != n_past:
            self.clear()

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]], behind: Sequence[int]) -> bool:
        """One batch of (token, position, sequence, logits wanted); `behind` is what comes behind ``tokens``.

        False if it was aborted.
        """
        n_past = self.n_past
        self.tokens.extend(behind)  # a ranking looks at them meanwhile
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        try:
            for i, (token, pos, seq, is_output) in enumerate(rows):
                batch.token[i] = token
                batch.pos[i] = pos
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = seq
                batch.logits[i] = is_output
            batch.n_tokens = len(rows)
            if self.model.threads is not None:
                n_threads = self.model.threads.look()
                llama_cpp.llama_set_n_threads(self.handle, n_threads, n_threads)
            status = int(llama_cpp.llama_decode(self.handle, batch))
        finally:
            llama_cpp.llama_batch_free(batch)
        if status != 0:
            del self.tokens[n_past:]
        if self._ranking is not None:
            self._ranking.check()
        if status == 1:
            raise DoesNotFitError(
                f"the cache has no room for {len(rows)} more tokens at position {n_past}",
                where="llama_decode",
                fix="give a larger --ctx, or --budget",
            )
        if status not in (0, _ABORTED):
            raise TriattnError(f"llama.cpp failed with status {status} at position {n_past}", where="llama_decode")
        return status == 0

    def _logits(self, n: int) -> NDArray[np.float32]:
        shape = (n, self.model.vocabulary.n_vocab)
        if n == 0:
            return np.empty(shape, np.float32)
        # rows of a batch lie behind each other
        logits: NDArray[np.float32] = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.handle), shape)
        return logits

    def prefill(self, tokens: Sequence[int], progress: Callable[[int], None] = lambda _: None) -> NDArray[np.float32]:
        """Read a prompt in batches; logits of its last token, float32 [n_vocab]."""
        self.pin_prompt(self.n_past + len(tokens))
        last: NDArray[np.float32] = np.empty(0, np.float32)
        for i in range(0, len(tokens), self.n_batch):
            batch = tokens[i : i + self.n_batch]
            is_last = i + len(batch) == len(tokens)
            logits = self.decode(batch, n_logits=int(is_last))
            last = logits[0] if is_last else last
            progress(i + len(batch))
        return last

    def copy_to_all(self) -> None:
        """Give every other sequence what the first one holds."""
        for seq in range(1, self.n_seq):
            llama_cpp.llama_memory_seq_rm(self._memory, seq, -1, -1)
            llama_cpp.llama_memory_seq_cp(self._memory, 0, seq, -1, -1)

    @property
    def pos_cut(self) -> int:
        """The sequence can be cut here and later, and at its end.

        Before it, heads have evicted, or layers with a sliding window or a recurrent state have gone on.
        """
        return native.seq_pos_cut(self.handle, 0)

    @property
    def pos_cut_of_state(self) -> int:
        """The same of a saved state without the rows of the cold tier."""
        return max(self.pos_cut, native.seq_pos_whole(self.handle, 0))

    def _can_cut(self, n_past: int) -> bool:
        return all(n_past >= native.seq_pos_cut(self.handle, seq) for seq in range(self.n_seq))

    def can_rewind(self, n_past: int) -> bool:
        """Whether ``rewind`` takes it."""
        return n_past in (0, self.n_past) or self._can_cut(n_past)

    def rewind(self, n_past: int) -> None:
        """Cut every sequence; 0 empties them, whatever was evicted.

        Raises
        ------
        StateError
            What comes behind that point would miss tokens that it attends to; nothing is touched.
        """
        if not self.can_rewind(n_past):
            raise StateError(f"the sequence cannot be cut at {n_past}, only from {self.pos_cut} on", fix="read it anew")
        first = n_past if n_past else -1
        for seq in range(self.n_seq):
            if not llama_cpp.llama_memory_seq_rm(self._memory, seq, first, -1):
                raise StateError(f"llama.cpp does not cut the sequence at {n_past}", fix="read it anew")
        del self.tokens[n_past:]

    def clear(self) -> None:
        """Empty all sequences."""
        llama_cpp.llama_memory_clear(self._memory, False)
        self.tokens.clear()

    def state(self) -> NDArray[np.uint8]:
        """The first sequence's cache, as llama.cpp writes it."""
        size = int(llama_cpp.llama_state_seq_get_size(self.handle, 0))
        data = np.empty(size, np.uint8)
        if llama_cpp.llama_state_seq_get_data(self.handle, _bytes(data), size, 0) != size:
            raise StateError("llama.cpp wrote less state than it announced")
        return data

    def set_state(self, data: NDArray[np.uint8], tokens: Sequence[int]) -> None:
        """Put a state in the place of the first sequence; `tokens` are those that it stands for.

        Raises
        ------
        StateError
            llama.cpp does not take it; the sequence is empty then.
        """
        if llama_cpp.llama_state_seq_set_data(self.handle, _bytes(data), len(data), 0) == 0:
            self.clear()
            raise StateError(f"llama.cpp cannot restore a state of {len(tokens)} tokens")
        self.tokens = list(tokens)

    def synchronize(self) -> None:
        llama_cpp.llama_synchronize(self.handle)

    def stats(self) -> native.EngineStats:
        return native.get_stats(self.handle)[0]


def _bytes(data: NDArray[np.uint8]) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
