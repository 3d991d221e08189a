"""What a context is made with: the one list, for llama.cpp's C API and for llama-server.

Whoever makes a context, or reckons what one takes, starts from here, so that the same settings give the same bytes.
Knows how the two spell an option, and nothing of where its value comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

import gguf

from ..config import RopeScaling, RuntimeConfig


@dataclass(frozen=True, kw_only=True)
class ContextOptions:
    """Sizes in tokens."""

    n_ctx: int
    """logical context of each sequence"""
    n_batch: int = RuntimeConfig.n_batch
    n_ubatch: int = RuntimeConfig.n_ubatch
    n_seq_max: int = RuntimeConfig.n_seq_max
    """sequences, each with cells of its own unless kv_unified"""
    kv_unified: bool = False
    """one buffer of cells for all sequences"""
    type_k: str = RuntimeConfig.cache_type_k
    type_v: str = RuntimeConfig.cache_type_v
    flash_attn: bool = RuntimeConfig.flash_attn
    rope_scaling: RopeScaling | None = None
    """None: as the file says"""

    @classmethod
    def of(cls, config: RuntimeConfig, n_ctx: int | None = None, n_seq: int | None = None) -> ContextOptions:
        """Those of a configuration, with another context or number of sequences if they are given."""
        return cls(
            n_ctx=config.n_ctx if n_ctx is None else n_ctx,
            n_batch=config.n_batch,
            n_ubatch=config.n_ubatch,
            n_seq_max=config.n_seq_max if n_seq is None else n_seq,
            type_k=config.cache_type_k,
            type_v=config.cache_type_v,
            flash_attn=config.flash_attn,
            rope_scaling=config.rope_scaling,
        )

    def c_fields(self) -> dict[str, int | bool | float]:
        """By the fields of ``llama_context_params``; what is not here keeps the library's default."""
        scaling: dict[str, int | float] = {}
        if self.rope_scaling is not None:
            scaling = {
                "rope_scaling_type": _SCALING_TYPES[self.rope_scaling.kind],
                "rope_freq_scale": 1.0 / self.rope_scaling.factor,
                "yarn_orig_ctx": self.rope_scaling.n_ctx_orig,
            }
        return {
            "n_ctx": self.n_ctx * self.n_seq_max,
            "n_batch": self.n_batch,
            "n_ubatch": min(self.n_ubatch, self.n_batch),
            "n_seq_max": self.n_seq_max,
            "kv_unified": self.kv_unified,
            "type_k": ggml_type(self.type_k),
            "type_v": ggml_type(self.type_v),
            "flash_attn_type": int(self.flash_attn),
            # the library's default would give layers that attend to a window as many cells as full attention
            "swa_full": False,
            **scaling,
        }

    def server_flags(self) -> dict[str, str | None]:
        """The same as flags of llama-server, None for one without a value. Its window caches are small by default."""
        scaling: dict[str, str | None] = {}
        if self.rope_scaling is not None:
            scaling = {
                "--rope-scaling": self.rope_scaling.kind,
                "--rope-scale": f"{self.rope_scaling.factor:.9g}",
                "--yarn-orig-ctx": str(self.rope_scaling.n_ctx_orig),
            }
        return {
            "--ctx-size": str(self.n_ctx * self.n_seq_max),
            "--batch-size": str(self.n_batch),
            "--ubatch-size": str(min(self.n_ubatch, self.n_batch)),
            "--parallel": str(self.n_seq_max),
            "--kv-unified" if self.kv_unified else "--no-kv-unified": None,
            "--cache-type-k": self.type_k,
            "--cache-type-v": self.type_v,
            "--flash-attn": "on" if self.flash_attn else "off",
            **scaling,
        }


_SCALING_TYPES = {"none": 0, "linear": 1, "yarn": 2}
"""llama.h's enum llama_rope_scaling_type"""


def ggml_type(name: str) -> int:
    """The number of a cache type in ggml.h."""
    return int(gguf.GGMLQuantizationType[name.upper()])
