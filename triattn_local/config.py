"""What a run is asked to do: frozen, typed, checked once at the edge.

Values are in the units of their names. Knows nothing of files, of llama.cpp, or of where a value came from (flag,
environment, config file): see ``settings``.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any, Literal

from .errors import UsageError

Mode = Literal["shared", "per-head", "per-layer-head"]
Policy = Literal["triattention", "streaming", "knorm", "random"]
Terms = Literal["both", "trig", "norm"]
Offsets = Literal["geometric", "linear"]
Aggregate = Literal["mean", "max"]
Cold = Literal["off", "auto"] | int

MODES: tuple[Mode, ...] = ("shared", "per-head", "per-layer-head")
POLICIES: tuple[Policy, ...] = ("triattention", "streaming", "knorm", "random")
TERMS: tuple[Terms, ...] = ("both", "trig", "norm")
OFFSETS: tuple[Offsets, ...] = ("geometric", "linear")
AGGREGATES: tuple[Aggregate, ...] = ("mean", "max")
ROPE_SCALINGS: tuple[str, ...] = ("none", "linear", "yarn")
CACHE_TYPES: tuple[str, ...] = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


_INT32 = 2**31 - 1
"""what llama.cpp's fields hold: ctypes would cut off the rest without a word"""


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{value!r} is not one of {', '.join(choices)}", where=f"--{name}")


def _whole(config: Any, where: dict[str, str], *, low: int = -_INT32, high: int = _INT32) -> None:
    """Whole numbers in these fields, NumPy's too; `where` says what an error calls them."""
    for name, called in where.items():
        value = getattr(config, name)
        try:
            if isinstance(value, bool):
                raise TypeError
            number = operator.index(value)
        except TypeError:
            raise UsageError(f"{value!r} is not a whole number", where=called) from None
        if not low <= number <= high:
            raise UsageError(f"{number} is not in {low} ... {high}", where=called)
        object.__setattr__(config, name, number)


def _real(config: Any, where: dict[str, str]) -> None:
    """Finite numbers in these fields."""
    for name, called in where.items():
        value = getattr(config, name)
        try:
            if isinstance(value, (bool, str, bytes)):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise UsageError(f"{value!r} is not a number", where=called) from None
        if not math.isfinite(number):
            raise UsageError(f"must be finite, not {number}", where=called)


def _shares(split: object) -> tuple[int, ...]:
    try:
        if isinstance(split, (str, bytes)):
            raise TypeError
        shares = tuple(operator.index(share) for share in split)  # type: ignore[attr-defined]  # that is the question
    except TypeError:
        raise UsageError(f"{split!r} are no whole numbers", where="tensor_split") from None
    if any(not 0 <= share <= _INT32 for share in shares):
        raise UsageError(f"{split!r} has numbers that are no numbers of layers", where="tensor_split")
    return shares


def _truth(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, bool):
            raise UsageError(f"{value!r} is not True or False", where=name)


