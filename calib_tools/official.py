"""Statistics in the file format of the method's authors (``.pt``), in and out.

Their layout: ``{"metadata": {...}, "stats": {"layer00_head00": {"q_mean_real", "q_mean_imag", "q_abs_mean"}}}`` with a
value for each band of Hugging Face's half layout, band f being dimensions f and f + head_dim / 2 of the checkpoint's
projections. A Llama file has its rows permuted so that band f is dimensions 2f and 2f + 1: the bands are the same ones,
and so the values go over unchanged, into another place.

What the layout lacks: the keys' centres, which are for reports only and stay empty; dimensions that RoPE leaves alone,
so that models with partial RoPE are refused; and whose statistics they are, so that the person who imports them says.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from triattn_local.errors import StatsError
from triattn_local.model.model_info import ModelInfo, fingerprint
from triattn_local.model.stats import TriattnStats, bands
from triattn_local.support.atomic import atomic_write
from triattn_local.support.paths import shown
from triattn_local.version import __version__

_NAMES = ("q_mean_real", "q_mean_imag", "q_abs_mean")
_KEY = re.compile(r"layer(\d+)_head(\d+)")
_FIX = "give a file that TriAttention's own calibration made for this model"


def read_official(path: Path, info: ModelInfo) -> TriattnStats:
    """Statistics of a ``.pt`` file, in the order of dimensions of a GGUF.

    Parameters
    ----------
    path : Path
        Unpacked without running any code that it may hold.
    info : ModelInfo
        The model that they are for.

    Raises
    ------
    StatsError
        Not such a file, one that wants to run code, or not of this model's shape.
    """
    _check_whole_rope(info)
    payload = _load(path)
    metadata, heads = payload.get("metadata"), payload.get("stats")
    if not isinstance(metadata, Mapping) or not isinstance(heads, Mapping):
        raise _wrong(path, "has no metadata and stats")
    if metadata.get("rope_style", "half") != "half":
        raise _wrong(path, f"has RoPE style {metadata['rope_style']!r}, not 'half'")
    if metadata.get("head_dim", info.head_dim) != info.head_dim:
        raise _wrong(path, f"has heads of {metadata['head_dim']} dimensions, the model {info.head_dim}")
    found = _heads(path, heads, info)
    layers = tuple(sorted({il for il, _ in found}))
    # a model whose file does not tell its full-attention layers has those that the statistics have
    wanted = layers if info.full_layers is None else info.full_layers
    q_mean, q_abs = [], []
    for il in wanted:
        missing = [head for head in range(info.n_head[il]) if (il, head) not in found]
        if missing:
            raise _wrong(path, f"has no head {missing[0]} of layer {il}")
        rows = np.stack([found[il, head] for head in range(info.n_head[il])])
        q_mean.append(_from_bands(rows[:, 0], rows[:, 1], info))
        q_abs.append(rows[:, 2].copy())
    stats = TriattnStats(
        layers=wanted,
        q_mean=tuple(q_mean),
        q_abs=tuple(q_abs),
        k_mean=(),
        n_tokens=_count(metadata),
        corpus=f"{shown(path.name)} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",
        tool=f"triattn-local {__version__}, imported",
        model=fingerprint(info.path),
    )
    stats.validate(info)
    return stats


def write_official(path: Path, stats: TriattnStats, info: ModelInfo) -> None:
    """Write statistics as the method's authors do.

    Raises
    ------
    StatsError
        The model leaves dimensions out of RoPE, which the format cannot say.
    UsageError, DoesNotFitError
        The file cannot be written.
    """
    _check_whole_rope(info)
    assert info.rope_type is not None
    heads: dict[str, dict[str, torch.Tensor]] = {}
    for il, q_mean, q_abs in zip(stats.layers, stats.q_mean, stats.q_abs, strict=True):
        centre = bands(q_mean, info.n_rot, info.rope_type)
        for head in range(len(q_mean)):
            values = (centre[head].real, centre[head].imag, q_abs[head])
            heads[f"layer{il:02d}_head{head:02d}"] = {
                name: torch.from_numpy(np.array(value, np.float32)) for name, value in zip(_NAMES, values, strict=True)
            }
    metadata = {
        "num_traces": 1,
        "head_dim": info.head_dim,
        "dtype": "float32",
        "rope_style": "half",
        "rope_type": "yarn" if info.rope_scaling == "yarn" else "default",
        "sampled_heads": [[int(n) for n in _KEY.fullmatch(key).groups()] for key in heads],  # type: ignore[union-attr]
        # beyond the format's own: where they come from
        "num_tokens": stats.n_tokens,
        "corpus": stats.corpus,
        "tool": stats.tool,
        "model": stats.model,
    }
    n_bytes = sum(array.nbytes for array in (*stats.q_mean, *stats.q_abs)) + 2048 * len(heads)
    with atomic_write(path, n_bytes) as out:
        torch.save({"metadata": metadata, "stats": heads}, out)


def _load(path: Path) -> Mapping[str, Any]:
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise StatsError(f"cannot be read: {error.strerror}", where=str(path), fix=_FIX) from None
    except pickle.UnpicklingError:
        raise StatsError(
            "holds more than numbers, and would run code if it were loaded; it was not", where=str(path), fix=_FIX
        ) from None
    except Exception as error:  # torch has no error of its own for a file that is something else
        raise StatsError(f"is not a file of torch ({type(error).__name__})", where=str(path), fix=_FIX) from None
    if not isinstance(payload, Mapping):
        raise _wrong(path, "holds no statistics")
    return payload


def _heads(path: Path, heads: Mapping[str, Any], info: ModelInfo) -> dict[tuple[int, int], npt.NDArray[np.float32]]:
    """The three rows of each head of a layer with full attention, float32 [3, n_rot / 2]."""
    found = {}
    for key, values in heads.items():
        match = _KEY.fullmatch(str(key))
        if match is None or not isinstance(values, Mapping) or any(name not in values for name in _NAMES):
            raise _wrong(path, f"has an entry {str(key)[:40]!r} that is no head's")
        il, head = int(match[1]), int(match[2])
        if il >= info.n_layer or head >= info.n_head[il]:
            raise _wrong(path, f"has a head {head} of layer {il}, the model has no such")
        rows = [values[name] for name in _NAMES]
        if any(not isinstance(row, torch.Tensor) or row.shape != (info.n_rot // 2,) for row in rows):
            shapes = [list(getattr(row, "shape", ())) for row in rows]
            raise _wrong(path, f"has shapes {shapes} in layer {il}, head {head}, the model needs [{info.n_rot // 2}]")
        # sliding-window layers do not evict: theirs are not needed
        if info.full_layers is None or il in info.full_layers:
            found[il, head] = torch.stack([row.to(torch.float32) for row in rows]).numpy()
    return found


def _from_bands(
    real: npt.NDArray[np.float32], imag: npt.NDArray[np.float32], info: ModelInfo
) -> npt.NDArray[np.float32]:
    """Queries of a GGUF from their bands, float32 [n_head, head_dim]."""
    if info.rope_type == "norm":
        return np.stack([real, imag], axis=-1).reshape(len(real), -1)
    return np.concatenate([real, imag], axis=-1)


def _count(metadata: Mapping[str, Any]) -> int:
    """Tokens averaged, which files of the authors' own tool do not tell: then 1, as "at least"."""
    n = metadata.get("num_tokens", 1)
    return n if isinstance(n, int) and n > 0 else 1


def _check_whole_rope(info: ModelInfo) -> None:
    if info.rope_type is None or info.unrotated:
        raise StatsError("the model has no RoPE that this program knows", where=str(info.path))
    if info.n_rot != info.head_dim:
        raise StatsError(
            f"RoPE turns {info.n_rot} of {info.head_dim} dimensions, and the .pt format knows only those that it turns",
            where=str(info.path),
            fix="calibrate the model with `triattn-local convert`",
        )


def _wrong(path: Path, what: str) -> StatsError:
    return StatsError(what, where=str(path), fix=_FIX)
