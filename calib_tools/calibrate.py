"""From a model and a text to its statistics: share out the text, watch the model read it, average.

The one place that joins corpus, engine and sums, and that says which models can be calibrated at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import triattn_local
from triattn_local.errors import CalibrationError
from triattn_local.model_info import ModelInfo, fingerprint, read_model_info
from triattn_local.stats import TriattnStats

from .accumulate import HeadSums
from .corpus import Corpus, bundled_corpus, share_out
from .engine_runtime import Kind, LayerAttention, RuntimeEngine

DEFAULT_TOKENS = 8192
MIN_TOKENS = 512
"""fewer leave the centres of rare directions to chance"""

CHUNK_TOKENS = 2048
"""tokens in one context; positions do not matter before RoPE, but what a token has read does"""

SKIP_TOKENS = 16
"""first tokens of each context that are not counted. The very first is an attention sink: its queries lie 1.4 to 1.6
times as far from the centre as others and are down to half as long, and it takes some 16 tokens until that has worn
off (three models of the Llama, Gemma 3 and Qwen2 families). The queries to be foreseen come much later."""

Progress = Callable[[int, int], None]
"""called with tokens done and tokens in all"""


def check_can_calibrate(info: ModelInfo) -> None:
    """Refuse a model that TriAttention cannot work on, before anything is loaded.

    Raises
    ------
    CalibrationError
        Says which property of the model is in the way.
    """

    def refuse(what: str) -> CalibrationError:
        return CalibrationError(what, where=str(info.path), fix="TriAttention needs a decoder with RoPE and a KV cache")

    if not info.is_causal:
        raise refuse(f"is an encoder ({info.arch})")
    if info.is_recurrent:
        raise refuse(f"is recurrent ({info.arch}) and has no KV cache")
    if not info.is_known:
        raise CalibrationError(
            f"has the architecture {info.arch!r}, which this version does not know",
            where=str(info.path),
            fix="update triattn-local",
        )
    if info.rope_type is None or info.n_rot == 0:
        raise refuse(f"has no RoPE ({info.arch})")
    if info.is_mla:
        raise refuse("caches a latent instead of keys (multi-head latent attention)")


def calibrate(
    model: Path,
    corpus: Corpus | None = None,
    n_tokens: int = DEFAULT_TOKENS,
    progress: Progress | None = None,
    *,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    n_batch: int = 512,
) -> TriattnStats:
    """Measure the centres of a model's queries and keys.

    Parameters
    ----------
    model : Path
        GGUF, the first file if it is split.
    corpus : Corpus, optional
        The bundled text if not given.
    n_tokens : int
        Tokens to read, evenly from all documents; fewer if the text is shorter.
    progress : callable, optional
        Called with (tokens done, tokens in all).
    n_threads, n_gpu_layers, n_batch : int
        As for ``RuntimeEngine``.

    Returns
    -------
    TriattnStats
        Checked against the model.

    Raises
    ------
    ModelNotFoundError, BackendMissingError
        Nothing to run, or nothing to run it with.
    CalibrationError
        The model cannot be calibrated, or the text is too short.
    """
    info = read_model_info(model)
    check_can_calibrate(info)
    corpus = bundled_corpus() if corpus is None else corpus
    if n_tokens < MIN_TOKENS:
        raise CalibrationError(f"{n_tokens} tokens are too few", fix=f"give --tokens {MIN_TOKENS} or more")

    n_ctx = min(CHUNK_TOKENS, info.n_ctx_train)
    if info.full_layers is None:
        # only a context larger than any window shows which caches are as large as the context
        n_ctx = max(n_ctx, info.n_swa + 2 * n_batch)
    with RuntimeEngine(
        info.path, n_ctx=n_ctx, n_batch=n_batch, n_threads=n_threads, n_gpu_layers=n_gpu_layers
    ) as engine:
        mark = _checked_fingerprint(info, engine)
        layers = _layers_to_measure(info, engine)
        pieces = _pieces(engine, corpus, n_tokens, min(n_ctx, CHUNK_TOKENS))
        sums = _measure(engine, layers, pieces, progress)
    q_sums, k_sums = [sums[il, "q_pre"] for il in layers], [sums[il, "k_pre"] for il in layers]
    stats = TriattnStats(
        layers=layers,
        q_mean=tuple(s.mean() for s in q_sums),
        q_abs=tuple(s.mean_abs() for s in q_sums),
        k_mean=tuple(s.mean() for s in k_sums),
        n_tokens=q_sums[0].n_tokens,
        corpus=corpus.label,
        tool=f"triattn-local {triattn_local.__version__}, runtime engine",
        model=mark,
    )
    stats.validate(info)
    return stats


def _checked_fingerprint(info: ModelInfo, engine: RuntimeEngine) -> str:
    """The engine will refuse statistics whose fingerprint it does not find itself, so ask it at once."""
    mark = fingerprint(info.path)
    if engine.fingerprint != mark:
        raise CalibrationError(
            f"has the fingerprint {mark}, and llama.cpp says {engine.fingerprint}",
            where=str(info.path),
            fix="this is a bug of triattn-local, please report it",
        )
    return mark


def _pieces(engine: RuntimeEngine, corpus: Corpus, n_tokens: int, n_chunk: int) -> list[list[int]]:
    head = [] if engine.bos is None else [engine.bos]
    documents = [engine.tokenize(document.text) for document in corpus.documents]
    pieces = [p for p in share_out(documents, n_tokens, n_chunk - len(head)) if len(p) > SKIP_TOKENS]
    n_counted = sum(len(piece) + len(head) - SKIP_TOKENS for piece in pieces)
    if n_counted < MIN_TOKENS * 3 // 4:
        raise CalibrationError(
            f"has {sum(map(len, documents))} tokens, too few to calibrate on",
            where=corpus.name,
            fix=f"give {2 * MIN_TOKENS} tokens of text or more, or leave out --corpus to use the bundled text",
        )
    return [head + piece for piece in pieces]


def _layers_to_measure(info: ModelInfo, engine: RuntimeEngine) -> tuple[int, ...]:
    """Full-attention layers, once file and library agree on what they are."""
    layers = engine.full_layers if info.full_layers is None else info.full_layers
    for il in layers:
        seen = engine.layers.get(il)
        if seen is None:
            raise CalibrationError(
                f"layer {il} has full attention, but caches keys that RoPE did not make",
                where=str(info.path),
                fix="models that leave out RoPE in some of their full-attention layers are not supported yet",
            )
        _check_agrees(info, il, seen)
    return tuple(layers)


def _check_agrees(info: ModelInfo, il: int, seen: LayerAttention) -> None:
    told = (info.n_head[il], info.n_head_kv[il], info.head_dim, info.n_rot, info.rope_type)
    real = (seen.n_head, seen.n_head_kv, seen.head_dim, seen.rope.n_rot, seen.rope.rope_type)
    if told != real:
        raise CalibrationError(
            f"layer {il} has (n_head, n_head_kv, head_dim, n_rot, RoPE) = {real} in llama.cpp, and {told} by its file",
            where=str(info.path),
            fix="this is a bug of triattn-local, please report it",
        )


def _measure(
    engine: RuntimeEngine, layers: tuple[int, ...], pieces: list[list[int]], progress: Progress | None
) -> dict[tuple[int, Kind], HeadSums]:
    sums: dict[tuple[int, Kind], HeadSums] = {}
    for il in layers:
        seen = engine.layers[il]
        rope = seen.rope
        sums[il, "q_pre"] = HeadSums(seen.n_head, seen.head_dim, rope.n_rot, rope.rope_type)
        sums[il, "k_pre"] = HeadSums(seen.n_head_kv, seen.head_dim, rope.n_rot, rope.rope_type)

    n_done, n_total = 0, sum(map(len, pieces))

    def add(il: int, kind: Kind, values: npt.NDArray[np.float32], first_pos: int) -> None:
        nonlocal n_done
        if (il, kind) in sums:
            sums[il, kind].add(torch.from_numpy(values[max(0, SKIP_TOKENS - first_pos) :]))
        # the last layer's keys come last, when the batch is as good as done
        if progress is not None and il == layers[-1] and kind == "q_pre":
            n_done += len(values)
            progress(n_done, n_total)

    with _one_torch_thread():
        for piece in pieces:
            engine.evaluate(piece, add)
    return sums


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """llama.cpp's threads keep spinning while a callback runs, and more of torch's would only wait for them."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
