"""Whether a device scores and moves as the equations say: a tiny model, every layer on that device.

The library's scores, and what it makes of them, are compared with those that ``scoring`` makes of what lies in the
cache, and the rows that a round moved with what they were, byte for byte. ``doctor`` runs it on each device; the tests
of the engine make the same comparisons on real models.

Knows nothing of how it is shown.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .config import EvictionConfig, RuntimeConfig
from .engine import native
from .engine.cache_rows import read_rows
from .engine.contexts import Context, Model
from .engine.devices import Device
from .errors import TriattnError
from .geometry import Geometry, write_geometry
from .model import scoring
from .model.metadata import read_stats
from .model.model_info import ModelInfo, read_model_info
from .model.stats import TriattnStats

TOLERANCE = 1e-3
"""largest error of a score, as a part of the range of its head's scores"""
TOLERANCE_GPU = 5e-3
"""the same on a GPU, which may multiply with the 10 bits of TF32"""

_GEOMETRY = Geometry(
    name="selftest",
    title="Self-test",
    arch="qwen3",
    n_layer=2,
    n_embd=256,
    n_ff=256,
    n_head=8,
    n_head_kv=2,
    head_dim=128,
    n_vocab=512,
    n_ctx_train=4096,
    rope_freq_base=1e6,
    rms_eps=1e-6,
    qk_norm=True,
)

_EVICTION = EvictionConfig(budget_tokens=160, window=16, n_keep=4, cold="off")
_N_TOKENS = 256

_CACHES = (("f16", True), ("q8_0", True), ("f16", False))
"""type of the cache, and flash attention: without it V lies transposed"""

Rows = Mapping[tuple[int, int, bool], Mapping[int, bytes]]
"""(layer, KV head, is V) -> position -> the row as it lies in the cache"""


@dataclass(frozen=True)
class Result:
    """One device, all kinds of cache."""

    device: str
    n_scores: int
    """scores compared"""
    score_error: float
    """largest error of a score or a ranking, as a part of the range of its head's"""
    tolerance: float
    n_rows: int
    """rows compared after a round, K and V"""
    n_moved: int
    """of the K rows, those that lay in another cell before"""
    n_wrong: int
    """rows that are not what they were"""
    elapsed_s: float

    @property
    def problem(self) -> str | None:
        """What is wrong; None if all is well."""
        if not self.score_error <= self.tolerance:  # not a number is wrong too
            return f"scores are off by {self.score_error:.1e} of their range, {self.tolerance:.0e} at most are right"
        if self.n_wrong:
            return f"{self.n_wrong} of {self.n_rows} rows changed when a round moved them"
        if not self.n_moved:
            return "the round moved nothing"
        return None


def run_selftest(device: Device) -> Result:
    """Test one device, in a few seconds.

    Raises
    ------
    TriattnError
        The model cannot be loaded there, or a round fails.
    """
    began_s = time.perf_counter()
    n_scores = n_rows = n_moved = n_wrong = 0
    errors = []
    with tempfile.TemporaryDirectory(prefix="triattn-selftest-") as folder:
        path = write_geometry(_GEOMETRY, Path(folder) / "model.gguf")
        info, stats = read_model_info(path), read_stats(path)
        assert stats is not None  # a geometry's file carries some
        tokens = [3 + i * 97 % 400 for i in range(_N_TOKENS + 2 * _EVICTION.window)]
        for cache_type, flash_attn in _CACHES:
            config = RuntimeConfig(
                n_batch=_N_TOKENS,
                n_ubatch=_N_TOKENS,
                cache_type_k=cache_type,
                cache_type_v=cache_type,
                flash_attn=flash_attn,
            )
            with Model(path, config, device=device) as model, model.context(_EVICTION, 1024) as context:
                context.prefill(tokens[:_N_TOKENS])
                for n_past in (_N_TOKENS, len(tokens)):
                    context.prefill(tokens[context.n_past : n_past])
                    n, error = compare_scores(context.handle, context.n_past, info, stats)
                    n_scores += n
                    errors += [error, compare_ranking(context, info)]
                    before, n_moved_before = cached_rows(context.handle, info), context.stats().n_rows_moved
                    native.evict(context.handle)
                    after = cached_rows(context.handle, info)
                    n_rows += sum(len(rows) for rows in after.values())
                    n_wrong += len(changed_rows(before, after))
                    n_moved += context.stats().n_rows_moved - n_moved_before
                if not np.isfinite(context.decode(tokens[:1], n_logits=1)).all():
                    raise TriattnError("what it computes after a round is not a number", where=device.name)
    return Result(
        device=device.name,
        n_scores=n_scores,
        score_error=float(np.max(errors)),  # NaN if one is
        tolerance=TOLERANCE_GPU if device.is_gpu else TOLERANCE,
        n_rows=n_rows,
        n_moved=n_moved,
        n_wrong=n_wrong,
        elapsed_s=round(time.perf_counter() - began_s, 3),
    )


