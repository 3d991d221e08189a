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
    more: dict[str, np.ndarray] | None = None,
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
    more : dict, optional
        More tensors.
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
    for name, values in (more or {}).items():
        writer.add_tensor(name, values.astype(np.float32))
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
    path: Path, arch: str, n_head: list[int] | int, n_head_kv: list[int] | int, layer: Callable, add: Callable
) -> Path:
    """A model whose layers differ. ``layer(il)`` gives the names and shapes of a layer's tensors."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(N_LAYER)
    writer.add_context_length(4096)
    writer.add_embedding_length(N_EMBD)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    add_byte_vocabulary(writer)
    tensors = {"token_embd.weight": (259, N_EMBD)}
    tensors |= add(writer)
    for il in range(N_LAYER):
        for name, shape in layer(il).items():
            is_whole = name in ("ssm_a", "ssm_d") or name.endswith(".bias") or (arch, name) == ("falcon-h1", "ffn_norm")
            tensors[f"blk.{il}.{name}" + ("" if is_whole else ".weight")] = shape
    rng = np.random.default_rng(0)
    for name, shape in tensors.items():
        values = rng.standard_normal(shape) / np.sqrt(shape[-1])
        if name.endswith("ssm_a"):
            values = -np.abs(values)  # states fade
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


_D_STATE, _D_CONV, _N_GROUP = 16, 4, 2
"""of a recurrent layer: one head, the convolution before it, heads that share queries and keys"""


def _add_ssm(
    writer: gguf.GGUFWriter, n_head: int, d_inner: int, n_group: int = _N_GROUP, n_ff: list[int] | int = N_FF
) -> None:
    writer.add_feed_forward_length(n_ff)
    writer.add_ssm_conv_kernel(_D_CONV)
    writer.add_ssm_state_size(_D_STATE)
    writer.add_ssm_group_count(n_group)
    writer.add_ssm_time_step_rank(n_head)
    writer.add_ssm_inner_size(d_inner)


_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def write_qwen35(
    path: Path,
    arch: str = "qwen35",
    interval: int | None = 2,
    n_nextn: int = 0,
    recurrent: tuple[bool, ...] | None = None,
    sections: tuple[int, ...] = (3, 3, 2, 0),
) -> Path:
    """A hybrid of the Qwen3.5 kind: gated delta nets, and in every ``interval``-th layer gated attention.

    Half of a head is turned, in sections of M-RoPE; "qwen3next" has no sections; it and "qwen35moe" have experts.

    Parameters
    ----------
    interval : int, optional
        None: the file does not say it, and llama.cpp takes 4.
    n_nextn : int
        Of the four layers, the last that predict the next token but one.
    recurrent : tuple of bool, optional
        Which layers have a state, instead of ``interval``.
    """
    n_head, n_expert, has_experts = 4, 4, arch != "qwen35"
    n_k, n_v = _D_STATE * _N_GROUP, _D_STATE * n_head
    n_layer = N_LAYER - n_nextn

    def add(writer: gguf.GGUFWriter) -> dict[str, tuple[int, ...]]:
        _add_ssm(writer, n_head, n_v)
        writer.add_key_length(HEAD_DIM)
        writer.add_value_length(HEAD_DIM)
        writer.add_rope_dimension_count(HEAD_DIM // 2)
        writer.add_chat_template(_TEMPLATE)
        if arch != "qwen3next":
            writer.add_rope_dimension_sections(list(sections))
        if recurrent is not None:
            writer.add_array(f"{arch}.attention.recurrent_layers", list(recurrent))
        elif interval is not None:
            writer.add_uint32(f"{arch}.full_attention_interval", interval)
        if n_nextn:
            writer.add_nextn_predict_layers(n_nextn)
        if has_experts:
            writer.add_expert_count(n_expert)
            writer.add_expert_used_count(2)
            writer.add_expert_feed_forward_length(N_FF)
            writer.add_expert_shared_feed_forward_length(N_FF)
        return {"output_norm.weight": (N_EMBD,)}

    def layer(il: int) -> dict[str, tuple[int, ...]]:
        own: dict[str, tuple[int, ...]] = {"attn_norm": (N_EMBD,), "post_attention_norm": (N_EMBD,)}
        has_state = recurrent[il] if recurrent is not None else (il + 1) % (interval or 4) != 0
        if il >= n_layer or not has_state:
            own |= _ATTENTION | {"attn_q": (2 * 128, N_EMBD), "attn_q_norm": (HEAD_DIM,), "attn_k_norm": (HEAD_DIM,)}
        else:
            own |= {"attn_qkv": (2 * n_k + n_v, N_EMBD), "attn_gate": (n_v, N_EMBD), "ssm_dt.bias": (n_head,)}
            own |= {"ssm_conv1d": (2 * n_k + n_v, _D_CONV), "ssm_a": (n_head,), "ssm_norm": (_D_STATE,)}
            own |= {"ssm_out": (N_EMBD, n_v)}
            if arch == "qwen3next":
                own["ssm_ba"] = (2 * n_head, N_EMBD)
            else:
                own |= {"ssm_beta": (n_head, N_EMBD), "ssm_alpha": (n_head, N_EMBD)}
        if il >= n_layer:
            own |= {"nextn.eh_proj": (N_EMBD, 2 * N_EMBD), "nextn.enorm": (N_EMBD,), "nextn.hnorm": (N_EMBD,)}
        ffn = {name: shape for name, shape in _FFN.items() if name != "ffn_norm"}
        if not has_experts:
            return own | ffn
        own |= {"ffn_gate_inp": (n_expert, N_EMBD), "ffn_gate_inp_shexp": (N_EMBD,)}
        own |= {f"{name}_exps": (n_expert, *shape) for name, shape in ffn.items()}
        return own | {f"{name}_shexp": shape for name, shape in ffn.items()}

    return _write(path, arch, N_HEAD, N_HEAD_KV, layer, add)


def _mamba2(n_head: int, d_inner: int, n_group: int) -> dict[str, tuple[int, ...]]:
    d_conv = d_inner + 2 * n_group * _D_STATE
    tensors: dict[str, tuple[int, ...]] = {"ssm_in": (d_inner + d_conv + n_head, N_EMBD), "ssm_dt.bias": (n_head,)}
    tensors |= {"ssm_conv1d": (d_conv, _D_CONV), "ssm_a": (n_head, 1), "ssm_d": (n_head, 1)}
    tensors["ssm_conv1d.bias"] = (d_conv,)
    return tensors | {"ssm_norm": (n_group, d_inner // n_group), "ssm_out": (N_EMBD, d_inner)}


def write_falcon_h1(path: Path) -> Path:
    """A hybrid whose layers all have attention and a recurrent state, side by side."""

    def add(writer: gguf.GGUFWriter) -> dict[str, tuple[int, ...]]:
        _add_ssm(writer, 4, 128)
        return {"output_norm.weight": (N_EMBD,)}

    def layer(il: int) -> dict[str, tuple[int, ...]]:
        return _mamba2(4, 128, _N_GROUP) | _ATTENTION | {"attn_norm": (N_EMBD,)} | _FFN

    return _write(path, "falcon-h1", N_HEAD, N_HEAD_KV, layer, add)


def write_granite_hybrid(path: Path) -> Path:
    """A hybrid without RoPE, as Granite 4's are: layers 0 and 2 are Mamba 2, 1 and 3 are attention."""
    n_head_kv = [0, 2, 0, 2]

    def add(writer: gguf.GGUFWriter) -> dict[str, tuple[int, ...]]:
        _add_ssm(writer, 8, 2 * N_EMBD, 1)
        writer.add_rope_scaling_finetuned(False)
        return {"output_norm.weight": (N_EMBD,)}

    def layer(il: int) -> dict[str, tuple[int, ...]]:
        own = _ATTENTION if n_head_kv[il] else _mamba2(8, 2 * N_EMBD, 1)
        return own | {"attn_norm": (N_EMBD,)} | _FFN

    return _write(path, "granitehybrid", N_HEAD, n_head_kv, layer, add)


def write_nemotron_h(path: Path) -> Path:
    """A hybrid whose layers are one thing each: Mamba 2, attention that RoPE does not turn, or a plain network."""
    n_head_kv, n_ff = [0, 2, 0, 2], [0, 0, N_FF, 0]

    def add(writer: gguf.GGUFWriter) -> dict[str, tuple[int, ...]]:
        _add_ssm(writer, 8, 2 * N_EMBD, n_ff=n_ff)
        writer.add_layer_norm_eps(1e-5)
        return {"output_norm.weight": (N_EMBD,)}

    def layer(il: int) -> dict[str, tuple[int, ...]]:
        if n_ff[il]:
            own = {name: _FFN[name] for name in ("ffn_up", "ffn_down")}
        else:
            own = _ATTENTION if n_head_kv[il] else _mamba2(8, 2 * N_EMBD, _N_GROUP)
        return own | {"attn_norm": (N_EMBD,)}

    return _write(path, "nemotron_h", N_HEAD, n_head_kv, layer, add)


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
