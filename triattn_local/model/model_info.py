"""What a GGUF file says about its model: layers, heads, RoPE, and what its KV cache costs.

Read from the header alone, in a tenth of a second and without llama.cpp, so that ``plan``, ``ls`` and ``convert`` can
say what a file is before anything is loaded. What the file does not tell, ``architectures`` may; what neither does is
None, and the loaded library is the one to ask.

Knows nothing of TriAttention's statistics, and never reads weights but the norms of ``fingerprint``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ..errors import ModelNotFoundError, UsageError
from .architectures import (
    ATTENTION_INTERVALS,
    ENCODERS,
    HALF_N_ROT,
    LAYERS_UNKNOWN,
    NEOX_WITH_SECTIONS,
    RECURRENT,
    ROPE_RULES,
    ROPE_TYPES,
    SWA_RULES,
    RopeType,
)
from .gguf_file import GGML_TYPE_F32, GgufFile, TensorInfo, read_gguf
from .shard_names import ending, numbers, shards

MAX_LAYERS = 512
"""llama.cpp's LLAMA_MAX_LAYERS"""
MAX_EXPERTS = 1024
"""llama.cpp's LLAMA_MAX_EXPERTS"""
CELL_STEP = 256
"""llama.cpp gives a cache so many cells at a time"""
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")


@dataclass(frozen=True)
class Split:
    """Place of a file in a model that is split over several files."""

    index: int
    """0 for the first"""
    count: int


@dataclass(frozen=True)
class ModelInfo:
    """One model, as its file describes it. Layers are counted without those of multi-token prediction."""

    path: Path
    arch: str
    name: str
    n_layer: int
    n_embd: int
    n_head: tuple[int, ...]
    """query heads of each layer"""
    n_head_kv: tuple[int, ...]
    """key-value heads of each layer; 0 for a layer without attention"""
    head_dim: int
    """dimensions of a query or key head in full-attention layers"""
    head_dim_v: int
    n_rot: int
    """rotated dimensions of a head, at most ``head_dim``"""
    rope_type: RopeType | None
    """how dimensions pair up; None: no RoPE, or an unknown architecture (see ``is_known``)"""
    rope_freq_base: float
    rope_freq_scale: float
    """1 / scaling factor"""
    rope_scaling: str
    """"none", "linear", "yarn" or "longrope" """
    rope_attn_factor: float
    n_ctx_orig: int
    """context that RoPE was trained for before YaRN, in tokens"""
    n_ctx_train: int
    n_swa: int
    """sliding window in tokens, 0 for none"""
    full_layers: tuple[int, ...] | None
    """layers whose cache grows with the context; None: the file alone does not tell, ask the library"""
    unrotated: tuple[int, ...]
    """layers whose keys RoPE does not turn, of those that have any; of a model whose layers are known"""
    is_causal: bool
    is_mla: bool
    """keys are cached as a latent (multi-head latent attention)"""
    v_in_k: bool
    """values are a part of the latent, and are not cached beside it"""
    file_bytes: int
    """size of this file"""
    split: Split | None

    @property
    def is_known(self) -> bool:
        """Whether ``architectures`` has this one; if not, ``rope_type`` and ``full_layers`` are None."""
        return self.arch in ROPE_TYPES

    @property
    def is_recurrent(self) -> bool:
        return self.arch in RECURRENT

    @property
    def obstacle(self) -> str | None:
        """Why TriAttention cannot work on this model, in a clause; None: it can, or only the library knows."""
        if not self.is_causal:
            return f"is an encoder ({self.arch})"
        if self.is_recurrent:
            return f"is recurrent ({self.arch}) and has no KV cache"
        if self.is_known and (self.rope_type is None or self.n_rot == 0) and not self.unrotated:
            return f"has no RoPE ({self.arch})"
        if self.is_mla:
            return "caches a latent instead of keys (multi-head latent attention)"
        return None

    def n_rot_of(self, il: int) -> int:
        """Rotated dimensions of a head in one layer, 0 where RoPE turns nothing."""
        return 0 if il in self.unrotated else self.n_rot

    def n_band_of(self, il: int) -> int:
        """Values that a head's magnitudes have in one layer: of pairs, or of dimensions where RoPE turns nothing."""
        return self.n_rot_of(il) // 2 or self.head_dim

    @property
    def shards(self) -> tuple[Path, ...]:
        """All files of the model, in order; this file alone if it is not split."""
        return shard_paths(self.path, self.split)

    def kv_bytes_per_token(self, type_k: str = "f16", type_v: str = "f16") -> int:
        """Bytes that one token of context adds to a cache without eviction.

        Sliding-window layers stop growing and do not count; of a model whose ``full_layers`` are not known, all layers
        with attention count.

        Raises
        ------
        UsageError
            A cache type that ggml does not have, or whose blocks do not divide a head.
        """
        layers = range(self.n_layer) if self.full_layers is None else self.full_layers
        return sum(self.kv_bytes_of_layer(il, type_k, type_v) for il in layers)

    def kv_bytes_of_layer(self, il: int, type_k: str = "f16", type_v: str = "f16") -> int:
        """Bytes of one token in the cache of one full-attention layer. Raises as ``kv_bytes_per_token``."""
        bytes_v = 0 if self.v_in_k else _row_bytes(self.head_dim_v, type_v)
        return self.n_head_kv[il] * (_row_bytes(self.head_dim, type_k) + bytes_v)


