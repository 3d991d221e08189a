"""A ranking of your own, measured against the engine's: two that docs/LOG.md has figures of.

python rankings.py MODEL.triattn.gguf

`value` adds the length of a token's value to the paper's score. It helped, and the engine has it: `weight_v`. `mass`
ranks by the expected share of attention, and did not help. Copy one, and change what it computes.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from triattn_local import Context, EvictionConfig, RuntimeConfig
from triattn_local.engine import native
from triattn_local.engine.cache_rows import read_rows
from triattn_local.evaluation.methods import METHODS, Method
from triattn_local.evaluation.report import markdown
from triattn_local.evaluation.runner import Grid, run_grid
from triattn_local.evaluation.summary import summarise
from triattn_local.evaluation.tasks import pick_tasks
from triattn_local.evaluation.tasks.base import Size
from triattn_local.model.scoring import STD_FLOOR, zscore

Rank = Callable[[Context, native.Round], np.ndarray]
"""new scores of a round, [n_set, n_candidates], the highest stay: a set is a KV head of a layer, layer by layer"""


def sets(context: Context) -> list[tuple[int, int]]:
    """(layer, KV head) of each set of the mode per-layer-head."""
    n_head_kv = native.get_stats(context.handle)[0].n_head_kv
    return [(il, head) for il in native.get_layers(context.handle) for head in range(n_head_kv)]


def value(weight: float) -> Rank:
    """Add the z-score of log |v|: a token counts by what it would add to the output."""

    def rank(context: Context, this: native.Round) -> np.ndarray:
        v = [read_rows(context.handle, il, head, this.cells, is_v=True) for il, head in sets(context)]
        return this.scores + weight * zscore(np.log(np.linalg.norm(v, axis=-1) + STD_FLOOR))

    return rank


def mass(context: Context, this: native.Round) -> np.ndarray:
    """Expected share of attention: softmax of each query head's scores, summed over the query heads of a KV head."""
    res = np.empty(this.scores.shape)
    n_group = context.model.n_head // native.get_stats(context.handle)[0].n_head_kv
    for row, (il, head) in enumerate(sets(context)):
        scores = [native.get_scores(context.handle, il, head * n_group + g)[0] for g in range(n_group)]
        logits = np.array(scores, np.float64) / math.sqrt(context.model.head_dim)
        p = np.exp(logits - logits.max(axis=-1, keepdims=True))
        res[row] = (p / p.sum(axis=-1, keepdims=True)).sum(axis=0)
    return res


def method(name: str, about: str, rank: Rank) -> Method:
    """A line of the table. On the paper's scores, so that the idea is seen alone."""

    def attach(context: Context) -> None:
        def write(this: native.Round) -> None:
            this.scores[:] = rank(context, this)

        context.rank_with(write)

    return Method(name, about, {"weight_v": 0.0}, attach)


RANKINGS = (
    method("value-0.5", "z-score of log |v| added, times 0.5: the engine's own weight_v", value(0.5)),
    method("mass", "expected share of attention", mass),
)


if __name__ == "__main__":
    model = Path(sys.argv[1])
    methods = (*(METHODS[name] for name in ("full", "per-layer-head", "paper")), *RANKINGS)
    size = Size(n_tokens=768, n_cases=1, texts=["novel"])
    grid = Grid(pick_tasks("nll"), methods, (0.25,), size, EvictionConfig(window=64))
    with tempfile.TemporaryDirectory() as folder:
        lines = run_grid(model, RuntimeConfig(n_batch=64), grid, Path(folder), progress=lambda step: print(step.text))
    print(markdown(summarise(lines), model.stem, "rankings.py"))
