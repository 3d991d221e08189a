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
