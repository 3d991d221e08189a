"""Queries and keys drawn around centres that are known: one layer's evidence without a model."""

from __future__ import annotations

import numpy as np

from triattn_local.inspection.evidence import LayerEvidence
from triattn_local.model import scoring
from triattn_local.model.architectures import RopeType
from triattn_local.model.scoring import RopeParams

N_HEAD, N_HEAD_KV, HEAD_DIM, N = 4, 2, 16, 300


def params(rope_type: RopeType = "neox", **more: float) -> RopeParams:
    return RopeParams(rope_type, 12, 10000.0, **more)  # type: ignore[arg-type]  # four dimensions are not rotated


def drawn(noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centres, and queries and keys that lie around them."""
    rng = np.random.default_rng(seed)
    q_mean, k_mean = rng.standard_normal((N_HEAD, HEAD_DIM)), rng.standard_normal((N_HEAD_KV, HEAD_DIM))
    q = q_mean + noise * rng.standard_normal((N, N_HEAD, HEAD_DIM))
    k = k_mean + noise * rng.standard_normal((N, N_HEAD_KV, HEAD_DIM))
    return q_mean, k_mean, q.astype(np.float32), k.astype(np.float32)


def observed(noise: float, rope: RopeParams | None = None) -> LayerEvidence:
    q_mean, k_mean, q, k = drawn(noise)
    rope = rope or params()
    q_abs = scoring.band_magnitude(q, rope.n_rot, rope.rope_type).mean(axis=0)
    layer = LayerEvidence(q_mean, q_abs, k_mean, rope, 0.25, ("a", "b"), N)
    layer.add(q, k, 0, 16)
    layer.add(q[::-1].copy(), k, 1, 16)
    return layer