def compare_scores(
    ctx: int, t: int, info: ModelInfo, stats: TriattnStats, ropes: Mapping[int, scoring.RopeParams] | None = None
) -> tuple[int, float]:
    """Score a context's first sequence, and again with NumPy from the keys that lie in its cache.

    Parameters
    ----------
    t : int
        Position of the next token.
    ropes : mapping, optional
        Layer -> its RoPE, where the layers of a model differ.

    Returns
    -------
    n_scores : int
        How many were compared.
    error : float
        The largest difference, as a part of the range of its head's scores; NaN if a score is not a number.
    """
    native.score(ctx)
    rope = scoring.RopeParams.of(info)
    n_scores, errors = 0, [0.0]
    for il in native.get_layers(ctx):
        cells = native.get_scores(ctx, il, 0)[1]
        keys = np.stack([read_rows(ctx, il, h, cells) for h in range(info.n_head_kv[il])], axis=1)
        i = stats.layers.index(il)
        of_layer = rope if ropes is None else ropes[il]
        wanted = scoring.score(stats.q_mean[i], stats.q_abs[i], keys, t, of_layer)
        for head in range(info.n_head[il]):
            got, _ = native.get_scores(ctx, il, head)
            n_scores += got.size
            errors.append(float(np.abs(got - wanted[head]).max() / np.ptp(wanted[head])))
    return n_scores, float(np.max(errors))


def compare_ranking(context: Context, info: ModelInfo) -> float:
    """What a device makes of its scores, z-scores with those of the values beside, and NumPy of the same scores.

    Returns
    -------
    error : float
        The largest difference, as a part of the range of its KV head's; NaN if one is not a number.
    """
    seen: list[native.Round] = []
    context.rank_with(lambda this: seen.append(replace(this, cells=this.cells.copy(), scores=this.scores.copy())))
    native.score(context.handle)
    cells, ranked = seen[-1].cells, iter(seen[-1].scores)
    errors = []
    for il in native.get_layers(context.handle):
        n_head_kv = info.n_head_kv[il]
        heads = np.stack([native.get_scores(context.handle, il, h)[0] for h in range(info.n_head[il])])
        values = np.stack([read_rows(context.handle, il, h, cells, is_v=True) for h in range(n_head_kv)], axis=1)
        wanted = scoring.group_max(scoring.zscore(heads), n_head_kv)
        for z in wanted + _EVICTION.weight_v * scoring.value_scores(values):
            errors.append(float(np.abs(next(ranked) - z).max() / np.ptp(z)))
    return float(np.max(errors))


def cached_rows(ctx: int, info: ModelInfo) -> Rows:
    """Every row that the first sequence holds, by token."""
    rows = {}
    for il in native.get_layers(ctx):
        for head_kv in range(info.n_head_kv[il]):
            pos, cells = native.get_kept(ctx, il, head_kv)
            for is_v in (False, True):
                data = native.get_rows(ctx, il, head_kv, cells, is_v=is_v)
                rows[il, head_kv, is_v] = {int(p): row.tobytes() for p, row in zip(pos, data, strict=True)}
    return rows


def changed_rows(before: Rows, after: Rows) -> list[tuple[int, int, bool, int]]:
    """(layer, KV head, is V, position) of the rows after a round that are not what they were before it."""
    return [(*key, pos) for key, rows in after.items() for pos, row in rows.items() if before[key].get(pos) != row]
