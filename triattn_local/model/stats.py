"""The statistics that TriAttention knows a model by: where its pre-RoPE queries gather.

The one structure that calibration makes, files carry and the engine reads. Arrays live in the file's own order of
heads and dimensions: GGUF files of the Llama family have Q and K permuted against Hugging Face's, and nothing here may
ever assume the latter. Knows nothing of files (``metadata``) and of the scores made from it (``scoring``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import StatsError
from .architectures import RopeType
from .model_info import ModelInfo

VERSION = 1

Floats = npt.NDArray[np.float32]

TRIANGLE_TOLERANCE = 1e-4
"""part of a_f by which |q_mean_f| may exceed it: both were rounded to float32, and may come from other tools"""

HIGH_R = 0.95
"""the paper's mark for a head whose queries point one way"""

_FIX = "calibrate the model again with `triattn-local convert`"


@dataclass(frozen=True, eq=False)
class TriattnStats:
    """Centres of one model's queries and keys before RoPE, after any query or key norm.

    Entry i of each tuple belongs to the model layer ``layers[i]``.
    """

    layers: tuple[int, ...]
    """model layers that have a full-attention KV cache, rising"""
    q_mean: tuple[Floats, ...]
    """q̄ = E[q], float32 [n_head, head_dim], pre-RoPE"""
    q_abs: tuple[Floats, ...]
    """a_f = E|q_f|, float32 [n_head, n_rot / 2], bands in the model's pair order; of a layer whose keys RoPE does not
    turn [n_head, head_dim], each dimension a band of its own"""
    k_mean: tuple[Floats, ...]
    """E[k], float32 [n_head_kv, head_dim], pre-RoPE; for reports only, and empty where nobody measured it"""
    n_tokens: int
    """tokens that were averaged"""
    corpus: str
    """name and sha256 of the calibration text"""
    tool: str
    """name and version of the writer, engine used"""
    model: str
    """fingerprint of the model that they were measured on"""
    version: int = VERSION

    def validate(self, info: ModelInfo) -> None:
        """Check that the statistics are sound and have the model's shape.

        Raises
        ------
        StatsError
            Unknown version, missing or unknown layers, wrong lengths, values that are not finite, a negative a_f, or
            |q̄_f| > a_f, which no queries can have.
        """
        if self.version != VERSION:
            raise StatsError(
                f"statistics have version {self.version}, this program reads {VERSION}",
                fix="update triattn-local, or " + _FIX,
            )
        if self.n_tokens < 1:
            raise StatsError(f"statistics of {self.n_tokens} tokens", fix=_FIX)
        rope_type = _rope_type(info)
        self._validate_layers(info)
        for i, il in enumerate(self.layers):
            n_head, n_head_kv, n_band = info.n_head[il], info.n_head_kv[il], info.n_band_of(il)
            if info.full_layers is None and self.q_abs[i].shape == (n_head, info.head_dim):
                n_band = info.head_dim  # the file does not tell; the library checks it once more
            arrays = [
                ("q_mean", self.q_mean[i], (n_head, info.head_dim)),
                ("q_abs", self.q_abs[i], (n_head, n_band)),
            ]
            if self.k_mean:
                arrays.append(("k_mean", self.k_mean[i], (n_head_kv, info.head_dim)))
            for name, array, shape in arrays:
                where = f"{name} of layer {il}"
                if array.shape != shape:
                    raise StatsError(
                        f"has shape {list(array.shape)}, the model needs {list(shape)}", where=where, fix=_FIX
                    )
                if not np.isfinite(array).all():
                    raise StatsError("has values that are not finite", where=where, fix=_FIX)
            _validate_bands(il, self.q_mean[i], self.q_abs[i], _n_rot(self.q_abs[i], info), rope_type)

    def check_belongs(self, fingerprint: str) -> None:
        """Check that the statistics were measured on the model with this fingerprint.

        Raises
        ------
        StatsError
            They belong to another model; the message has both fingerprints.
        """
        if self.model != fingerprint:
            raise StatsError(
                f"statistics belong to {self.model}, the model is {fingerprint}",
                fix="give the statistics of this model, or calibrate it with `triattn-local convert`",
            )

    def concentration(self, info: ModelInfo) -> tuple[npt.NDArray[np.float64], ...]:
        """R_f = |q̄_f| / a_f for each layer, float64 as ``q_abs`` in 0 ... 1: 1 is a single direction.

        A band without any magnitude has no direction, and counts as 0.
        """
        rope_type = _rope_type(info)
        per_layer = []
        for q_mean, q_abs in zip(self.q_mean, self.q_abs, strict=True):
            magnitude = band_magnitude(q_mean, _n_rot(q_abs, info), rope_type)
            per_layer.append(np.asarray(magnitude / np.where(q_abs > 0, q_abs, np.inf)))
        return tuple(per_layer)

    def head_concentration(self, info: ModelInfo) -> tuple[npt.NDArray[np.float64], ...]:
        """R of each head's dominant band for each layer, float64 [n_head]: what the paper reports of a head.

        Dominant is the band with the largest a_f |E k_f|, for it carries most of the head's logits; most other bands
        point anywhere and do not matter. Without k_mean the band with the largest a_f.
        """
        rope_type = _rope_type(info)
        per_layer = []
        for i, (concentration, q_abs) in enumerate(zip(self.concentration(info), self.q_abs, strict=True)):
            weight = np.asarray(q_abs, np.float64)
            if self.k_mean:
                keys = band_magnitude(self.k_mean[i], _n_rot(q_abs, info), rope_type)
                weight = weight * np.repeat(keys, len(q_abs) // len(keys), axis=0)
            dominant = np.argmax(weight, axis=-1)
            per_layer.append(concentration[np.arange(len(dominant)), dominant])
        return tuple(per_layer)

    def _validate_layers(self, info: ModelInfo) -> None:
        n = len(self.layers)
        if not n:
            raise StatsError("statistics have no layers", fix=_FIX)
        if not n == len(self.q_mean) == len(self.q_abs) or len(self.k_mean) not in (0, n):
            raise StatsError("statistics do not have every array for every layer", fix=_FIX)
        if any(not 0 <= il < info.n_layer for il in self.layers) or list(self.layers) != sorted(set(self.layers)):
            raise StatsError(
                f"layers {list(self.layers)} are not rising numbers below the model's {info.n_layer}", fix=_FIX
            )
        if info.full_layers is not None and self.layers != info.full_layers:
            missing = sorted(set(info.full_layers) - set(self.layers))
            foreign = sorted(set(self.layers) - set(info.full_layers))
            told = [f"layers {missing} are missing"] * bool(missing)
            told += [f"layers {foreign} have no full attention"] * bool(foreign)
            raise StatsError("statistics do not fit the model: " + ", ".join(told), fix=_FIX)


def bands(x: npt.NDArray[np.floating], n_rot: int, rope_type: RopeType) -> npt.NDArray[np.complex128]:
    """The complex pairs that RoPE turns: band f is x[2f] + i x[2f + 1] ("norm") or x[f] + i x[f + n_rot / 2] ("neox").

    Parameters
    ----------
    x : array [..., head_dim]
        Queries or keys, before or after RoPE.
    n_rot : int
        Rotated dimensions, the first of each head; the others are not part of any band.
    rope_type : "norm" or "neox"

    Returns
    -------
    complex128 [..., n_rot / 2]
    """
    x = np.asarray(x, dtype=np.float64)
    if rope_type == "norm":
        return np.asarray(x[..., 0:n_rot:2] + 1j * x[..., 1:n_rot:2])
    return np.asarray(x[..., : n_rot // 2] + 1j * x[..., n_rot // 2 : n_rot])


def band_magnitude(x: npt.NDArray[np.floating], n_rot: int, rope_type: RopeType) -> npt.NDArray[np.float64]:
    """|x_f| of each band, float64 [..., n_rot / 2]; RoPE does not change it. Parameters as ``bands``.

    Where RoPE turns nothing, n_rot 0, each dimension is a band of its own: [..., head_dim].
    """
    if n_rot == 0:
        return np.abs(np.asarray(x, dtype=np.float64))
    return np.asarray(np.abs(bands(x, n_rot, rope_type)))


def head_dim_of(fingerprint: str) -> int:
    """Dimensions of a head, from a model's fingerprint: what gives flat arrays in a file their shape.

    Raises
    ------
    StatsError
        The text is not a fingerprint.
    """
    match = re.fullmatch(r"[^/]+/L\d+/E\d+/H\d+/K\d+/D(\d+)/crc32:[0-9a-f]{8}", fingerprint)
    if match is None or int(match[1]) == 0:
        raise StatsError(f"{fingerprint!r} is not the fingerprint of a model", fix=_FIX)
    return int(match[1])


def _rope_type(info: ModelInfo) -> RopeType:
    if info.rope_type is None and not info.unrotated:
        raise StatsError("the model has no RoPE that this program knows", where=str(info.path))
    return info.rope_type or "neox"  # without RoPE there are no pairs


def _n_rot(q_abs: Floats, info: ModelInfo) -> int:
    """Rotated dimensions of the layer with these magnitudes: pairs are at most half as many as dimensions."""
    return 0 if q_abs.shape[-1] == info.head_dim else info.n_rot


def _validate_bands(il: int, q_mean: Floats, q_abs: Floats, n_rot: int, rope_type: RopeType) -> None:
    if (q_abs < 0).any():
        raise StatsError("has negative magnitudes", where=f"q_abs of layer {il}", fix=_FIX)
    excess = band_magnitude(q_mean, n_rot, rope_type) - q_abs.astype(np.float64) * (1 + TRIANGLE_TOLERANCE)
    # the mean of vectors is never longer than the mean of their lengths: else the bands are paired in another order
    if (excess > 1e-6 * float(np.max(q_abs, initial=0.0))).any():
        head, band = np.unravel_index(int(np.argmax(excess)), excess.shape)
        raise StatsError(
            f"E|q_f| is smaller than |E q_f| in head {head}, band {band}: made for another order of dimensions",
            where=f"q_abs of layer {il}",
            fix=_FIX,
        )
