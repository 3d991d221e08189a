"""Tiny models of the transformers library with random weights, and the same models as GGUF files.

What the torch engine and llama.cpp are compared with: a third implementation, by the models' own makers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from tiny_models import add_byte_vocabulary

N_EMBD, N_HEAD, N_HEAD_KV, N_FF, HEAD_DIM = 128, 4, 2, 96, 32
N_CTX = 4096

_SHAPE: dict[str, Any] = {
    "hidden_size": N_EMBD,
    "intermediate_size": N_FF,
    "num_attention_heads": N_HEAD,
    "num_key_value_heads": N_HEAD_KV,
    "head_dim": HEAD_DIM,
    "vocab_size": 259,
    "max_position_embeddings": N_CTX,
    "num_hidden_layers": 3,
    # large enough that norms, biases and attention matter
    "initializer_range": 0.2,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 512}

FAMILIES = {
    "llama": ("llama", "Llama", {}),
    "llama with frequency factors": ("llama", "Llama", {"rope_parameters": _LLAMA3}),
    "mistral": ("llama", "Mistral", {"sliding_window": None}),
    # RoPE turns the keys of three layers of four
    "smollm3": ("smollm3", "SmolLM3", {"num_hidden_layers": 5, "pad_token_id": 0, "initializer_range": 0.15}),
    "qwen2": ("qwen2", "Qwen2", {}),
    "qwen2 with YaRN": ("qwen2", "Qwen2", {"rope_parameters": _YARN}),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 64}),
    "qwen3moe": (
        "qwen3moe",
        "Qwen3Moe",
        {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True},
    ),
    "gemma3": (
        "gemma3",
        "Gemma3",
        # the sixth of the layers has full attention, and a RoPE base of its own
        {"num_hidden_layers": 7, "sliding_window": 20, "query_pre_attn_scalar": HEAD_DIM},
    ),
}
"""name -> architecture in GGUF, prefix of the classes, what differs from the shape above"""


def make(family: str, path: Path) -> tuple[Any, Path]:
    """A seeded model of a family, in evaluation mode, and its GGUF in float32."""
    arch, prefix, changes = FAMILIES[family]
    config = getattr(transformers, f"{prefix}TextConfig" if prefix == "Gemma3" else f"{prefix}Config")(
        **{**_SHAPE, **changes}
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # what transformers initialises to ones or zeros would hide a norm or a bias that is forgotten
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
            assert weight.std() > 0, name
    _write(model, arch, path)
    return model, path


def _write(model: Any, arch: str, path: Path) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    if arch == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if arch == "qwen3moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    add_byte_vocabulary(writer)
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32))
    for name, weight in model.state_dict().items():
        for ours, data in _tensors(arch, name, weight.numpy(), config):
            writer.add_tensor(ours, np.ascontiguousarray(data, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.down_proj": "ffn_down_exps",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_NAMES_GEMMA3 = {
    **_NAMES,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def _tensors(arch: str, name: str, data: np.ndarray, config: Any) -> list[tuple[str, np.ndarray]]:
    """Tensors of the GGUF that one parameter becomes."""
    if arch == "gemma3" and name == "lm_head.weight":
        return []  # the embedding once more
    match = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+?)(?:\.(weight|bias))?", name)
    assert match
    block = "" if match[1] is None else f"blk.{match[1]}."
    if match[2] == "mlp.experts.gate_up_proj":
        gate, up = np.split(data, 2, axis=1)
        return [(f"{block}ffn_gate_exps.weight", gate), (f"{block}ffn_up_exps.weight", up)]
    ours = (_NAMES_GEMMA3 if arch == "gemma3" else _NAMES)[match[2]]
    if arch == "gemma3" and "norm" in ours:
        data = data + 1
    if arch in ("llama", "smollm3") and ours in ("attn_q", "attn_k"):
        # neighbours instead of halves
        n_head = N_HEAD if ours == "attn_q" else N_HEAD_KV
        data = data.reshape(n_head, 2, HEAD_DIM // 2, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)
    return [(f"{block}{ours}.{match[3] or 'weight'}", data)]


def watch(model: Any, sequences: list[list[int]], n_head: int, n_head_kv: int) -> dict[tuple[int, str], np.ndarray]:
    """Queries and keys before RoPE, in the order of dimensions of the transformers library.

    Returns
    -------
    dict of (layer, "q" or "k") to float32 [n_token, heads, head_dim], all sequences behind one another
    """
    seen: dict[tuple[int, str], list[np.ndarray]] = {}
    handles = []
    for il, layer in enumerate(model.model.layers):
        for letter, n in (("q", n_head), ("k", n_head_kv)):
            module = getattr(layer.self_attn, f"{letter}_norm", None) or getattr(layer.self_attn, f"{letter}_proj")

            shape = (-1, n, layer.self_attn.head_dim)

            def keep(_: Any, __: Any, out: torch.Tensor, key: Any = (il, letter), shape: Any = shape) -> None:
                # [1, n_token, heads, head_dim], flat of a projection, and heads first of some norms
                value = out[0].transpose(0, 1) if out.ndim == 4 and out.shape[1] == shape[1] else out[0]
                seen.setdefault(key, []).append(value.reshape(shape).numpy().copy())

            handles.append(module.register_forward_hook(keep))
    with torch.inference_mode():
        for tokens in sequences:
            model.model(torch.tensor([tokens]), use_cache=False)
    for handle in handles:
        handle.remove()
    return {key: np.concatenate(parts) for key, parts in seen.items()}


def to_neighbours(x: np.ndarray) -> np.ndarray:
    """From halves to neighbours, the last dimension: the order of a Llama file."""
    half = x.shape[-1] // 2
    return np.stack([x[..., :half], x[..., half:]], axis=-1).reshape(x.shape)
