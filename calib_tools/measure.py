"""Run held-out text through a model and look at its queries and keys: the figures behind ``inspect --measure``.

The same engines as for calibration, and other texts than the calibration's. Knows nothing of what is made of the
figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from triattn_local.errors import CalibrationError, StatsError
from triattn_local.inspection.evidence import N_SINK, N_WINDOW, Evidence, LayerEvidence
from triattn_local.model.model_info import ModelInfo
from triattn_local.model.scoring import RopeParams
from triattn_local.model.stats import TriattnStats
from triattn_local.support.interrupts import stop_for_sure
from triattn_local.support.progress import Count

from .choose import choose
from .corpus import Corpus, heldout_corpus, read_corpus
from .decoder import attention_scale, freq_factors
from .engine_runtime import Recorded, RuntimeEngine
from .engine_torch import TorchEngine, best_device
from .tokens import SKIP_TOKENS, encode_document, open_vocabulary
from .weights import Weights

DEFAULT_TOKENS = 3072
MAX_SEQUENCE = 2048
MIN_SEQUENCE = 256
"""half of it is the future, and sinks and window leave too few candidates of less"""


def measure(
    info: ModelInfo,
    stats: TriattnStats,
    corpus: Sequence[Path] = (),
    n_tokens: int = DEFAULT_TOKENS,
    progress: Count | None = None,
    *,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
) -> Evidence:
    """Measure how far a model's statistics hold on text that they were not made of.

    Parameters
    ----------
    info : ModelInfo
    stats : TriattnStats
        Checked against the model.
    corpus : sequence of Path
        Texts; the bundled held-out ones if there are none. One sequence is read of each.
    n_tokens : int
        In all, evenly from the texts.
    progress : callable, optional
        Called with (tokens done, tokens in all).

    Raises
    ------
    CalibrationError
        The texts are too short, or the model cannot be run.
    StatsError
        The statistics have no key centres, because they were imported.
    """
    if not stats.k_mean:
        raise StatsError(
            "statistics have no centres of keys, which curves over distance need",
            where=str(info.path),
            fix="make them with `triattn-local convert`",
        )
    text = read_corpus(corpus) if corpus else heldout_corpus()
    sequences = _sequences(info, text, n_tokens)
    n_longest = max(map(len, sequences))
    with Weights(info) as weights:
        engine = choose(info, weights, n_gpu_layers).engine
        rope = RopeParams.of(info, freq_factors(info, weights))
    domains = [document.name for document in text.documents]
    found = {
        il: LayerEvidence(
            stats.q_mean[i],
            stats.q_abs[i],
            stats.k_mean[i],
            rope if stats.q_abs[i].shape[1] < info.head_dim else replace(rope, n_rot=0),
            attention_scale(info),
            domains,
            n_longest,
        )
        for i, il in enumerate(stats.layers)
    }
    n_total = sum(map(len, sequences))
    with stop_for_sure() as check:

        def tell(n_done: float) -> None:
            check()
            if progress is not None:
                progress(int(n_done), n_total)

        run = _run_torch if engine == "torch" else _run_runtime
        run(info, found, sequences, tell, n_threads, n_gpu_layers)
    return Evidence(text.label, engine, n_total, tuple(domains), stats.layers, tuple(found[il] for il in stats.layers))


Tell = Callable[[float], None]


def _sequences(info: ModelInfo, text: Corpus, n_tokens: int) -> list[list[int]]:
    n_each = min(n_tokens // len(text.documents), MAX_SEQUENCE, info.n_ctx_train)
    with open_vocabulary(info.path) as vocabulary:
        head = [] if vocabulary.bos is None else [vocabulary.bos]
        sequences = [(head + encode_document(vocabulary, document))[:n_each] for document in text.documents]
    shortest = min(map(len, sequences))
    if shortest < MIN_SEQUENCE or shortest // 2 <= N_SINK + N_WINDOW:
        raise CalibrationError(
            f"gives sequences of {shortest} tokens, too few to measure",
            where=text.name,
            fix=f"give longer texts, or --tokens {MIN_SEQUENCE * len(text.documents)} or more",
        )
    return sequences


def _run_torch(
    info: ModelInfo,
    found: dict[int, LayerEvidence],
    sequences: list[list[int]],
    tell: Tell,
    n_threads: int | None,
    n_gpu_layers: int,
) -> None:
    n_layer, n_total = max(found) + 1, sum(map(len, sequences))
    with Weights(info) as weights:
        engine = TorchEngine(info, weights, best_device(n_gpu_layers), n_threads)
        hidden = engine.start(sequences)
        turn: dict[int, int] = dict.fromkeys(found, 0)

        def look(il: int, q_pre: torch.Tensor, k_pre: torch.Tensor) -> None:
            found[il].add(q_pre.cpu().numpy(), k_pre.cpu().numpy(), turn[il], SKIP_TOKENS)
            turn[il] += 1

        while hidden.next_layer < n_layer:
            tell(n_total * hidden.next_layer / n_layer)
            engine.step(hidden, found, look)
    tell(n_total)


def _run_runtime(
    info: ModelInfo,
    found: dict[int, LayerEvidence],
    sequences: list[list[int]],
    tell: Tell,
    n_threads: int | None,
    n_gpu_layers: int,
) -> None:
    n_longest = max(map(len, sequences))
    n_done = 0.0
    with RuntimeEngine(
        info.path, n_ctx=n_longest, n_batch=n_longest, n_threads=n_threads, n_gpu_layers=n_gpu_layers
    ) as engine:
        waiting: dict[int, dict[Recorded, npt.NDArray[np.float32]]] = {il: {} for il in found}
        turn: dict[int, int] = dict.fromkeys(found, 0)

        def look(il: int, kind: Recorded, values: npt.NDArray[np.float32], first_pos: int) -> None:
            nonlocal n_done
            assert first_pos == 0, "a sequence goes through in one batch"
            if il not in found:
                return
            both = waiting[il]
            both[kind] = values.copy()
            if len(both) == 2:
                found[il].add(both["q_pre"], both["k_pre"], turn[il], SKIP_TOKENS)
                both.clear()
                turn[il] += 1
                n_done += len(values) / len(found)
                tell(n_done)

        for tokens in sequences:
            engine.evaluate(tokens, look)
