"""A tiny model with a cold tier, and the bytes of the rows that its heads hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from engine import Engine, random_stats
from tiny_models import write_tiny

from triattn_local.config import EvictionConfig
from triattn_local.engine import native

COLD = EvictionConfig(budget_tokens=256, window=32, n_keep=4, cold="auto")


def text(n: int, shift: int = 0) -> list[int]:
    return [3 + (i * i * 31 + i * 97 + shift) % 250 for i in range(n)]


def open_engine(tiny: tuple[Path, Path], config: EvictionConfig, **options) -> Engine:
    model, stats = tiny
    return Engine(model, config, stats=stats, **{"n_ctx": 4096, "n_batch": 128, **options})


def kept(engine: Engine, seq: int = 0) -> list[dict[int, int]]:
    """token -> cell of each layer and head"""
    return [
        {int(p): int(c) for p, c in zip(*native.get_kept(engine.ctx, il, head, seq), strict=True)}
        for il in native.get_layers(engine.ctx)
        for head in range(2)
    ]


def raw_rows(
    engine: Engine, tokens: dict[int, int], il: int, head: int, seq: int = 0
) -> dict[int, tuple[bytes, bytes]]:
    """token -> the bytes of its K and V"""
    cells = np.array(list(tokens.values()), np.int32)
    k, v = (native.get_rows(engine.ctx, il, head, cells, is_v=is_v, seq_id=seq) for is_v in (False, True))
    return {p: (k[i].tobytes(), v[i].tobytes()) for i, p in enumerate(tokens)}


def first_rows(engine: Engine, tokens: list[int]) -> list[dict[int, tuple[bytes, bytes]]]:
    """Feed in small batches; the rows of every token as they were when it was read."""
    seen: list[dict[int, tuple[bytes, bytes]]] = [{} for _ in kept(engine)]
    for i in range(0, len(tokens), 32):
        engine.decode(tokens[i : i + 32])
        for j, of_set in enumerate(kept(engine)):
            new = {p: c for p, c in of_set.items() if p >= i}
            seen[j].update(raw_rows(engine, new, j // 2, j % 2))
    return seen


def assert_rows_are(engine: Engine, seen: list[dict[int, tuple[bytes, bytes]]]) -> None:
    for j, of_set in enumerate(kept(engine)):
        assert all(row == seen[j][p] for p, row in raw_rows(engine, of_set, j // 2, j % 2).items())


def tiny_model(folder: Path) -> tuple[Path, Path]:
    """A model and its statistics."""
    model = write_tiny(folder / "tiny.gguf")
    random_stats(model, range(4), folder / "tiny.stats.gguf")
    return model, folder / "tiny.stats.gguf"