def read_model_info(path: Path | str) -> ModelInfo:
    """Read a model's description from its GGUF header.

    Raises
    ------
    ModelNotFoundError
        Not a readable GGUF, not a model, or a key that is missing, of the wrong type or absurd.
    """
    return _model_info(read_gguf(path))


def fingerprint(path: Path | str) -> str:
    """Name of a model's weights that holds across quantisations and tells fine-tunes apart.

    ``ARCH/L{n_layer}/E{n_embd}/H{n_head}/K{n_head_kv}/D{head_dim}/crc32:XXXXXXXX``: heads are those of layer 0; the
    crc32 runs over every F32 tensor whose name contains "norm", sorted by the bytes of the name, each first its name
    and then its data. The engine computes the same from the loaded model.

    Parameters
    ----------
    path : Path or str
        The model, any shard of it if it is split.

    Raises
    ------
    ModelNotFoundError
        As ``read_model_info``; or a shard is missing.
    """
    file = read_gguf(path)
    shards = [file if shard == file.path else read_gguf(shard) for shard in shard_paths(file.path, _split(file))]
    info = _model_info(shards[0])

    norms = [
        (tensor.name, shard, tensor)
        for shard in shards
        for tensor in shard.tensors
        if tensor.ggml_type == GGML_TYPE_F32 and b"norm" in tensor.name
    ]

    def read(shard: GgufFile, tensor: TensorInfo) -> bytes:
        with shard.path.open("rb") as data:
            data.seek(shard.data_start + tensor.offset)
            return data.read(tensor.n_bytes or 0)

    return fingerprint_of(
        info.arch,
        info.n_layer,
        info.n_embd,
        info.n_head[0],
        info.n_head_kv[0],
        info.head_dim,
        ((name, read(shard, tensor)) for name, shard, tensor in sorted(norms, key=lambda norm: norm[0])),
    )


def fingerprint_of(
    arch: str,
    n_layer: int,
    n_embd: int,
    n_head: int,
    n_head_kv: int,
    head_dim: int,
    norms: Iterable[tuple[bytes, bytes]],
) -> str:
    """``fingerprint`` of what is not a file: heads of layer 0, and (name, data) of the norms, sorted by name."""
    crc = 0
    for name, data in norms:
        crc = zlib.crc32(data, zlib.crc32(name, crc))
    return f"{arch}/L{n_layer}/E{n_embd}/H{n_head}/K{n_head_kv}/D{head_dim}/crc32:{crc:08x}"


