"""What the cold tier takes of main memory: the rows of every token, evicted or not.

As ``llama-triattn-store.h`` lays them out: slabs of so many tokens of all layers that evict.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import Cold
from ..engine.context_options import ContextOptions
from ..model.model_info import ModelInfo

SLAB = 512
"""tokens"""
AUTO_PART = 0.75
"""of what is free, that ``auto`` may take"""


@dataclass(frozen=True)
class ColdPlan:
    """Bytes, and tokens of all sequences together."""

    token_bytes: int
    """of one token in all layers that evict"""
    needed: int
    """for full contexts"""
    limit: int
    """what it may grow to"""

    @property
    def held(self) -> int:
        """With full contexts."""
        return min(self.needed, self.limit)

    @property
    def n_tokens(self) -> int | None:
        """After so many tokens rows are destroyed for good; None: never."""
        return None if self.limit >= self.needed else self.limit // self.token_bytes


def cold_plan(info: ModelInfo, shape: ContextOptions, free: int, cold: Cold) -> ColdPlan | None:
    """The cold tier of contexts of this shape where `free` bytes of main memory are left; None if it is off."""
    if cold == "off":
        return None
    layers = range(info.n_layer) if info.full_layers is None else info.full_layers
    token_bytes = sum(info.kv_bytes_of_layer(il, shape.type_k, shape.type_v) for il in layers)
    needed = -(-shape.n_ctx // SLAB) * SLAB * shape.n_seq_max * token_bytes
    return ColdPlan(token_bytes, needed, max(int(free * AUTO_PART), 0) if cold == "auto" else cold)
