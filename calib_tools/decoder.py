"""A decoder's layers as the papers write them: the forward pass that the torch engine runs, one layer at a time.

Llama (and Mistral, Mixtral), SmolLM3, Qwen2, Qwen3, Qwen3-MoE and Gemma 3, from the tensors of their GGUF files. What
a family adds (biases, query and key norms, norms behind a block, experts) is seen in the tensors that are there; a
tensor that is not understood is a reason to refuse, not to go on without it. RoPE's angles are those of
``scoring.rope_phases``.

Everything is float32. Nothing is cached: whole sequences go through, and only what the next layer reads stays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from triattn_local.model.gguf_file import read_gguf
from triattn_local.model.model_info import ModelInfo
from triattn_local.model.scoring import RopeParams, rope_phases

from .weights import Weights

Sink = Callable[[torch.Tensor, torch.Tensor], None]
"""called with the pre-RoPE queries [n_token, n_head, head_dim] and keys [n_token, n_head_kv, head_dim] of a sequence"""

Spans = tuple[tuple[int, int], ...]
"""where each sequence begins and ends in the rows of the hidden states"""

_ROPE_BASE_SWA = 10000.0
"""llama.cpp's default for sliding-window layers, whatever base the others have"""

_GEMMA3_27B_LAYERS = 62
"""by its number of layers llama.cpp knows the one Gemma 3 whose queries are not scaled by the dimensions of a head"""

_FREQ_FACTORS = "rope_freqs.weight"
_GLOBAL_TENSORS = frozenset(("token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"))
_LAYER_TENSORS = re.compile(
    r"blk\.\d+\.(?:"
    r"(?:attn_norm|ffn_norm|attn_q_norm|attn_k_norm|post_attention_norm|post_ffw_norm|ffn_gate_inp)\.weight|"
    r"(?:attn_(?:q|k|v|qkv|output)|ffn_(?:gate|up|down))\.(?:weight|bias)|"
    r"ffn_(?:gate|up|down)_exps\.weight)"
)


@dataclass(frozen=True)
class _Family:
    """What the name of an architecture alone says."""

    activation: Callable[[torch.Tensor], torch.Tensor] = functional.silu
    scales_embedding: bool = False
    """embeddings are multiplied by sqrt(n_embd)"""
    has_freq_factors: bool = False
    """reads rope_freqs.weight"""


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")


_FAMILIES = {
    "llama": _Family(has_freq_factors=True),
    "smollm3": _Family(),
    "qwen2": _Family(),
    "qwen3": _Family(),
    "qwen3moe": _Family(),
    "gemma3": _Family(_gelu, scales_embedding=True),
}

_SCALED = frozenset(("dflash", "granite", "granite_swa", "granitehybrid", "granitemoe", "graniteswitch"))
"""architectures whose attention.scale llama.cpp reads; for all others the key is there and means nothing"""


def why_unsupported(info: ModelInfo, weights: Weights) -> str | None:
    """What this module does not know of a model, in a clause that "the torch engine" begins; None: nothing."""
    if info.arch not in _FAMILIES:
        return f"does not know the architecture {info.arch}"
    if info.rope_scaling == "longrope":
        return "does not know LongRoPE"
    if types := weights.unreadable():
        return f"cannot unpack tensors of type {', '.join(types)}"
    unknown = [n for n in weights.names if n not in _GLOBAL_TENSORS and not _LAYER_TENSORS.fullmatch(n)]
    if unknown:
        return f"does not know what the tensor {unknown[0]} is for"
    return None


