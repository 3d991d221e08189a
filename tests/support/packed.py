"""GGUF files packed byte by byte, by nobody's code but this: for what reads, copies and refuses them.

``Packed`` starts as a sound little model of two layers. Tests change it and write it, or pull its bytes apart.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from triattn_local.model.model_info import fingerprint, read_model_info
from triattn_local.model.stats import TriattnStats, band_magnitude

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}

TYPE_F32, TYPE_F16, TYPE_Q8_0 = 0, 1, 8


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, item: object) -> bytes:
    if kind == STRING:
        assert isinstance(item, (str, bytes))
        return string(item)
    return struct.pack("<" + FORMATS[kind], item)


def pair(key: str, kind: int, item: object) -> bytes:
    return string(key) + struct.pack("<I", kind) + value(kind, item)


def array(key: str, kind: int, items: Sequence[object]) -> bytes:
    return string(key) + struct.pack("<IIQ", ARRAY, kind, len(items)) + b"".join(value(kind, item) for item in items)


def norms(seed: int = 0) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    """Tensors of the little model: norms, one that is not F32, one without "norm" in its name."""
    rng = np.random.default_rng(seed)

    def f32(n: int) -> tuple[int, tuple[int, ...], bytes]:
        return TYPE_F32, (n,), rng.standard_normal(n).astype("<f4").tobytes()

    return {
        "output_norm.weight": f32(32),
        "token_embd.weight": (TYPE_Q8_0, (32, 3), rng.bytes(3 * 34)),
        "blk.1.attn_norm.weight": f32(32),
        "blk.0.attn_norm.weight": f32(32),
        "blk.0.attn_norm.half": (TYPE_F16, (5,), rng.bytes(10)),
        "blk.0.attn_q.bias": f32(32),
    }


@dataclass
class Packed:
    """A model of 2 layers, 4 query heads on 2, 8 dimensions a head, RoPE over the first 6 of them."""

    arch: str = "llama"
    pairs: dict[str, bytes] = field(default_factory=dict)
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = field(default_factory=norms)
    version: int = 3
    alignment: int = 32

    def __post_init__(self) -> None:
        a = self.arch
        sound = {
            "general.architecture": (STRING, a),
            "general.name": (STRING, "Little Model"),
            f"{a}.block_count": (U32, 2),
            f"{a}.context_length": (U32, 4096),
            f"{a}.embedding_length": (U32, 32),
            f"{a}.attention.head_count": (U32, 4),
            f"{a}.attention.head_count_kv": (U32, 2),
            f"{a}.rope.dimension_count": (U32, 6),
            f"{a}.rope.freq_base": (F32, 50000.0),
        }
        self.pairs = {**{key: pair(key, *item) for key, item in sound.items()}, **self.pairs}

    def set(self, key: str, kind: int, item: object) -> Packed:
        key = key.replace("ARCH", self.arch)
        self.pairs[key] = pair(key, kind, item)
        return self

    def set_array(self, key: str, kind: int, items: Sequence[object]) -> Packed:
        key = key.replace("ARCH", self.arch)
        self.pairs[key] = array(key, kind, items)
        return self

    def drop(self, key: str) -> Packed:
        del self.pairs[key.replace("ARCH", self.arch)]
        return self

    def head(self) -> bytes:
        """Everything before the padding."""
        infos, offset = b"", 0
        for name, (kind, shape, data) in self.tensors.items():
            infos += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
            offset += len(data) + -len(data) % self.alignment
        start = struct.pack("<4sIQQ", b"GGUF", self.version, len(self.tensors), len(self.pairs))
        return start + b"".join(self.pairs.values()) + infos

    def bytes(self) -> bytes:
        raw = self.head()
        raw += bytes(-len(raw) % self.alignment)
        for _, _, data in self.tensors.values():
            raw += data + bytes(-len(data) % self.alignment)
        return raw

    def write(self, path: Path) -> Path:
        path.write_bytes(self.bytes())
        return path


def stats_for(path: Path, seed: int = 0, **changes: object) -> TriattnStats:
    """Sound statistics for any model, drawn at random."""
    info = read_model_info(path)
    assert info.full_layers is not None
    assert info.rope_type is not None
    rng = np.random.default_rng(seed)
    q_mean = tuple(rng.standard_normal((info.n_head[il], info.head_dim)).astype("f4") for il in info.full_layers)
    q_abs = tuple((band_magnitude(q, info.n_rot, info.rope_type) + 0.25).astype("f4") for q in q_mean)
    k_mean = tuple(rng.standard_normal((info.n_head_kv[il], info.head_dim)).astype("f4") for il in info.full_layers)
    made: dict[str, object] = {
        "layers": info.full_layers,
        "q_mean": q_mean,
        "q_abs": q_abs,
        "k_mean": k_mean,
        "n_tokens": 1000,
        "corpus": "a text sha256:00",
        "tool": "a tool",
        "model": fingerprint(path),
    }
    return TriattnStats(**{**made, **changes})  # type: ignore[arg-type]
