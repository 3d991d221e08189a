"""The exact shapes of models that people run on one card: every tensor, its size and its type.

Speed and memory do not depend on what the weights say, so these numbers are all that ``plan`` and ``bench`` need to
know of a model that nobody has downloaded. The hyper-parameters are those of the published files; the types are the mix
that llama.cpp's quantiser makes of them (``llama_tensor_get_type``).

Knows nothing of files: ``writing`` makes them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from ..errors import UsageError
from ..model.architectures import ROPE_TYPES, RopeType
from ..model.model_info import MAX_LAYERS

Fill = Literal["weight", "one", "bias", "decay", "rope"]
"""random blocks, ones, small random numbers, negative ones by which a state fades, or RoPE's frequency factors"""

F32, Q8_0, Q4_K, Q5_0, Q6_K, MXFP4 = (
    GGMLQuantizationType.F32,
    GGMLQuantizationType.Q8_0,
    GGMLQuantizationType.Q4_K,
    GGMLQuantizationType.Q5_0,
    GGMLQuantizationType.Q6_K,
    GGMLQuantizationType.MXFP4,
)

MIN_VOCAB, MAX_VOCAB = 512, 2**20


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    """ggml order: the fastest dimension first"""
    type: GGMLQuantizationType
    fill: Fill

    @property
    def n_bytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // int(block) * int(size)


@dataclass(frozen=True)
class LongRope:
    """Llama 3's RoPE for long contexts, which a file carries as a divisor for each frequency."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    n_ctx_orig: int

    def divisors(self, n_rot: int, freq_base: float) -> npt.NDArray[np.float32]:
        """float32 [n_rot / 2]: 1 for short waves, ``factor`` for those longer than the context, else a blend."""
        wavelength = 2 * np.pi * freq_base ** (np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)
        span = self.high_freq_factor - self.low_freq_factor
        blend = np.clip((self.n_ctx_orig / wavelength - self.low_freq_factor) / span, 0.0, 1.0)
        return (1.0 / ((1.0 - blend) / self.factor + blend)).astype(np.float32)


@dataclass(frozen=True)
class Yarn:
    """YaRN, as the file names it."""

    factor: float
    n_ctx_orig: int


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of each feed-forward network."""

    n_expert: int
    n_used: int
    n_ff: int
    n_shared: int = 0
    """experts of the same width that every token goes through"""
    n_dense: int = 0
    """first layers, which have a plain feed-forward network"""
    has_biases: bool = False
    """they and the attention beside them"""