def padded(n_cells: int) -> int:
    """Cells that a cache for so many tokens gets."""
    return n_cells + -n_cells % CELL_STEP


def shard_paths(path: Path, split: Split | None) -> tuple[Path, ...]:
    """All files of a model, by llama.cpp's naming: ``PREFIX-00001-of-00003.gguf``.

    Raises
    ------
    ModelNotFoundError
        The file belongs to a split model and is not named so.
    """
    if split is None:
        return (path,)
    number = split.index + 1
    if path.suffix != ".gguf" or numbers(path.stem) != (number, split.count):
        raise ModelNotFoundError(
            f"is file {number} of {split.count} of a split model, and is not named so",
            where=str(path),
            fix=f"give it a name that ends in {ending(number, split.count)}, as llama.cpp does",
        )
    return shards(path)


def _model_info(file: GgufFile) -> ModelInfo:
    split = _split(file)
    if split is not None and split.index > 0:  # such a file has no keys but these
        raise ModelNotFoundError(
            f"is file {split.index + 1} of {split.count} of a split model",
            where=str(file.path),
            fix=f"give the first, {shard_paths(file.path, split)[0].name}",
        )
    arch = file.text("general.architecture")
    if not arch:
        raise file.broken("has no general.architecture")
    kind = file.text("general.type", "model")
    if kind != "model":
        raise ModelNotFoundError(f"holds a {kind}, not a model", where=str(file.path), fix="give the model's own GGUF")

    def required(key: str, most: int) -> int:
        value = file.integer(f"{arch}.{key}")
        if value is None:
            raise file.broken(f"has no {arch}.{key}")
        if not 0 < value <= most:
            raise file.broken(f"{arch}.{key} is {value}, not in 1 ... {most}")
        return value

    def optional(key: str, default: int, most: int = 2**31 - 1) -> int:
        value = file.integer(f"{arch}.{key}", default)
        if value is None or not 0 <= value <= most:
            raise file.broken(f"{arch}.{key} is {value}, not in 0 ... {most}")
        return value

    n_layer_all = required("block_count", MAX_LAYERS)
    n_layer = n_layer_all - optional("nextn_predict_layers", 0, n_layer_all)
    if n_layer == 0:
        raise file.broken(f"has {n_layer_all} layers, all of them for multi-token prediction")
    n_embd = required("embedding_length", 2**24)
    n_head = _per_layer(file, f"{arch}.attention.head_count", n_layer_all, (0,) * n_layer_all)
    n_head_kv = _per_layer(file, f"{arch}.attention.head_count_kv", n_layer_all, n_head)
    for il, (queries, keys) in enumerate(zip(n_head, n_head_kv, strict=True)):
        if keys > queries or (keys and queries % keys):
            raise file.broken(f"layer {il} has {queries} query heads on {keys} key-value heads")

    default_dim = n_embd // n_head[0] if n_head[0] else 0
    head_dim = optional("attention.key_length", default_dim, 2**16)
    head_dim_v = optional("attention.value_length", default_dim, 2**16)
    rope_type = ROPE_TYPES.get(arch)
    n_rot = optional("rope.dimension_count", head_dim if rope_type else 0, 2**16)
    if arch in HALF_N_ROT:
        n_rot //= 2
    if n_rot > head_dim or n_rot % 2:
        raise file.broken(f"{arch}.rope.dimension_count is {n_rot}, not an even number in 0 ... {head_dim}")
    if arch in NEOX_WITH_SECTIONS and any(_ints(file, f"{arch}.rope.dimension_sections") or ()):
        rope_type = "neox"

    _check_experts(file, arch, n_layer_all)
    rope_scaling = file.text(f"{arch}.rope.scaling.type", "linear") or ""
    if rope_scaling not in ROPE_SCALINGS:
        raise file.broken(f"{arch}.rope.scaling.type is {rope_scaling!r}, not one of {', '.join(ROPE_SCALINGS)}")
    n_ctx_train = required("context_length", 2**31 - 1)
    base = file.number(f"{arch}.rope.freq_base", 10000.0) or 0.0
    factor = file.number(f"{arch}.rope.scaling.factor") or file.number(f"{arch}.rope.scale_linear") or 1.0
    if base <= 0 or factor <= 0:
        raise file.broken(f"RoPE has base {base} and scaling factor {factor}")
    n_swa = optional("attention.sliding_window", 0)
    full_layers = _full_layers(file, arch, n_layer_all, n_head_kv[:n_layer], n_swa)
    return ModelInfo(
        path=file.path,
        arch=arch,
        name=file.text("general.name") or file.path.stem,
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head[:n_layer],
        n_head_kv=n_head_kv[:n_layer],
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        n_rot=n_rot,
        rope_type=rope_type,
        rope_freq_base=base,
        rope_freq_scale=1.0 / factor,
        rope_scaling=rope_scaling,
        rope_attn_factor=file.number(f"{arch}.rope.scaling.attn_factor", 1.0) or 1.0,
        n_ctx_orig=optional("rope.scaling.original_context_length", n_ctx_train),
        n_ctx_train=n_ctx_train,
        n_swa=n_swa,
        full_layers=full_layers,
        unrotated=_unrotated(file, arch, n_layer, full_layers),
        is_causal=arch not in ENCODERS and file.truth(f"{arch}.attention.causal", True) is not False,
        is_mla=f"{arch}.attention.kv_lora_rank" in file,
        v_in_k=f"{arch}.attention.key_length_mla" in file,
        file_bytes=file.file_size,
        split=split,
    )