@dataclass(frozen=True)
class EvictionConfig:
    """How the KV cache forgets. Field for field the C struct ``llama_triattn_params``."""

    budget_tokens: int = 2048
    """tokens that each head keeps of a sequence after a round"""
    window: int = 128
    """new tokens between two rounds; as many recent tokens are never evicted"""
    n_keep: int = 4
    """first tokens (attention sinks, system prompt) that are never evicted"""
    mode: Mode = "per-layer-head"
    """who keeps its own set of tokens"""
    policy: Policy = "triattention"
    """how tokens are ranked"""
    aggregate: Aggregate = "mean"
    """`shared` mode: how the heads of all layers make one score"""
    terms: Terms = "both"
    """ablation: trigonometric term, norm term, or their sum"""
    weight_r: bool = True
    """ablation: False leaves the concentration R out of the norm term (weight a_f instead of a_f - |q_mean_f|)"""
    offsets: Offsets = "geometric"
    """ablation: how the future distances D are spaced"""
    offset_max: int = 65536
    """largest future distance in D, in tokens"""
    weight_v: float = 0.5
    """weight of the z-score of log |v| beside the score's own: a token counts by what it would add to the output; 0:
    keys alone decide, as in the paper"""
    seed: int = 0
    """seed of the `random` policy"""
    cold: Cold = "auto"
    """memory of this machine for rows that were evicted, which come back when the last queries want them: off, auto
    (three quarters of what is free), or bytes"""
    recall: float = 0.5
    """part of the budget that what comes back may take"""
    recall_block: int = 16
    """tokens that come back together at the end of a prompt"""
    recall_queries: int = 24
    """last queries of a prompt that its end is compared with"""
    recall_period: int = 2
    """tokens between recalls while text streams; 0: none"""

    def __post_init__(self) -> None:
        if self.cold not in ("off", "auto"):
            _whole(self, {"cold": "--cold"}, low=1, high=2**42)
        _real(self, {"recall": "recall"})
        if not 0 <= self.recall <= 0.9:
            raise UsageError(f"must be from 0 to 0.9, not {self.recall}", where="recall")
        _whole(self, {"recall_block": "recall_block"}, low=1, high=1024)
        for name in ("recall_queries", "recall_period"):
            _whole(self, {name: name}, low=0, high=1024)
        if not self.recall_queries + self.recall_period:
            raise UsageError("queries and period are both 0: nothing would come back", where="recall_queries")
        _choice("mode", self.mode, MODES)
        _choice("policy", self.policy, POLICIES)
        _choice("aggregate", self.aggregate, AGGREGATES)
        _choice("terms", self.terms, TERMS)
        _choice("offsets", self.offsets, OFFSETS)
        _whole(self, {"budget_tokens": "--budget", "window": "--window", "n_keep": "--keep"})
        _whole(self, {"offset_max": "offset_max"})
        _whole(self, {"seed": "--seed"}, low=0, high=2**32 - 1)
        _real(self, {"weight_v": "weight_v"})
        _truth(self, "weight_r")
        if self.window < 1:
            raise UsageError(f"window must be at least 1 token, not {self.window}", where="--window")
        if self.n_keep < 0:
            raise UsageError(f"keep must not be negative, not {self.n_keep}", where="--keep")
        if self.budget_tokens <= self.n_keep + self.window:
            raise UsageError(
                f"budget {self.budget_tokens} must be larger than keep + window = "
                f"{self.n_keep} + {self.window} = {self.n_keep + self.window}",
                where="--budget",
                fix=f"give --budget {self.n_keep + self.window + 1} or more, or a smaller --keep or --window",
            )
        if self.offset_max < 1:
            raise UsageError(f"offset_max must be at least 1, not {self.offset_max}", where="offset_max")
        if not 0.0 <= self.weight_v <= 100.0:
            raise UsageError(f"weight_v must be from 0 to 100, not {self.weight_v}", where="weight_v")