@dataclass(frozen=True)
class DeltaNet:
    """Recurrent layers of the Qwen3.5 kind; attention between them has a gate for each value."""

    n_head_k: int
    n_head_v: int
    d_state: int = 128
    """dimensions of each head"""
    d_conv: int = 4
    interval: int = 4
    """one of so many layers has attention, the last"""

    @property
    def n_k(self) -> int:
        return self.n_head_k * self.d_state

    @property
    def n_v(self) -> int:
        return self.n_head_v * self.d_state

    @property
    def state_bytes(self) -> int:
        """Of one recurrent layer and sequence: a matrix for each head, and what the convolution looks back on."""
        return 4 * (self.d_state * self.n_v + (self.d_conv - 1) * (2 * self.n_k + self.n_v))


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: keys and values are cached as one vector for all heads."""

    n_lora_q: int
    n_lora_kv: int
    head_dim_k: int
    """of a query once it is unpacked, turned dimensions included"""
    head_dim_v: int


@dataclass(frozen=True)
class Geometry:
    """Hyper-parameters of one model. Names are llama.cpp's."""

    name: str
    title: str
    arch: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_ctx_train: int
    rope_freq_base: float
    rms_eps: float
    file_type: LlamaFileType = LlamaFileType.MOSTLY_Q4_K_M
    rope_part: float = 1.0
    """share of a head's dimensions that are turned"""
    qk_norm: bool = False
    """queries and keys are normalised before RoPE"""
    qkv_bias: bool = False
    rope_factors: LongRope | None = None
    yarn: Yarn | None = None
    experts: Experts | None = None
    n_swa: int = 0
    """sliding window of every second layer, the first one included, in tokens; such a model has attention sinks here"""
    delta_net: DeltaNet | None = None
    latent: Latent | None = None

    @property
    def n_rot(self) -> int:
        """Turned dimensions of a head."""
        return round(self.head_dim * self.rope_part)

    @property
    def rope_sections(self) -> tuple[int, int, int, int] | None:
        """Pairs that M-RoPE turns by each of a token's positions; None: it has one position."""
        if self.delta_net is None:
            return None
        n = self.n_rot // 2
        return (n + 2) // 3, (n + 1) // 3, n // 3, 0

    @property
    def head_dim_v(self) -> int:
        """Of a cached value."""
        return self.head_dim if self.latent is None else self.latent.n_lora_kv

    @property
    def evicts(self) -> bool:
        """Whether TriAttention works on it."""
        return self.latent is None

    @property
    def rope_type(self) -> RopeType:
        rope_type = ROPE_TYPES[self.arch]
        assert rope_type is not None
        return rope_type

    @property
    def full_layers(self) -> tuple[int, ...]:
        """Layers whose cache grows with the context."""
        if self.delta_net is not None:
            return tuple(range(self.delta_net.interval - 1, self.n_layer, self.delta_net.interval))
        return tuple(range(1 if self.n_swa else 0, self.n_layer, 2 if self.n_swa else 1))

    def cut(self, n_layer: int | None = None, n_vocab: int | None = None) -> Geometry:
        """The same with other numbers of layers and tokens, for tests and short measurements.

        Raises
        ------
        UsageError
            A number that no model has.
        """
        n_layer = self.n_layer if n_layer is None else n_layer
        n_vocab = self.n_vocab if n_vocab is None else n_vocab
        if not 1 <= n_layer <= MAX_LAYERS:
            raise UsageError(f"{n_layer} layers", where=self.name, fix=f"give a number in 1 ... {MAX_LAYERS}")
        if not MIN_VOCAB <= n_vocab <= MAX_VOCAB:
            raise UsageError(
                f"a vocabulary of {n_vocab} tokens", where=self.name, fix=f"give {MIN_VOCAB} ... {MAX_VOCAB}"
            )
        if self.n_swa and n_layer < 2:
            raise UsageError("1 layer, and that has a sliding window", where=self.name, fix="give 2 layers or more")
        if self.delta_net is not None and n_layer < self.delta_net.interval:
            raise UsageError(
                f"{n_layer} layers, and all of them are recurrent",
                where=self.name,
                fix=f"give {self.delta_net.interval} layers or more",
            )
        return dataclasses.replace(self, n_layer=n_layer, n_vocab=n_vocab)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor, in the order of the file."""
        yield Tensor("token_embd.weight", (self.n_embd, self.n_vocab), self._type("token_embd", 0), "weight")
        if self.rope_factors is not None:
            yield Tensor("rope_freqs.weight", (self.head_dim // 2,), F32, "rope")
        for il in range(self.n_layer):
            yield Tensor(f"blk.{il}.attn_norm.weight", (self.n_embd,), F32, "one")
            if self.latent is not None:
                yield from self._latent_attention(il, self.latent)
            elif self.delta_net is not None and il not in self.full_layers:
                yield from self._recurrent(il, self.delta_net)
            else:
                yield from self._attention(il)
            yield from self._feed_forward(il)
        yield Tensor("output_norm.weight", (self.n_embd,), F32, "one")
        yield Tensor("output.weight", (self.n_embd, self.n_vocab), self._type("output", 0), "weight")

    def _attention(self, il: int) -> Iterator[Tensor]:
        block = f"blk.{il}."
        n_q, n_kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        biases_everywhere = self.experts is not None and self.experts.has_biases
        has_bias = self.qkv_bias or biases_everywhere
        for name, n_in, n_out in (
            ("attn_q", self.n_embd, n_q if self.delta_net is None else 2 * n_q),
            ("attn_k", self.n_embd, n_kv),
            ("attn_v", self.n_embd, n_kv),
            ("attn_output", n_q, self.n_embd),
        ):
            yield self._matrix(il, name, n_in, n_out)
            if has_bias and (name != "attn_output" or biases_everywhere):
                yield Tensor(f"{block}{name}.bias", (n_out,), F32, "bias")
        if self.qk_norm:
            yield Tensor(f"{block}attn_q_norm.weight", (self.head_dim,), F32, "one")
            yield Tensor(f"{block}attn_k_norm.weight", (self.head_dim,), F32, "one")
        if self.n_swa:
            yield Tensor(f"{block}attn_sinks.weight", (self.n_head,), F32, "bias")

    def _recurrent(self, il: int, net: DeltaNet) -> Iterator[Tensor]:
        block, n_conv = f"blk.{il}.", 2 * net.n_k + net.n_v
        yield self._matrix(il, "attn_qkv", self.n_embd, n_conv)
        yield self._matrix(il, "attn_gate", self.n_embd, net.n_v)
        yield Tensor(f"{block}ssm_conv1d.weight", (net.d_conv, n_conv), F32, "bias")
        yield Tensor(f"{block}ssm_dt.bias", (net.n_head_v,), F32, "bias")
        yield Tensor(f"{block}ssm_a", (net.n_head_v,), F32, "decay")
        yield self._matrix(il, "ssm_beta", self.n_embd, net.n_head_v)
        yield self._matrix(il, "ssm_alpha", self.n_embd, net.n_head_v)
        yield Tensor(f"{block}ssm_norm.weight", (net.d_state,), F32, "one")
        yield self._matrix(il, "ssm_out", net.n_v, self.n_embd)

    def _latent_attention(self, il: int, latent: Latent) -> Iterator[Tensor]:
        block = f"blk.{il}."
        yield self._matrix(il, "attn_q_a", self.n_embd, latent.n_lora_q)
        yield Tensor(f"{block}attn_q_a_norm.weight", (latent.n_lora_q,), F32, "one")
        yield self._matrix(il, "attn_q_b", latent.n_lora_q, self.n_head * latent.head_dim_k)
        yield self._matrix(il, "attn_kv_a_mqa", self.n_embd, self.head_dim)
        yield Tensor(f"{block}attn_kv_a_norm.weight", (latent.n_lora_kv,), F32, "one")
        yield self._matrix(il, "attn_k_b", latent.head_dim_k - self.n_rot, latent.n_lora_kv, self.n_head)
        yield self._matrix(il, "attn_v_b", latent.n_lora_kv, latent.head_dim_v, self.n_head)
        yield self._matrix(il, "attn_output", self.n_head * latent.head_dim_v, self.n_embd)

    def _feed_forward(self, il: int) -> Iterator[Tensor]:
        block = f"blk.{il}."
        # what gpt-oss and Qwen3.5 normalise there is the same sum, by another name
        norm = "post_attention_norm" if self.n_swa or self.delta_net is not None else "ffn_norm"
        yield Tensor(f"{block}{norm}.weight", (self.n_embd,), F32, "one")
        if self.experts is None or il < self.experts.n_dense:
            yield from self._gated(il, "", self.n_ff)
            return
        n_expert, n_ff = self.experts.n_expert, self.experts.n_ff
        yield Tensor(f"{block}ffn_gate_inp.weight", (self.n_embd, n_expert), F32, "bias")
        if self.experts.has_biases:
            yield Tensor(f"{block}ffn_gate_inp.bias", (n_expert,), F32, "bias")
        if self.latent is not None:
            yield Tensor(f"{block}exp_probs_b.bias", (n_expert,), F32, "bias")
        for tensor in self._gated(il, "_exps", n_ff, n_expert):
            yield tensor
            if self.experts.has_biases:
                name = tensor.name.replace(".weight", ".bias")
                yield Tensor(name, (tensor.shape[1], n_expert), F32, "bias")
        if self.experts.n_shared:
            if self.delta_net is not None:
                yield Tensor(f"{block}ffn_gate_inp_shexp.weight", (self.n_embd,), F32, "bias")
            yield from self._gated(il, "_shexp", n_ff * self.experts.n_shared)

    def _gated(self, il: int, suffix: str, n_ff: int, *more: int) -> Iterator[Tensor]:
        for name, n_in, n_out in (
            ("ffn_gate", self.n_embd, n_ff),
            ("ffn_up", self.n_embd, n_ff),
            ("ffn_down", n_ff, self.n_embd),
        ):
            yield self._matrix(il, name + suffix, n_in, n_out, *more)

    def _matrix(self, il: int, name: str, *shape: int) -> Tensor:
        kind = self._type(name, il)
        if kind is Q4_K and shape[0] % GGML_QUANT_SIZES[kind][0]:
            kind = Q5_0  # whose blocks are smaller
        return Tensor(f"blk.{il}.{name}.weight", shape, kind, "weight")

    def _type(self, name: str, il: int) -> GGMLQuantizationType:
        """What llama.cpp's quantiser makes of a matrix."""
        if self.file_type == LlamaFileType.MOSTLY_MXFP4_MOE:
            return MXFP4 if name.endswith("_exps") else Q8_0
        if name == "output":
            return Q6_K
        if (name in ("attn_v", "attn_qkv") or name.startswith("ffn_down")) and _use_more_bits(il, self.n_layer):
            return Q6_K
        return Q4_K