def attention_scale(info: ModelInfo) -> float:
    """What multiplies the product of query and key: of all architectures but a few 1 / sqrt(head_dim)."""
    if info.arch == "gemma3" and info.n_layer == _GEMMA3_27B_LAYERS:
        return float((info.n_embd // info.n_head[0]) ** -0.5)
    told = read_gguf(info.path).number(f"{info.arch}.attention.scale") if info.arch in _SCALED else None
    return told or float(info.head_dim**-0.5)


def freq_factors(info: ModelInfo, weights: Weights) -> tuple[float, ...] | None:
    """Divisors of RoPE's frequencies that a file of the Llama family may have, [n_rot / 2]."""
    if info.arch not in _FAMILIES or not _FAMILIES[info.arch].has_freq_factors or _FREQ_FACTORS not in weights:
        return None
    return tuple(weights.read(_FREQ_FACTORS, torch.device("cpu")).tolist())


class Decoder:
    """One model's layers.

    Parameters
    ----------
    info : ModelInfo
        A model for which ``why_unsupported`` says nothing.
    weights : Weights
    device : torch.device
        Where to compute.
    """

    def __init__(self, info: ModelInfo, weights: Weights, device: torch.device) -> None:
        self.info = info
        self.device = device
        self._weights = weights
        self._family = _FAMILIES[info.arch]
        file, arch = read_gguf(info.path), info.arch
        self._eps = file.number(f"{arch}.attention.layer_norm_rms_epsilon") or 1e-5
        self._n_expert_used = file.integer(f"{arch}.expert_used_count", 0) or 0
        self._rope = RopeParams.of(info, freq_factors(info, weights))
        base_swa = file.number(f"{arch}.rope.freq_base_swa") or _ROPE_BASE_SWA
        self._rope_swa = replace(self._rope, freq_base=base_swa, freq_scale=1.0)
        self._turns: dict[RopeParams, tuple[torch.Tensor, torch.Tensor]] = {}
        self.attention_scale = attention_scale(info)

    def embed(self, tokens: list[int]) -> torch.Tensor:
        """Hidden states before the first layer, [n_token, n_embd]."""
        x = self._weights.read_rows("token_embd.weight", tokens, self.device)
        return x * math.sqrt(self.info.n_embd) if self._family.scales_embedding else x

    def rope_of(self, il: int) -> RopeParams:
        """RoPE of a layer, full or sliding-window."""
        return self._rope_swa if self._window(il) else self._rope

    def forward(self, il: int, hidden: torch.Tensor, spans: Spans, sink: Sink | None, *, last: bool = False) -> None:
        """Push all sequences through one layer.

        Parameters
        ----------
        il : int
        hidden : tensor [n_token, n_embd]
            Replaced in place.
        spans : sequence of (begin, end)
            The sequences, each from position 0.
        sink : callable, optional
            Receives the layer's queries and keys, sequence by sequence.
        last : bool
            Nobody will read the hidden states any more: stop at queries and keys.
        """
        self._attend(il, hidden, spans, sink, last)
        if last:
            return
        if f"blk.{il}.ffn_gate_inp.weight" in self._weights:
            self._feed_experts(il, hidden)
        else:
            self._feed_forward(il, hidden, spans)

    def _attend(self, il: int, hidden: torch.Tensor, spans: Spans, sink: Sink | None, last: bool) -> None:
        """x + W_o Attention(RoPE(q), RoPE(k), v)"""
        info, n_head, n_head_kv = self.info, self.info.n_head[il], self.info.n_head_kv[il]
        norm = self._get(il, "attn_norm.weight")
        project = self._projections(il)
        q_norm, k_norm = self._find(il, "attn_q_norm.weight"), self._find(il, "attn_k_norm.weight")
        w_out = b_out = None
        if not last:
            w_out, b_out = self._get(il, "attn_output.weight"), self._find(il, "attn_output.bias")
        post_norm = self._find(il, "post_attention_norm.weight")
        for begin, end in spans:
            n = end - begin
            x = self._normed(hidden[begin:end], norm)
            q, k, v = project(x)
            q, k = q.reshape(n, n_head, info.head_dim), k.reshape(n, n_head_kv, info.head_dim)
            if q_norm is not None:
                q = self._normed(q, q_norm)
            if k_norm is not None:
                k = self._normed(k, k_norm)
            if sink is not None:
                sink(q, k)
            if w_out is None:
                continue
            q, k = self._rotated(q, il), self._rotated(k, il)
            y = self._attention(il, q, k, v.reshape(n, n_head_kv, info.head_dim_v))
            y = functional.linear(y, w_out, b_out)
            hidden[begin:end] += y if post_norm is None else self._normed(y, post_norm)

    def _projections(self, il: int) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        info = self.info
        n_q, n_k = info.n_head[il] * info.head_dim, info.n_head_kv[il] * info.head_dim
        n_v = info.n_head_kv[il] * info.head_dim_v
        fused = self._find(il, "attn_qkv.weight")
        if fused is not None:
            bias = self._find(il, "attn_qkv.bias")
            return lambda x: tuple(functional.linear(x, fused, bias).split((n_q, n_k, n_v), dim=-1))
        w_q, w_k, w_v = (self._get(il, f"attn_{letter}.weight") for letter in "qkv")
        b_q, b_k, b_v = (self._find(il, f"attn_{letter}.bias") for letter in "qkv")
        return lambda x: (
            functional.linear(x, w_q, b_q),
            functional.linear(x, w_k, b_k),
            functional.linear(x, w_v, b_v),
        )

    def _attention(self, il: int, q_rot: torch.Tensor, k_rot: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """softmax(q k^T / sqrt(d)) v under the causal mask, [n_token, n_head * head_dim_v]"""
        n_group = q_rot.shape[1] // k_rot.shape[1]
        q = q_rot.transpose(0, 1)[None]
        k, v = (x.transpose(0, 1).repeat_interleave(n_group, dim=0)[None] for x in (k_rot, v))
        n, window = len(q_rot), self._window(il)
        mask = None
        if 0 < window < n:
            distance = torch.arange(n, device=self.device)[:, None] - torch.arange(n, device=self.device)
            mask = (distance >= 0) & (distance < window)
        y = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.attention_scale
        )
        return y[0].transpose(0, 1).reshape(n, -1)

    def _rotated(self, x: torch.Tensor, il: int) -> torch.Tensor:
        """RoPE of a sequence from position 0, [n_token, heads, head_dim]."""
        if il in self.info.unrotated:
            return x
        params = self.rope_of(il)
        cos, sin = (part[: len(x), None] for part in self._cos_sin(params, len(x)))
        n, half = params.n_rot, params.n_rot // 2
        out = x.clone()
        if params.rope_type == "norm":
            real, imag = x[..., 0:n:2], x[..., 1:n:2]
            out[..., 0:n:2], out[..., 1:n:2] = real * cos - imag * sin, real * sin + imag * cos
        else:
            real, imag = x[..., :half], x[..., half:n]
            out[..., :half], out[..., half:n] = real * cos - imag * sin, real * sin + imag * cos
        return out

    def _cos_sin(self, params: RopeParams, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        if params not in self._turns or len(self._turns[params][0]) < n:
            phases = rope_phases(np.arange(n), params)
            cos, sin = (
                torch.from_numpy((f(phases) * params.mscale).astype(np.float32)).to(self.device)
                for f in (np.cos, np.sin)
            )
            self._turns[params] = cos, sin
        return self._turns[params]

    def _feed_forward(self, il: int, hidden: torch.Tensor, spans: Spans) -> None:
        """x + W_down (act(W_gate x) * W_up x)"""
        norm, post_norm = self._get(il, "ffn_norm.weight"), self._find(il, "post_ffw_norm.weight")
        (w_gate, b_gate), (w_up, b_up), (w_down, b_down) = (
            (self._get(il, f"ffn_{name}.weight"), self._find(il, f"ffn_{name}.bias")) for name in ("gate", "up", "down")
        )
        for begin, end in spans:
            x = self._normed(hidden[begin:end], norm)
            gate = self._family.activation(functional.linear(x, w_gate, b_gate))
            y = functional.linear(gate.mul_(functional.linear(x, w_up, b_up)), w_down, b_down)
            hidden[begin:end] += y if post_norm is None else self._normed(y, post_norm)

    def _feed_experts(self, il: int, hidden: torch.Tensor) -> None:
        """x + sum_e p_e FFN_e(x) over each token's experts; they are unpacked one after the other."""
        x = self._normed(hidden, self._get(il, "ffn_norm.weight"))
        logits = functional.linear(x, self._get(il, "ffn_gate_inp.weight"))
        share, chosen = torch.softmax(logits, dim=-1).topk(self._n_expert_used, dim=-1)
        share = share / share.sum(dim=-1, keepdim=True).clamp(min=6.103515625e-5)
        n_ff, n_embd = self._weights.shape(f"blk.{il}.ffn_gate_exps.weight")[1:]

        def expert(name: str, e: int, n_row: int) -> torch.Tensor:
            return self._weights.read(f"blk.{il}.ffn_{name}_exps.weight", self.device, first=e * n_row, n_row=n_row)

        for e in range(logits.shape[1]):
            token, place = (chosen == e).nonzero(as_tuple=True)
            if not len(token):
                continue
            part = x[token]
            gate = self._family.activation(functional.linear(part, expert("gate", e, n_ff)))
            y = functional.linear(gate.mul_(functional.linear(part, expert("up", e, n_ff))), expert("down", e, n_embd))
            hidden[token] += y * share[token, place, None]

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x / sqrt(mean(x^2) + eps) * weight, over the last dimension"""
        return functional.rms_norm(x, (x.shape[-1],), weight, self._eps)

    def _window(self, il: int) -> int:
        full = self.info.full_layers
        return 0 if full is None or il in full else self.info.n_swa

    def _get(self, il: int, name: str) -> torch.Tensor:
        return self._weights.read(f"blk.{il}.{name}", self.device)

    def _find(self, il: int, name: str) -> torch.Tensor | None:
        full = f"blk.{il}.{name}"
        return self._weights.read(full, self.device) if full in self._weights else None
