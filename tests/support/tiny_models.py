"""Tiny models with random weights that llama.cpp really runs: what no small real model has. Bytes are their tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

N_LAYER, N_EMBD, N_HEAD, N_HEAD_KV, N_FF = 4, 128, 4, 2, 64
HEAD_DIM = N_EMBD // N_HEAD


def write_tiny(
    path: Path,
    arch: str = "llama",
    *,
    fused_qkv: bool = False,
    leave_out: tuple[str, ...] = (),
    add: Callable[[gguf.GGUFWriter], object] | None = None,
    freq_factors: list[float] | None = None,
    extra: str | None = None,
    split_max_tensors: int = 0,
) -> Path:
    """A model of 4 layers, 4 query heads on 2, 32 dimensions a head.

    Parameters
    ----------
    fused_qkv : bool
        The same weights in one tensor.
    leave_out : tuple of str
        Tensors of a layer that the architecture does not have.
    add : callable, optional
        Adds metadata to the writer.
    freq_factors : list of float, optional
        Divisors of RoPE's frequencies.
    extra : str, optional
        Name of one more tensor.
    split_max_tensors : int
        Split the model into files of so many tensors, named after ``path``; 0 for one file.
    """
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split_max_tensors)
    writer.add_block_count(N_LAYER)
    writer.add_context_length(4096)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    add_byte_vocabulary(writer)
    if add is not None:
        add(writer)

    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    writer.add_tensor("token_embd.weight", random(259, N_EMBD))
    writer.add_tensor("output_norm.weight", 1 + random(N_EMBD))
    if freq_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(freq_factors, np.float32))
    n_kv = N_HEAD_KV * HEAD_DIM
    for il in range(N_LAYER):
        block = f"blk.{il}."
        q, k, v = random(N_EMBD, N_EMBD), random(n_kv, N_EMBD), random(n_kv, N_EMBD)
        writer.add_tensor(block + "attn_norm.weight", 1 + random(N_EMBD))
        if fused_qkv:
            writer.add_tensor(block + "attn_qkv.weight", np.concatenate([q, k, v]))
        else:
            for letter, weight in (("q", q), ("k", k), ("v", v)):
                writer.add_tensor(f"{block}attn_{letter}.weight", weight)
        for name, weight in (
            ("attn_output", random(N_EMBD, N_EMBD)),
            ("ffn_norm", 1 + random(N_EMBD)),
            ("ffn_gate", random(N_FF, N_EMBD)),
            # phi3 has gate and up in one
            ("ffn_up", random(N_FF * (2 if arch == "phi3" else 1), N_EMBD)),
            ("ffn_down", random(N_EMBD, N_FF)),
        ):
            if name not in leave_out:
                writer.add_tensor(f"{block}{name}.weight", weight)
    if extra is not None:
        writer.add_tensor(extra, random(N_EMBD))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_byte_vocabulary(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list([b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))])
    writer.add_token_scores([0.0] * 259)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _write(
    path: Path, arch: str, n_head: list[int] | int, n_head_kv: list[int], layer: Callable, add: Callable
) -> Path:
    """A model whose layers differ. ``layer(il)`` gives the names and shapes of a layer's tensors."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(len(n_head_kv))
    writer.add_context_length(4096)
    writer.add_embedding_length(N_EMBD)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    add_byte_vocabulary(writer)
    tensors = {"token_embd.weight": (259, N_EMBD)}
    tensors |= add(writer)
    for il in range(len(n_head_kv)):
        tensors |= {f"blk.{il}.{name}.weight": shape for name, shape in layer(il).items()}
    rng = np.random.default_rng(0)
    for name, shape in tensors.items():
        values = rng.standard_normal(shape) / np.sqrt(shape[-1])
        writer.add_tensor(name, (values + ("norm" in name)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_FFN = {"ffn_norm": (N_EMBD,), "ffn_gate": (N_FF, N_EMBD), "ffn_up": (N_FF, N_EMBD), "ffn_down": (N_EMBD, N_FF)}
_ATTENTION = {f"attn_{name}": (rows, N_EMBD) for name, rows in (("q", 128), ("k", 64), ("v", 64), ("output", 128))}


def write_lfm2(path: Path) -> Path:
    """A hybrid: layers 0 and 2 are short convolutions, 1 and 3 are attention."""
    n_head_kv = [0, 2, 0, 2]

    def add(writer: gguf.GGUFWriter) -> dict[str, tuple[int, ...]]:
        writer.add_feed_forward_length(N_FF)
        writer.add_uint32("lfm2.shortconv.l_cache", 3)
        return {"token_embd_norm.weight": (N_EMBD,)}

    def layer(il: int) -> dict[str, tuple[int, ...]]:
        if n_head_kv[il]:
            own = _ATTENTION | {"attn_q_norm": (HEAD_DIM,), "attn_k_norm": (HEAD_DIM,)}
        else:
            own = {"shortconv.conv": (N_EMBD, 3), "shortconv.in_proj": (3 * N_EMBD, N_EMBD)}
            own["shortconv.out_proj"] = (N_EMBD, N_EMBD)
        return own | {"attn_norm": (N_EMBD,)} | _FFN

    return _write(path, "lfm2", N_HEAD, n_head_kv, layer, add)


def write_deci(path: Path) -> Path:
    """Layer 1 has no attention at all, as some layers of the Nemotron models that Deci's search made."""
    n_head_kv = [2, 0, 2, 2]

    def add(writer: gguf.GGUFWriter) -> dict[str, tuple[int, ...]]:
        writer.add_feed_forward_length([N_FF] * 4)
        writer.add_rope_dimension_count(HEAD_DIM)
        writer.add_key_length(HEAD_DIM)
        writer.add_value_length(HEAD_DIM)
        return {"output_norm.weight": (N_EMBD,)}

    def layer(il: int) -> dict[str, tuple[int, ...]]:
        return _FFN | (_ATTENTION | {"attn_norm": (N_EMBD,)} if n_head_kv[il] else {})

    return _write(path, "deci", [2 * n for n in n_head_kv], n_head_kv, layer, add)
