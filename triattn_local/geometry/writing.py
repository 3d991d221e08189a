"""Synthetic GGUF files of a geometry: real shapes, a vocabulary of the real size, statistics, and random weights.

The same few megabytes of quantised blocks are written again and again, so that 20 GB are made as fast as the disk takes
them, in the memory of one buffer. llama.cpp loads such a file like any other; what it says means nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType

from ..errors import DoesNotFitError
from ..model.gguf_file import DEFAULT_ALIGNMENT
from ..model.metadata import stats_values
from ..model.model_info import fingerprint_of
from ..model.stats import TriattnStats, band_magnitude
from ..support.atomic import atomic_write
from ..support.progress import Count
from ..version import __version__
from .blocks import STD, random_blocks
from .shapes import Geometry, Tensor

_BUFFER = 1 << 25

_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_FIX = "write to a larger disk, or fewer layers (they need less, and measure less)"


def geometry_bytes(geometry: Geometry) -> int:
    """Bytes of the tensor data of its file."""
    return sum(_padded(tensor.n_bytes) for tensor in geometry.tensors())


def write_geometry(geometry: Geometry, path: Path | str, progress: Count | None = None) -> Path:
    """Write a model with this geometry and random weights. The same geometry gives the same bytes.

    Parameters
    ----------
    geometry : Geometry
        See ``find_geometry``, and ``Geometry.cut`` for fewer layers.
    path : Path or str
        Replaced in one step when it is complete.

    Raises
    ------
    DoesNotFitError
        The disk does not hold it; nothing was written then.
    UsageError
        The path cannot be written.
    BackendMissingError
        The library is not there, whose quantiser makes the blocks.
    """
    path = Path(path)
    head = _header(geometry)
    total = len(head) + geometry_bytes(geometry)
    try:
        with atomic_write(path, total, fix=_FIX) as out:
            out.write(head)
            n_done = len(head)
            for tensor in geometry.tensors():
                n_bytes = _padded(tensor.n_bytes)
                for n in _write_tensor(out, geometry, tensor, n_bytes):
                    n_done += n
                    if progress is not None:
                        progress(n_done, total)
    except DoesNotFitError as error:
        raise DoesNotFitError(f"{geometry.title}: {error.what}", where=error.where, fix=error.fix) from None
    return path


def write_outline(geometry: Geometry, path: Path | str) -> Path:
    """The same file without statistics, its tensor data a hole: for what reads headers, and takes no room."""
    path = Path(path)
    head = _header(geometry, with_statistics=False)
    with path.open("wb") as out:
        out.write(head)
        out.truncate(len(head) + geometry_bytes(geometry))
    return path


def _padded(n_bytes: int) -> int:
    return n_bytes + -n_bytes % DEFAULT_ALIGNMENT


def _write_tensor(out: BinaryIO, geometry: Geometry, tensor: Tensor, n_bytes: int) -> Iterator[int]:
    """Write n_bytes of a tensor with its padding; yields the bytes of each piece."""
    if tensor.type is GGMLQuantizationType.F32:
        data = _floats(geometry, tensor).astype("<f4").tobytes()
        out.write(data + bytes(n_bytes - len(data)))
        yield n_bytes
        return
    pattern = random_blocks(tensor.type)
    buffer = memoryview(pattern * max(1, min(_BUFFER, n_bytes) // len(pattern)))
    n_left = tensor.n_bytes
    while n_left > 0:
        n = min(n_left, len(buffer))
        out.write(buffer[:n])
        n_left -= n
        yield n
    out.write(bytes(n_bytes - tensor.n_bytes))
    yield n_bytes - tensor.n_bytes


def _floats(geometry: Geometry, tensor: Tensor) -> npt.NDArray[np.float32]:
    if tensor.fill == "one":
        return np.ones(tensor.shape, np.float32)
    if tensor.fill == "rope":
        assert geometry.rope_factors is not None
        return geometry.rope_factors.divisors(geometry.head_dim, geometry.rope_freq_base)
    if tensor.fill == "decay":
        return -np.linspace(0.1, 8.0, tensor.shape[0], dtype=np.float32)
    return np.float32(STD) * np.random.default_rng(0).standard_normal(tensor.shape, np.float32)


def _header(geometry: Geometry, *, with_statistics: bool = True) -> bytes:
    """Everything before the tensor data."""
    writer = gguf.GGUFWriter(None, geometry.arch)
    _add_model(writer, geometry)
    _add_vocabulary(writer, geometry.n_vocab)
    if with_statistics and geometry.evicts:
        for key, kind, value in stats_values(_statistics(geometry)):
            if isinstance(value, np.ndarray):
                writer.add_array(key, value.tolist() if value.dtype.kind == "i" else value.ravel().tolist())
            else:
                writer.add_key_value(key, value, gguf.GGUFValueType(kind))
    for tensor in geometry.tensors():
        shape = tuple(reversed(tensor.shape))
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), tensor.n_bytes, raw_dtype=tensor.type)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        head = path.read_bytes()
    return head + bytes(-len(head) % DEFAULT_ALIGNMENT)


def _add_model(writer: gguf.GGUFWriter, geometry: Geometry) -> None:
    writer.add_type("model")
    writer.add_name(f"{geometry.title}, random weights")
    writer.add_file_type(geometry.file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(geometry.n_layer)
    writer.add_context_length(geometry.n_ctx_train)
    writer.add_embedding_length(geometry.n_embd)
    writer.add_feed_forward_length(geometry.n_ff)
    writer.add_head_count(geometry.n_head)
    writer.add_head_count_kv(geometry.n_head_kv)
    writer.add_key_length(geometry.head_dim)
    writer.add_value_length(geometry.head_dim_v)
    writer.add_rope_dimension_count(geometry.n_rot)
    if geometry.rope_sections is not None:
        writer.add_rope_dimension_sections(list(geometry.rope_sections))
    writer.add_rope_freq_base(geometry.rope_freq_base)
    writer.add_layer_norm_rms_eps(geometry.rms_eps)
    if geometry.yarn is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(geometry.yarn.factor)
        writer.add_rope_scaling_orig_ctx_len(geometry.yarn.n_ctx_orig)
    if geometry.experts is not None:
        writer.add_expert_count(geometry.experts.n_expert)
        writer.add_expert_used_count(geometry.experts.n_used)
        writer.add_expert_feed_forward_length(geometry.experts.n_ff)
        if geometry.experts.n_shared:
            writer.add_expert_shared_count(geometry.experts.n_shared)
            writer.add_expert_shared_feed_forward_length(geometry.experts.n_ff * geometry.experts.n_shared)
        if geometry.experts.n_dense:
            writer.add_leading_dense_block_count(geometry.experts.n_dense)
    if (net := geometry.delta_net) is not None:
        writer.add_ssm_conv_kernel(net.d_conv)
        writer.add_ssm_state_size(net.d_state)
        writer.add_ssm_group_count(net.n_head_k)
        writer.add_ssm_time_step_rank(net.n_head_v)
        writer.add_ssm_inner_size(net.n_v)
        writer.add_uint32(f"{geometry.arch}.full_attention_interval", net.interval)
    if (latent := geometry.latent) is not None:
        writer.add_q_lora_rank(latent.n_lora_q)
        writer.add_kv_lora_rank(latent.n_lora_kv)
        writer.add_key_length_mla(latent.head_dim_k)
        writer.add_value_length_mla(latent.head_dim_v)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_norm(True)
        writer.add_expert_weights_scale(1.8)
    if geometry.n_swa:
        writer.add_sliding_window(geometry.n_swa)


def _add_vocabulary(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """Bytes, the marks of ChatML, and words that mean nothing: text goes in as one token a byte."""
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "<|im_start|>", "<|im_end|>"]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, kinds.CONTROL, kinds.CONTROL]
    end_of_turn = len(tokens) - 1
    types += [kinds.NORMAL] * (n_vocab - len(tokens))
    tokens += [f"\u2581w{i}" for i in range(len(tokens), n_vocab)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * n_vocab)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(end_of_turn)
    writer.add_chat_template(_TEMPLATE)


def _statistics(geometry: Geometry) -> TriattnStats:
    """Centres of unit length in random directions, and magnitudes that queries around them could have."""
    rng = np.random.default_rng(0)
    q_mean, q_abs = [], []
    for _ in geometry.full_layers:
        centres = rng.standard_normal((geometry.n_head, geometry.head_dim), np.float32)
        centres /= np.linalg.norm(centres, axis=-1, keepdims=True)
        magnitude = band_magnitude(centres, geometry.n_rot, geometry.rope_type)
        q_mean.append(centres)
        q_abs.append((magnitude * rng.uniform(1.0, 1.5, magnitude.shape)).astype(np.float32))
    return TriattnStats(
        layers=geometry.full_layers,
        q_mean=tuple(q_mean),
        q_abs=tuple(q_abs),
        k_mean=(),
        n_tokens=1,
        corpus="none: random directions",
        tool=f"triattn-local {__version__}, synthetic",
        model=_fingerprint(geometry),
    )


def _fingerprint(geometry: Geometry) -> str:
    norms = {
        tensor.name.encode(): _floats(geometry, tensor).astype("<f4").tobytes()
        for tensor in geometry.tensors()
        if tensor.type is GGMLQuantizationType.F32 and "norm" in tensor.name
    }
    return fingerprint_of(
        geometry.arch,
        geometry.n_layer,
        geometry.n_embd,
        geometry.n_head,
        geometry.n_head_kv,
        geometry.head_dim,
        sorted(norms.items()),
    )