def _check_experts(file: GgufFile, arch: str, n_layer: int) -> None:
    """What llama.cpp takes for granted of a mixture of experts: otherwise it ends the process."""
    if arch in ("hunyuan-dense", "hunyuan_vl"):  # a single expert is none
        return

    def count(key: str) -> int:
        return file.integer(f"{arch}.{key}", 0) or 0

    n_all, n_used = count("expert_count"), max(_per_layer(file, f"{arch}.expert_used_count", n_layer, (0,)))
    n_groups, n_groups_used = count("expert_group_count"), count("expert_group_used_count")
    if not 0 <= n_all <= MAX_EXPERTS:
        raise file.broken(f"{arch}.expert_count is {n_all}, not in 0 ... {MAX_EXPERTS}")
    if n_used > n_all or (n_all > 0 and n_used == 0):
        raise file.broken(f"{arch}.expert_used_count is {n_used}, of {n_all} experts")
    # without experts there are no groups of them
    if not 0 <= n_groups < max(n_all, 1) or (n_groups > 1 and n_all % n_groups):
        raise file.broken(f"{arch}.expert_group_count is {n_groups}, of {n_all} experts")
    if n_groups > 1 and not 0 < n_groups_used < n_groups:
        raise file.broken(f"{arch}.expert_group_used_count is {n_groups_used}, of {n_groups} groups")


def _split(file: GgufFile) -> Split | None:
    count = file.integer("split.count", 0) or 0
    index = file.integer("split.no", 0) or 0
    if count <= 1:
        return None
    if not 0 <= index < count <= 99999:
        raise file.broken(f"says that it is file {index + 1} of {count}")
    return Split(index, count)


def _ints(file: GgufFile, key: str) -> tuple[int, ...] | None:
    values = file.array(key)
    if values is None:
        return None
    if values.dtype.kind not in "iub":
        raise file.broken(f"{key} must be an array of integers, not {file.pairs[key].type_name}")
    return tuple(int(value) for value in values)


