"""Several contexts of one model, side by side: what ``bench`` times and ``evaluation`` compares.

A ``Runtime`` is one model with one sequence for one user. Here the weights are loaded once, and full attention and the
ways to forget get a context each, so that they meet the same tokens in the same process. Knows no text and no sampling.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp._logger import set_verbose
from numpy.typing import NDArray

from . import native
from .config import EvictionConfig, RuntimeConfig
from .devices import Device
from .errors import DoesNotFitError, StateError, TriattnError
from .model_info import read_model_info
from .runtime import ggml_type, physical_cores
from .vocabulary import Vocabulary

_CELLS = 256
"""llama.cpp gives a cache so many cells at a time"""


def padded(n_cells: int) -> int:
    """Cells that a cache for so many tokens gets."""
    return n_cells + -n_cells % _CELLS


class Model:
    """Weights, and the contexts that were made of them."""

    def __init__(
        self, path: Path, config: RuntimeConfig, stats_path: Path | None = None, device: Device | None = None
    ) -> None:
        """
        Parameters
        ----------
        device : Device, optional
            Where every layer goes; None: where the configuration puts them.

        Raises
        ------
        ModelNotFoundError
            The file is not there, or not a GGUF.
        StatsError
            The sidecar cannot be taken.
        TriattnError
            llama.cpp cannot load the file.
        """
        info = read_model_info(path)
        self.n_head: int = max(info.n_head)
        """query heads of a layer"""
        self.head_dim: int = info.head_dim
        native.library()
        set_verbose(config.verbose)
        self.path, self.config = path, config
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = config.n_gpu_layers if config.n_gpu_layers >= 0 else 0x7FFFFFFF
        params.use_mmap = config.use_mmap
        if device is not None:
            only = (ctypes.c_void_p * 2)(device.handle if device.is_gpu else None, None)
            params.devices = ctypes.addressof(only)
            params.n_gpu_layers = 0x7FFFFFFF if device.is_gpu else 0
        self.handle: Any = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise TriattnError(native.last_error() or "llama.cpp cannot load it", where=str(path))
        self.vocabulary = Vocabulary(self.handle)
        if stats_path is not None:
            native.load_stats(self.handle, stats_path)

    def context(self, eviction: EvictionConfig | None, n_ctx: int, n_seq: int = 1) -> Context:
        """A context with empty sequences of n_ctx tokens each; eviction None: full attention."""
        return Context(self, eviction, n_ctx, n_seq)

    def close(self) -> None:
        self.vocabulary.close()
        llama_cpp.llama_model_free(self.handle)

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Context:
    """One sequence, or several that hold the same tokens. Close it before its model."""

    def __init__(self, model: Model, eviction: EvictionConfig | None, n_ctx: int, n_seq: int = 1) -> None:
        config = model.config
        native.set_params(model.handle, eviction)
        params = llama_cpp.llama_context_default_params()
        # llama.cpp rounds each sequence's share down to whole blocks of cells
        params.n_ctx = n_ctx if n_seq == 1 else n_seq * padded(n_ctx)
        params.n_seq_max = n_seq
        params.kv_unified = False  # each sequence has cells of its own, and attends to no others
        params.n_batch = config.n_batch
        params.n_ubatch = min(config.n_ubatch, config.n_batch)
        params.n_threads = params.n_threads_batch = config.n_threads or physical_cores()
        params.type_k, params.type_v = ggml_type(config.cache_type_k), ggml_type(config.cache_type_v)
        params.flash_attn_type = int(config.flash_attn)
        params.swa_full = False
        self.model = model
        self.handle: Any = llama_cpp.llama_init_from_model(model.handle, params)
        if not self.handle:
            why = native.last_error()
            sequences = f"{n_seq} sequences of {n_ctx} tokens" if n_seq > 1 else f"a context of {n_ctx} tokens"
            raise TriattnError(why) if why else DoesNotFitError(f"no room for {sequences}")
        self._memory = llama_cpp.llama_get_memory(self.handle)
        self._ranking: native.Ranking | None = None
        self.n_batch = config.n_batch
        self.n_seq = n_seq
        self.tokens: list[int] = []
        """the first sequence so far, evicted tokens included"""

    def close(self) -> None:
        llama_cpp.llama_free(self.handle)

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def n_past(self) -> int:
        return len(self.tokens)

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
        self._decode([(token, n_past + i, 0, i >= n - n_logits) for i, token in enumerate(tokens)], tokens)
        return self._logits(n_logits)

    def decode_each(self, token: int) -> NDArray[np.float32]:
        """Put a token behind every sequence, in one batch. Logits as ``decode``, float32 [n_seq, n_vocab].

        The sequences must have been made equal by ``copy_to_all`` before. Raises the same.
        """
        self._decode([(token, self.n_past, seq, True) for seq in range(self.n_seq)], [token])
        return self._logits(self.n_seq)

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]], behind: Sequence[int]) -> None:
        """One batch of (token, position, sequence, logits wanted); `behind` is what comes behind ``tokens``."""
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
            status = llama_cpp.llama_decode(self.handle, batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        if status != 0:
            del self.tokens[n_past:]
        if self._ranking is not None:
            self._ranking.check()
        if status == 1:
            raise DoesNotFitError(f"the cache has no room for {len(rows)} more tokens at position {n_past}")
        if status != 0:
            raise TriattnError(f"llama.cpp failed with status {status} at position {n_past}", where="llama_decode")

    def _logits(self, n: int) -> NDArray[np.float32]:
        shape = (n, self.model.vocabulary.n_vocab)
        if n == 0:
            return np.empty(shape, np.float32)
        # rows of a batch lie behind each other
        logits: NDArray[np.float32] = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.handle), shape)
        return logits

    def prefill(self, tokens: Sequence[int], progress: Callable[[int], None] = lambda n: None) -> NDArray[np.float32]:
        """Read a prompt in batches; logits of its last token, float32 [n_vocab]."""
        last: NDArray[np.float32] = np.empty(0, np.float32)
        for i in range(0, len(tokens), self.n_batch):
            batch = tokens[i : i + self.n_batch]
            last = self.decode(batch, n_logits=1)[0]
            progress(i + len(batch))
        return last

    def copy_to_all(self) -> None:
        """Give every other sequence what the first one holds."""
        for seq in range(1, self.n_seq):
            llama_cpp.llama_memory_seq_rm(self._memory, seq, -1, -1)
            llama_cpp.llama_memory_seq_cp(self._memory, 0, seq, -1, -1)

    def rewind(self, n_past: int) -> None:
        """Cut every sequence; 0 empties them, whatever was evicted."""
        first = n_past if n_past else -1
        for seq in range(self.n_seq):
            if not llama_cpp.llama_memory_seq_rm(self._memory, seq, first, -1):
                raise TriattnError(f"cannot rewind to {n_past}")
        del self.tokens[n_past:]

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
            llama.cpp does not take it.
        """
        if llama_cpp.llama_state_seq_set_data(self.handle, _bytes(data), len(data), 0) == 0:
            self.tokens = []
            raise StateError(f"llama.cpp cannot restore a state of {len(tokens)} tokens")
        self.tokens = list(tokens)

    def synchronize(self) -> None:
        llama_cpp.llama_synchronize(self.handle)

    def stats(self) -> native.EngineStats:
        return native.get_stats(self.handle)[0]


def _bytes(data: NDArray[np.uint8]) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
