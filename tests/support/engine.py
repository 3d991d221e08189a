"""A bare context of the patched library for tests: batches go in, logits and cache rows come out."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp._logger import set_verbose
from numpy.typing import NDArray

from triattn_local.config import EvictionConfig
from triattn_local.engine import native
from triattn_local.engine.cache_rows import read_rows
from triattn_local.engine.context_options import ggml_type
from triattn_local.model.metadata import write_sidecar
from triattn_local.model.model_info import fingerprint, read_model_info
from triattn_local.model.stats import TriattnStats

FLASH = {True: llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED, False: llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED}


class EngineError(Exception):
    """The library refused; the text is llama_triattn_last_error()."""


class Engine:
    """One model and one context. eviction None: off."""

    def __init__(
        self,
        path: Path,
        eviction: EvictionConfig | None,
        *,
        stats: Path | None = None,
        n_ctx: int = 8192,
        n_batch: int = 512,
        n_ubatch: int = 512,
        type_k: str = "f16",
        type_v: str | None = None,
        flash_attn: bool = True,
        n_seq_max: int = 1,
        kv_unified: bool = True,
        **more: Any,
    ) -> None:
        native.library()
        set_verbose(False)
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise EngineError(f"model not loaded: {native.last_error()}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        if stats is not None:
            native.load_stats(self.model, stats)
        native.set_params(self.model, eviction)
        c = llama_cpp.llama_context_default_params()
        c.n_ctx, c.n_batch, c.n_ubatch = n_ctx, n_batch, n_ubatch
        c.n_threads = c.n_threads_batch = len(os.sched_getaffinity(0))
        c.type_k, c.type_v = ggml_type(type_k), ggml_type(type_v or type_k)
        c.flash_attn_type = FLASH[flash_attn]
        c.n_seq_max, c.kv_unified = n_seq_max, kv_unified
        for name, value in more.items():
            setattr(c, name, value)
        self.ctx = llama_cpp.llama_init_from_model(self.model, c)
        if not self.ctx:
            llama_cpp.llama_model_free(self.model)
            raise EngineError(native.last_error())
        self.memory = llama_cpp.llama_get_memory(self.ctx)
        self.n_batch = n_batch

    def close(self) -> None:
        llama_cpp.llama_free(self.ctx)
        llama_cpp.llama_model_free(self.model)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        out = (llama_cpp.llama_token * (len(data) + 8))()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), out, len(data) + 8, True, False)
        return list(out[:n])

    def next_pos(self, seq: int = 0) -> int:
        return int(llama_cpp.llama_memory_seq_pos_max(self.memory, seq)) + 1

    def decode(self, tokens: Sequence[int], seq: int = 0, *, all_logits: bool = False) -> NDArray[np.float32]:
        """One llama_decode. Logits of the last token [n_vocab], or of all [n_tokens, n_vocab]."""
        status, logits = self.try_decode(tokens, seq, all_logits=all_logits)
        assert status == 0, f"llama_decode: {status}"
        return logits

    def try_decode(
        self, tokens: Sequence[int], seq: int = 0, *, all_logits: bool = False, pos: int | None = None
    ) -> tuple[int, NDArray[np.float32]]:
        n = len(tokens)
        start = self.next_pos(seq) if pos is None else pos
        batch = llama_cpp.llama_batch_init(n, 0, 1)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = seq
            batch.logits[i] = all_logits or i == n - 1
        batch.n_tokens = n
        status = llama_cpp.llama_decode(self.ctx, batch)
        llama_cpp.llama_batch_free(batch)
        if status != 0:
            return status, np.empty(0, np.float32)
        rows = range(n) if all_logits else [n - 1]
        logits = np.stack(
            [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.ctx, i), (self.n_vocab,)) for i in rows]
        )
        return 0, (logits if all_logits else logits[0]).copy()

    def feed(self, tokens: Sequence[int], seq: int = 0) -> NDArray[np.float32]:
        """A prompt in batches of n_batch; logits of the last token."""
        logits = np.empty(0, np.float32)
        for i in range(0, len(tokens), self.n_batch):
            logits = self.decode(tokens[i : i + self.n_batch], seq)
        return logits

    def greedy(self, first: NDArray[np.float32], n: int, seq: int = 0) -> tuple[list[int], NDArray[np.float32]]:
        """n tokens, the first drawn from the given logits, all decoded. Tokens and the logits after the last."""
        tokens, logits = [], first
        for _ in range(n):
            tokens.append(int(np.argmax(logits)))
            logits = self.decode([tokens[-1]], seq)
        return tokens, logits

    def rm(self, p0: int, p1: int = -1, seq: int = 0) -> bool:
        return bool(llama_cpp.llama_memory_seq_rm(self.memory, seq, p0, p1))

    def stats(self) -> native.EngineStats:
        return native.get_stats(self.ctx)[0]

    def state(self, seq: int = 0) -> bytes:
        size = llama_cpp.llama_state_seq_get_size(self.ctx, seq)
        buffer = (ctypes.c_uint8 * size)()
        assert llama_cpp.llama_state_seq_get_data(self.ctx, buffer, size, seq) == size
        return bytes(buffer)

    def set_state(self, data: bytes, seq: int = 0) -> bool:
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        return bool(llama_cpp.llama_state_seq_set_data(self.ctx, buffer, len(data), seq) == len(data))

    def keys(self, il: int, head_kv: int, cells: NDArray[np.int32], *, seq: int = 0) -> NDArray[np.float32]:
        """Cached keys after RoPE, as numbers."""
        return read_rows(self.ctx, il, head_kv, cells, seq_id=seq)

    def values(self, il: int, head_kv: int, cells: NDArray[np.int32], *, seq: int = 0) -> NDArray[np.float32]:
        return read_rows(self.ctx, il, head_kv, cells, seq_id=seq, is_v=True)


def random_stats(
    path: Path, layers: Sequence[int], out: Path, seed: int = 0, unrotated: Sequence[int] = ()
) -> TriattnStats:
    """Centres drawn at random, with the model's fingerprint: the selection is nonsense, its arithmetic is not."""
    info = read_model_info(path)
    rng = np.random.default_rng(seed)
    q_mean, q_abs, k_mean = [], [], []
    for il in layers:
        mean = rng.standard_normal((info.n_head[il], info.head_dim)).astype(np.float32)
        q_mean.append(mean)
        n_band = info.head_dim if il in unrotated else info.n_rot // 2
        q_abs.append((np.abs(mean).max() * 2 + rng.random((info.n_head[il], n_band))).astype(np.float32))
        k_mean.append(np.zeros((info.n_head_kv[il], info.head_dim), np.float32))
    stats = TriattnStats(
        layers=tuple(layers),
        q_mean=tuple(q_mean),
        q_abs=tuple(q_abs),
        k_mean=tuple(k_mean),
        n_tokens=1,
        corpus="random",
        tool="tests",
        model=fingerprint(path),
    )
    write_sidecar(out, stats, info)
    return stats


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