def _use_more_bits(il: int, n_layer: int) -> bool:
    """llama-quant.cpp's choice of layers that a mix spends more bits on: the first, the last, and every third."""
    return il < n_layer // 8 or il >= 7 * n_layer // 8 or (il - n_layer // 8) % 3 == 2


_QWEN3_8B = Geometry(
    name="qwen3-8b",
    title="Qwen3 8B",
    arch="qwen3",
    n_layer=36,
    n_embd=4096,
    n_ff=12288,
    n_head=32,
    n_head_kv=8,
    head_dim=128,
    n_vocab=151936,
    n_ctx_train=40960,
    rope_freq_base=1e6,
    rms_eps=1e-6,
    qk_norm=True,
)

_QWEN2_32B = Geometry(
    name="qwq-32b",
    title="QwQ 32B",
    arch="qwen2",
    n_layer=64,
    n_embd=5120,
    n_ff=27648,
    n_head=40,
    n_head_kv=8,
    head_dim=128,
    n_vocab=152064,
    n_ctx_train=131072,
    rope_freq_base=1e6,
    rms_eps=1e-5,
    qkv_bias=True,
)

_QWEN3_5_27B = Geometry(
    name="qwen3.5-27b",
    title="Qwen3.5 27B",
    arch="qwen35",
    n_layer=64,
    n_embd=5120,
    n_ff=17408,
    n_head=24,
    n_head_kv=4,
    head_dim=256,
    n_vocab=248320,
    n_ctx_train=262144,
    rope_freq_base=1e7,
    rms_eps=1e-6,
    rope_part=0.25,
    qk_norm=True,
    delta_net=DeltaNet(n_head_k=16, n_head_v=48),
)