def _per_layer(file: GgufFile, key: str, n_layer: int, default: tuple[int, ...]) -> tuple[int, ...]:
    """A count that the file gives once for all layers, or for each."""
    if key not in file:
        return default
    if not file.pairs[key].is_array:
        counts: tuple[int, ...] = (file.integer(key) or 0,) * n_layer
    else:
        counts = _ints(file, key) or ()
        if len(counts) != n_layer:
            raise file.broken(f"{key} has {len(counts)} entries for {n_layer} layers")
    for count in counts:
        if not 0 <= count <= 2**16:
            raise file.broken(f"{key} is {count}, not in 0 ... {2**16}")
    return counts


def _full_layers(
    file: GgufFile, arch: str, n_layer_all: int, n_head_kv: Sequence[int], n_swa: int
) -> tuple[int, ...] | None:
    if arch not in ROPE_TYPES or arch in LAYERS_UNKNOWN:
        return None
    rule = SWA_RULES.get(arch)
    n_layer = len(n_head_kv)
    is_swa = [False] * n_layer
    if rule is not None and not (rule.optional and n_swa == 0):
        key = f"{arch}.attention.sliding_window_pattern"
        if key in file and file.pairs[key].is_array:
            flags = _ints(file, key) or ()
            if len(flags) < n_layer:
                raise file.broken(f"{key} has {len(flags)} entries for {n_layer_all} layers")
            is_swa = [bool(flag) for flag in flags[:n_layer]]
        else:
            period = file.integer(key, rule.period)
            if period is None:
                return None
            full = 0 if rule.full_first else period - 1
            is_swa = [period == 0 or il % period != full for il in range(n_layer)]
    is_recurrent = _recurrent(file, arch, n_layer_all)
    return tuple(il for il in range(n_layer) if not is_swa[il] and not is_recurrent[il] and n_head_kv[il] > 0)


def _recurrent(file: GgufFile, arch: str, n_layer: int) -> Sequence[bool]:
    """Which layers keep a state in place of keys, of those that have heads all the same."""
    if arch not in ATTENTION_INTERVALS:
        return [False] * n_layer
    key = f"{arch}.attention.recurrent_layers"
    if key in file:
        flags = [bool(flag) for flag in _per_layer(file, key, n_layer, ())]
    else:
        interval = file.integer(f"{arch}.full_attention_interval", ATTENTION_INTERVALS[arch]) or 0
        if interval <= 0:
            raise file.broken(f"{arch}.full_attention_interval is {interval}")
        flags = [(il + 1) % interval != 0 for il in range(n_layer)]
    if not any(flags):  # llama.cpp ends the process: the graph of a hybrid has a state that no layer writes
        raise file.broken(f"is of {arch}, and none of its layers is recurrent")
    return flags


def _unrotated(file: GgufFile, arch: str, n_layer: int, full_layers: tuple[int, ...] | None) -> tuple[int, ...]:
    layers = range(n_layer)
    rule = ROPE_RULES.get(arch)
    if rule == "none":
        return tuple(layers)
    if rule == "all but every fourth":
        return tuple(il for il in layers if (il + 1) % 4 == 0)
    if rule == "windows":
        # without any window SmallThinker turns all, and the first layers of Command A with experts are turned anyway
        full = () if full_layers is None or (arch == "smallthinker" and len(full_layers) == n_layer) else full_layers
        n_turned = file.integer(f"{arch}.leading_dense_block_count", 0) or 0 if arch == "cohere2moe" else 0
        return tuple(il for il in full if il >= n_turned)
    if rule == "as the file says":
        if arch == "granite_swa":
            pattern = _ints(file, f"{arch}.attention.rope_pattern") or (1,) * n_layer
            return tuple(il for il in layers if il < len(pattern) and not pattern[il])
        return () if file.truth(f"{arch}.rope.scaling.finetuned", True) else tuple(layers)
    return ()


def _row_bytes(n: int, cache_type: str) -> int:
    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[cache_type.upper()]]
    except KeyError:
        raise UsageError(f"{cache_type!r} is not a cache type", fix="use f16 or q8_0") from None
    if n % int(block):
        raise UsageError(f"{cache_type} stores {block} values at once, and a head has {n}", fix="use f16")
    return n // int(block) * int(size)