def kv_overrides(eviction: EvictionConfig | None) -> dict[str, bool | int | float | str]:
    """Eviction as llama.cpp's KV overrides, which stand above the environment: it must not change what was asked for.

    None turns it off.
    """
    if eviction is None:
        return {"triattention.budget": "off"}
    return {
        "triattention.budget": eviction.budget_tokens,
        "triattention.window": eviction.window,
        "triattention.n_keep": eviction.n_keep,
        "triattention.mode": eviction.mode,
        "triattention.policy": eviction.policy,
        "triattention.aggregate": eviction.aggregate,
        "triattention.terms": eviction.terms,
        "triattention.weight_r": eviction.weight_r,
        "triattention.offsets": eviction.offsets,
        "triattention.offset_max": eviction.offset_max,
        "triattention.weight_v": float(eviction.weight_v),
        "triattention.seed": eviction.seed,
        "triattention.cold": eviction.cold if isinstance(eviction.cold, str) else str(eviction.cold),
        "triattention.recall": float(eviction.recall),
        "triattention.recall_block": eviction.recall_block,
        "triattention.recall_queries": eviction.recall_queries,
        "triattention.recall_period": eviction.recall_period,
    }


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE is stretched for contexts beyond the trained one."""

    kind: str
    """"none", "linear" or "yarn" """
    factor: float
    """times the original context"""
    n_ctx_orig: int
    """context in tokens that is stretched"""

    def __post_init__(self) -> None:
        _choice("rope-scaling", self.kind, ROPE_SCALINGS)
        _real(self, {"factor": "--rope-scaling"})
        _whole(self, {"n_ctx_orig": "--rope-scaling"}, low=1)
        if not 1.0 <= self.factor <= 1024.0:
            raise UsageError(f"a factor of {self.factor:g} is not in 1 ... 1024", where="--rope-scaling")


@dataclass(frozen=True)
class RuntimeConfig:
    """The context that a model runs in."""

    n_ctx: int = 8192
    """logical context in tokens; the cache does not grow with it while eviction is on"""
    n_batch: int = 512
    """tokens of a prompt that are decoded in one call"""
    n_ubatch: int = 512
    """tokens that go through the graph at once"""
    n_seq_max: int = 1
    """sequences that share the context"""
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    rope_scaling: RopeScaling | None = None
    """for contexts beyond the trained one; None: as the file says"""
    flash_attn: bool = True
    """False stores V transposed, and then V must not be quantised"""
    n_threads: int | None = None
    """None: one a physical core"""
    yield_cores: bool = True
    """fewer threads while other programs use the cores; False: the same number always, so that the last bits
    of results, which depend on it, are the same again"""
    n_gpu_layers: int = -1
    """layers on the GPU, -1 for all"""
    tensor_split: tuple[int, ...] | None = None
    """how many of them each GPU gets, the output included; None: by the memory that each has free"""
    use_mmap: bool = True
    verbose: bool = False
    """llama.cpp's own log on stderr"""

    def __post_init__(self) -> None:
        _choice("cache-type-k", self.cache_type_k, CACHE_TYPES)
        _choice("cache-type-v", self.cache_type_v, CACHE_TYPES)
        _whole(self, {name: name for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")}, low=1)
        _whole(self, {"n_gpu_layers": "--gpu-layers"})
        if self.n_threads is not None:
            _whole(self, {"n_threads": "--threads"})
        if self.tensor_split is not None:
            object.__setattr__(self, "tensor_split", _shares(self.tensor_split))
        if not isinstance(self.rope_scaling, RopeScaling | None):
            raise UsageError(f"{self.rope_scaling!r} is no RopeScaling", where="rope_scaling")
        _truth(self, "flash_attn", "use_mmap", "verbose", "yield_cores")
        if self.n_threads is not None and self.n_threads < 1:
            raise UsageError(f"threads must be at least 1, not {self.n_threads}", where="--threads")
        if not self.flash_attn and self.cache_type_v not in ("f32", "f16", "bf16"):
            raise UsageError(
                f"a {self.cache_type_v} V cache needs flash attention",
                where="--cache-type-v",
                fix="give --flash-attn, or --cache-type-v f16",
            )


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn. temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    """divides the logits of the last `repeat_last_n` tokens; 1.0 for none"""
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    """taken from the logit of each of these tokens, however often it came"""
    seed: int = 0

    def __post_init__(self) -> None:
        _real(self, {"temperature": "--temp", "top_p": "--top-p", "min_p": "--min-p"})
        _real(self, {"repeat_penalty": "--repeat-penalty", "presence_penalty": "--presence-penalty"})
        _whole(self, {"top_k": "--top-k"})
        _whole(self, {"repeat_last_n": "repeat_last_n"}, low=0)
        _whole(self, {"seed": "--seed"}, low=-(2**63), high=2**64)
        if self.temperature < 0:
            raise UsageError(f"temperature must not be negative, not {self.temperature}", where="--temp")
        if self.repeat_penalty <= 0:
            raise UsageError(f"must be above 0, not {self.repeat_penalty}", where="--repeat-penalty")


EFFORTS: tuple[str, ...] = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""OpenAI's words; a template knows some of them"""


@dataclass(frozen=True)
class ThinkingConfig:
    """How much a model may think before it answers."""

    enabled: bool | None = None
    """None: as the model's template has it; False: the answer comes at once, as with a budget of 0"""
    effort: str | None = None
    """for templates that take one, such as gpt-oss's; "none" is enabled=False"""
    budget_tokens: int | None = None
    """tokens of thinking after which its end mark is put and the answer begins; None: no limit"""

    def __post_init__(self) -> None:
        if self.enabled is not None:
            _truth(self, "enabled")
        if self.effort is not None:
            _choice("effort", self.effort, EFFORTS)
        if self.budget_tokens is not None:
            _whole(self, {"budget_tokens": "--think-budget"}, low=0)
        if self.enabled and (self.effort == "none" or self.budget_tokens == 0):
            where = "--effort" if self.effort == "none" else "--think-budget"
            raise UsageError("thinking is turned on and off", where=where, fix="leave one of the two out")

    @property
    def is_off(self) -> bool:
        return self.enabled is False or self.effort == "none" or self.budget_tokens == 0

    @property
    def limit(self) -> int | None:
        """Tokens of thinking that may come; None: any number."""
        return 0 if self.is_off else self.budget_tokens

    def arguments(self) -> dict[str, bool | int | str]:
        """What chat templates are given, by all names that they have for it; nothing if nothing was said."""
        given: dict[str, bool | int | str] = {}
        if self.is_off or self.enabled is not None:
            # Qwen3, GLM and most; DeepSeek V3.1, Granite and Kimi
            given |= dict.fromkeys(("enable_thinking", "thinking"), not self.is_off)
        if self.effort not in (None, "none"):
            given |= dict.fromkeys(("reasoning_effort", "reasoning_strength"), str(self.effort))
        if self.limit is not None:
            given["thinking_budget"] = self.limit  # Seed-OSS
        return given