GEOMETRIES: dict[str, Geometry] = {
    geometry.name: geometry
    for geometry in (
        _QWEN3_8B,
        dataclasses.replace(
            _QWEN3_8B, name="qwen3-32b", title="Qwen3 32B", n_layer=64, n_embd=5120, n_ff=25600, n_head=64
        ),
        _QWEN2_32B,
        dataclasses.replace(_QWEN2_32B, name="deepseek-r1-distill-qwen-32b", title="DeepSeek R1 Distill Qwen 32B"),
        Geometry(
            name="deepseek-r1-distill-llama-8b",
            title="DeepSeek R1 Distill Llama 8B",
            arch="llama",
            n_layer=32,
            n_embd=4096,
            n_ff=14336,
            n_head=32,
            n_head_kv=8,
            head_dim=128,
            n_vocab=128256,
            n_ctx_train=131072,
            rope_freq_base=5e5,
            rms_eps=1e-5,
            rope_factors=LongRope(8.0, 1.0, 4.0, 8192),
        ),
        Geometry(
            name="gpt-oss-20b",
            title="gpt-oss 20B",
            arch="gpt-oss",
            n_layer=24,
            n_embd=2880,
            n_ff=2880,
            n_head=64,
            n_head_kv=8,
            head_dim=64,
            n_vocab=201088,
            n_ctx_train=131072,
            rope_freq_base=1.5e5,
            rms_eps=1e-5,
            file_type=LlamaFileType.MOSTLY_MXFP4_MOE,
            yarn=Yarn(32.0, 4096),
            experts=Experts(32, 4, 2880, has_biases=True),
            n_swa=128,
        ),
        _QWEN3_5_27B,
        dataclasses.replace(_QWEN3_5_27B, name="qwen3.8-27b", title="Qwen3.8 27B"),
        dataclasses.replace(
            _QWEN3_5_27B,
            name="qwen3.5-35b-a3b",
            title="Qwen3.5 35B A3B",
            arch="qwen35moe",
            n_layer=40,
            n_embd=2048,
            n_ff=512,
            n_head=16,
            n_head_kv=2,
            delta_net=DeltaNet(n_head_k=16, n_head_v=32),
            experts=Experts(256, 8, 512, n_shared=1),
        ),
        Geometry(
            name="glm-4.7-flash",
            title="GLM 4.7 Flash",
            arch="deepseek2",
            n_layer=47,
            n_embd=2048,
            n_ff=10240,
            n_head=20,
            n_head_kv=1,
            head_dim=576,
            n_vocab=154880,
            n_ctx_train=202752,
            rope_freq_base=1e6,
            rms_eps=1e-5,
            rope_part=64 / 576,
            experts=Experts(64, 4, 1536, n_shared=1, n_dense=1),
            latent=Latent(n_lora_q=768, n_lora_kv=512, head_dim_k=256, head_dim_v=256),
        ),
    )
}
"""name -> geometry; the quantisation is the one that people download: Q4_K_M, of gpt-oss MXFP4"""


def find_geometry(name: str) -> Geometry:
    """The geometry of this name, in small or capital letters.

    Raises
    ------
    UsageError
        There is none.
    """
    found = GEOMETRIES.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), GEOMETRIES, 1)
        fix = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(GEOMETRIES)}"
        raise UsageError(f"no geometry {name!r}", where="--geometry", fix=fix)
    return found
