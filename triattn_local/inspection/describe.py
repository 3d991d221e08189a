"""What a model file is, what a token of it costs, and whose statistics it carries: what ``inspect`` and ``ls`` tell.

Reads headers only, and asks the library where there is one, which reads no more. Statistics that cannot be used are
part of what is told, not an error. Knows nothing of how it is shown.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..config import EvictionConfig, RuntimeConfig
from ..engine import native
from ..engine.native import LayerInfo
from ..errors import StatsError, TriattnError
from ..model.gguf_file import read_gguf
from ..model.metadata import KEY_VERSION, read_stats
from ..model.model_info import ModelInfo, fingerprint, padded, read_model_info
from ..model.stats import HIGH_R
from ..support.paths import is_file

CONTEXTS = (8192, 32768, 131072)
BUDGETS = (1024, 2048, 4096)


@dataclass(frozen=True)
class StatsReport:
    """The statistics beside a model, and what is wrong with them."""

    path: str
    """the model itself, or a sidecar"""
    problem: str | None
    """None: they can be used with this model"""
    fix: str | None
    n_tokens: int | None = None
    corpus: str | None = None
    tool: str | None = None
    model: str | None = None
    """fingerprint of the model they were measured on"""
    n_layers: int | None = None
    concentration: float | None = None
    """median over heads of R = |q_mean_f| / a_f of the head's dominant band; 1: its queries point one way"""
    share_high: float | None = None
    """share of heads with R > 0.95"""
    r: tuple[tuple[float, ...], ...] | None = None
    """R of every layer and head"""


@dataclass(frozen=True)
class MemoryRow:
    """Bytes of the KV cache for one logical context."""

    n_ctx: int
    full: int
    """with full attention"""
    evicting: dict[int, int]
    """budget in tokens -> bytes"""


@dataclass(frozen=True)
class ModelReport:
    """All that the file says of a model."""

    path: str
    name: str
    architecture: str
    fingerprint: str
    file_bytes: int
    """of all shards"""
    n_layer: int
    n_layer_full: int | None
    """layers whose cache grows with the context; None: neither the library nor the file alone tells"""
    layers: tuple[LayerInfo, ...] | None
    """what the library says of each; None: there is none, or it cannot load the file"""
    n_head: int
    """query heads of the first layer with attention"""
    n_head_kv: int
    head_dim: int
    n_rot: int
    rope: str
    n_ctx_train: int
    sliding_window: int
    cache_type_k: str
    cache_type_v: str
    kv_bytes_per_token: int
    memory: tuple[MemoryRow, ...]
    """what the cache costs, by context and budget"""
    statistics: StatsReport | None
    """None: there are none"""

    @property
    def layers_text(self) -> str:
        """Which layers evict, in a line."""
        if self.layers is not None:
            from ..engine.layers import layers_text

            return layers_text(self.layers)
        full = "?" if self.n_layer_full is None else str(self.n_layer_full)
        window = f", {self.sliding_window} in the others" if self.sliding_window else ""
        return f"{self.n_layer}, {full} with full attention{window}"

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def inspect_model(
    path: Path, *, sidecar: Path | None = None, cache_type_k: str = "f16", cache_type_v: str = "f16"
) -> ModelReport:
    """Describe a model and the statistics in it, or in a sidecar.

    Raises
    ------
    ModelNotFoundError
        The file is not a readable model.
    UsageError
        A cache type that this model cannot have.
    """
    info = read_model_info(path)
    own = fingerprint(path)
    layers = _asked(info)
    if layers is not None and info.full_layers is None:
        grows = tuple(il for il, layer in enumerate(layers) if layer.why_kept is None)
        info = replace(info, full_layers=grows or None)
    first = next((il for il, n in enumerate(info.n_head_kv) if n), 0)
    return ModelReport(
        path=str(path),
        name=info.name,
        architecture=info.arch,
        fingerprint=own,
        file_bytes=sum(shard.stat().st_size for shard in info.shards if is_file(shard)),
        n_layer=info.n_layer,
        n_layer_full=None if info.full_layers is None else len(info.full_layers),
        layers=layers,
        n_head=info.n_head[first],
        n_head_kv=info.n_head_kv[first],
        head_dim=info.head_dim,
        n_rot=info.n_rot,
        rope=_rope(info),
        n_ctx_train=info.n_ctx_train,
        sliding_window=info.n_swa,
        cache_type_k=cache_type_k,
        cache_type_v=cache_type_v,
        kv_bytes_per_token=info.kv_bytes_per_token(cache_type_k, cache_type_v),
        memory=_memory(info.kv_bytes_per_token(cache_type_k, cache_type_v)),
        statistics=_statistics(info, own, sidecar or path),
    )


def _asked(info: ModelInfo) -> tuple[LayerInfo, ...] | None:
    try:
        native.library()
        from ..engine.layers import ask_layers

        return ask_layers(info)
    except TriattnError:  # a file can be described where nothing can load it
        return None


def glance(path: Path) -> tuple[str, bool]:
    """(architecture, whether statistics are inside), as quickly as a header can be read; "?" for a damaged file."""
    try:
        file = read_gguf(path)
        return file.text("general.architecture") or "?", KEY_VERSION in file
    except TriattnError:
        return "?", False


def _statistics(info: ModelInfo, own: str, path: Path) -> StatsReport | None:
    try:
        stats = read_stats(path)
        if stats is None:
            if path == info.path:
                return None
            raise StatsError(
                "holds no statistics", where=str(path), fix="give the sidecar that convert --sidecar wrote"
            )
    except StatsError as error:
        return StatsReport(str(path), error.what, error.fix)
    problem = fix = None
    try:
        stats.check_belongs(own)
        stats.validate(info)
        r = stats.head_concentration(info)
    except StatsError as error:
        r = ()
        problem, fix = (f"{error.where}: {error.what}" if error.where else error.what), error.fix
    return StatsReport(
        path=str(path),
        problem=problem,
        fix=fix,
        n_tokens=stats.n_tokens,
        corpus=stats.corpus,
        tool=stats.tool,
        model=stats.model,
        n_layers=len(stats.layers),
        concentration=round(float(np.median(np.concatenate(r))), 4) if r else None,
        share_high=round(float((np.concatenate(r) > HIGH_R).mean()), 4) if r else None,
        r=tuple(tuple(round(float(one), 4) for one in layer) for layer in r) if r else None,
    )


def _memory(bytes_per_token: int) -> tuple[MemoryRow, ...]:
    def cells(budget: int) -> int:
        return padded(budget + EvictionConfig.window + RuntimeConfig.n_batch)

    return tuple(
        MemoryRow(n_ctx, n_ctx * bytes_per_token, {b: min(cells(b), n_ctx) * bytes_per_token for b in BUDGETS})
        for n_ctx in CONTEXTS
    )


def _rope(info: ModelInfo) -> str:
    if info.rope_type is None:
        return "none" if info.is_known else "unknown"
    base = f"{info.rope_type}, base {info.rope_freq_base:g}"
    return base if info.rope_freq_scale == 1 else f"{base}, {info.rope_scaling} x{1 / info.rope_freq_scale:g}"
