"""What a run is asked to do: frozen, typed, checked once at the edge.

Each field is one line of the table of settings, which ``settings`` completes: flags, environment, config.toml, docs,
KV overrides and the C struct are made of it. Values are in the units of their names. Knows nothing of files, of
llama.cpp, or of where a value came from.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import UsageError
from .support.setting import (
    BYTES,
    INT32,
    NUMBER,
    TRUTH,
    WHOLE,
    WHOLE_OR_AUTO,
    WHOLE_OR_OFF,
    WORD,
    check,
    lines,
    one_of,
    setting,
)

Mode = Literal["shared", "per-head", "per-layer-head"]
Policy = Literal["triattention", "streaming", "knorm", "random", "snapkv", "h2o", "tova", "rkv"]
Terms = Literal["both", "trig", "norm"]
Offsets = Literal["geometric", "linear"]
Aggregate = Literal["mean", "max"]
Cold = Literal["off", "auto"] | int

MODES: tuple[Mode, ...] = get_args(Mode)
POLICIES: tuple[Policy, ...] = get_args(Policy)
TERMS: tuple[Terms, ...] = get_args(Terms)
OFFSETS: tuple[Offsets, ...] = get_args(Offsets)
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)
ROPE_SCALINGS: tuple[str, ...] = ("none", "linear", "yarn")
CACHE_TYPES: tuple[str, ...] = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")

CACHE, COMPUTE, ANSWER = "Cache", "Compute", "Answer"
"""headings of flags in ``--help``"""


def _shares(split: object) -> tuple[int, ...]:
    try:
        if isinstance(split, (str, bytes)):
            raise TypeError
        shares = tuple(operator.index(share) for share in split)  # type: ignore[attr-defined]  # that is the question
    except TypeError:
        raise UsageError(f"{split!r} are no whole numbers", where="tensor_split") from None
    if any(not 0 <= share <= INT32 for share in shares):
        raise UsageError(f"{split!r} has numbers that are no numbers of layers", where="tensor_split")
    return shares


@dataclass(frozen=True)
class EvictionConfig:
    """How the KV cache forgets. Field for field the C struct ``llama_triattn_params``."""

    budget_tokens: int = setting(
        2048,
        WHOLE_OR_OFF,
        "Tokens that each head keeps.",
        CACHE,
        "TOKENS",
        name="budget",
        c_name="budget",
        planned="auto, 2048 or on a GPU up to 4096, what fits; off is full attention",
    )
    window: int = setting(
        128, WHOLE, "New tokens between two rounds; as many recent ones are safe.", CACHE, "TOKENS", low=1
    )
    n_keep: int = setting(
        4,
        WHOLE_OR_AUTO,
        "First tokens that are never evicted, or auto: the prompt while it fits a part of the budget.",
        CACHE,
        "TOKENS",
        name="keep",
        low=0,
    )
    mode: Mode = setting(
        "per-layer-head", WORD, f"Who keeps its own set of tokens: {one_of(MODES)}.", CACHE, "MODE", choices=MODES
    )
    policy: Policy = setting(
        "triattention", WORD, f"How tokens are ranked: {one_of(POLICIES)}.", CACHE, "POLICY", choices=POLICIES
    )
    aggregate: Aggregate = setting(
        "mean", WORD, f"How shared mode makes one score of all heads: {one_of(AGGREGATES)}.", choices=AGGREGATES
    )
    terms: Terms = setting("both", WORD, f"Ablation, terms of the score: {one_of(TERMS)}.", choices=TERMS)
    # weight a_f without it, a_f - |q_mean_f| with it
    weight_r: bool = setting(True, TRUTH, "Ablation, weigh the norm term by 1 - R.")
    offsets: Offsets = setting("geometric", WORD, f"Ablation, future distances: {one_of(OFFSETS)}.", choices=OFFSETS)
    offset_max: int = setting(65536, WHOLE, "Ablation, largest future distance.", low=1)
    # beside the score's own z-score, that of log |v|: a token counts by what it would add to the output
    weight_v: float = setting(
        0.5, NUMBER, "How much the length of a token's value counts; 0 as in the paper.", low=0, high=100
    )
    seed: int = setting(0, WHOLE, name="seed", low=0, high=2**32 - 1)
    # auto: three quarters of what is free
    cold: Cold = setting(
        "auto",
        BYTES,
        "Memory of this machine for what was evicted, to bring back what is asked for: off, auto or bytes (8GiB).",
        CACHE,
        "SIZE",
        low=1,
        high=2**42,
    )
    recall: float = setting(
        0.5, NUMBER, "Part of the budget that what comes back while text streams may take.", low=0, high=0.9
    )
    recall_prompt: float = setting(0.65, NUMBER, "The same at the end of a prompt.", low=0, high=0.9)
    recall_block: int = setting(16, WHOLE, "Tokens that come back together at the end of a prompt.", low=1, high=1024)
    recall_queries: int = setting(
        24, WHOLE, "Last queries of a prompt that its end is compared with.", low=0, high=1024
    )
    recall_period: int = setting(2, WHOLE, "Tokens between recalls while text streams; 0: none.", low=0, high=1024)
    # part of the budget that a prompt may take to be pinned whole, else its system prompt and tools are; 0: nothing is
    pin: float = setting(0.0, NUMBER, low=0, high=0.9)
    # beside the centres, the z-score of the log of what the last recall_queries queries attend to
    weight_q: float = setting(
        0.0, NUMBER, "How much what the last queries attend to counts beside the centres.", low=0, high=100
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.recall_queries + self.recall_period:
            raise UsageError("queries and period are both 0: nothing would come back", where="recall_queries")
        if self.budget_tokens <= self.n_keep + self.window:
            raise UsageError(
                f"budget {self.budget_tokens} must be larger than keep + window = "
                f"{self.n_keep} + {self.window} = {self.n_keep + self.window}",
                where="--budget",
                fix=f"give --budget {self.n_keep + self.window + 1} or more, or a smaller --keep or --window",
            )


def kv_overrides(eviction: EvictionConfig | None) -> dict[str, bool | int | float | str]:
    """Eviction as llama.cpp's KV overrides, which stand above the environment: it must not change what was asked for.

    None turns it off.
    """
    if eviction is None:
        return {"triattention.budget": "off"}
    values = {line: getattr(eviction, line.field) for line in lines(type(eviction))}
    return {f"triattention.{line.c_name}": str(v) if line.kind is BYTES else v for line, v in values.items()}


FITTING_TYPE = "auto, f16 or q8_0, what fits"


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE is stretched for contexts beyond the trained one."""

    kind: str = setting("yarn", WORD, choices=ROPE_SCALINGS)
    """"none", "linear" or "yarn" """
    factor: float = setting(1.0, NUMBER, low=1, high=1024)
    """times the original context"""
    n_ctx_orig: int = setting(1, WHOLE, low=1)
    """context in tokens that is stretched"""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class RuntimeConfig:
    """The context that a model runs in."""

    # the cache does not grow with it while eviction is on
    n_ctx: int = setting(
        8192,
        WHOLE,
        "Logical context.",
        CACHE,
        "TOKENS",
        name="ctx",
        low=1,
        high=INT32,
        planned="auto, what the model was trained for, at most 131072",
    )
    n_batch: int = setting(
        512,
        WHOLE,
        "Tokens of the prompt decoded in one call; the cache has room for them beside the budget.",
        COMPUTE,
        "TOKENS",
        name="batch",
        low=1,
    )
    n_ubatch: int = setting(512, WHOLE, low=1)
    """tokens that go through the graph at once"""
    n_seq_max: int = setting(1, WHOLE, low=1)
    """sequences that share the context"""
    cache_type_k: str = setting(
        "f16",
        WORD,
        f"Type of the cached keys: {one_of(CACHE_TYPES)}.",
        CACHE,
        "TYPE",
        choices=CACHE_TYPES,
        planned=FITTING_TYPE,
    )
    cache_type_v: str = setting(
        "f16",
        WORD,
        "Type of the cached values, one of the same; a quantised one needs flash attention.",
        CACHE,
        "TYPE",
        choices=CACHE_TYPES,
        planned=FITTING_TYPE,
    )
    # without it V is stored transposed, and then it must not be quantised
    flash_attn: bool = setting(True, TRUTH, "Flash attention.", COMPUTE)
    n_threads: int | None = setting(
        None,
        WHOLE,
        "CPU threads; one a physical core if not given.",
        COMPUTE,
        "N",
        name="threads",
        low=1,
        spelled=("--threads", "-t"),
    )
    # False: the same number always, so that the last bits of results, which depend on it, are the same again
    yield_cores: bool = setting(True, TRUTH, "Fewer threads while other programs use the cores, on Linux.", COMPUTE)
    n_gpu_layers: int = setting(
        -1, WHOLE, "Layers on the GPU, -1 for all.", COMPUTE, "N", name="gpu_layers", planned="auto, as many as fit"
    )
    rope_scaling: RopeScaling | None = None
    """for contexts beyond the trained one; None: as the file says"""
    tensor_split: tuple[int, ...] | None = None
    """how many of them each GPU gets, the output included; None: by the memory that each has free"""
    use_mmap: bool = setting(True, TRUTH)
    verbose: bool = setting(False, TRUTH)
    """llama.cpp's own log on stderr"""

    def __post_init__(self) -> None:
        check(self)
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, RopeScaling):
            raise UsageError(f"{self.rope_scaling!r} is no RopeScaling", where="rope_scaling")
        if self.tensor_split is not None:
            object.__setattr__(self, "tensor_split", _shares(self.tensor_split))
        if not self.flash_attn and self.cache_type_v not in ("f32", "f16", "bf16"):
            raise UsageError(
                f"a {self.cache_type_v} V cache needs flash attention",
                where="--cache-type-v",
                fix="give --flash-attn, or --cache-type-v f16",
            )


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn. temperature 0 is greedy."""

    temperature: float = setting(
        0.0,
        NUMBER,
        "Sampling temperature; 0 always takes the likeliest token. Of sampling, what is not given is what the model's "
        "file says.",
        ANSWER,
        "T",
        name="temp",
        low=0,
    )
    top_k: int = setting(40, WHOLE, "Draw from so many tokens at most; 0 for any.", ANSWER, "N")
    top_p: float = setting(
        0.95, NUMBER, "Draw from the likeliest tokens that together have this probability.", ANSWER, "P"
    )
    min_p: float = setting(0.05, NUMBER, "Leave out tokens less likely than this part of the likeliest.", ANSWER, "P")
    repeat_penalty: float = setting(1.0, NUMBER, "Above 1 makes the last 64 tokens less likely.", ANSWER, "X")
    repeat_last_n: int = setting(64, WHOLE, low=0)
    presence_penalty: float = setting(
        0.0, NUMBER, "The same by a number that is taken from their logits; 0 for none.", ANSWER, "X"
    )
    seed: int = setting(
        0, WHOLE, "Same seed, same answer; also of the random policy.", ANSWER, "N", low=-(2**63), high=2**64
    )

    def __post_init__(self) -> None:
        check(self)
        if self.repeat_penalty <= 0:
            raise UsageError(f"must be above 0, not {self.repeat_penalty}", where="--repeat-penalty")


EFFORTS: tuple[str, ...] = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""OpenAI's words; a template knows some of them"""


@dataclass(frozen=True)
class ThinkingConfig:
    """How much a model may think before it answers."""

    # False: the answer comes at once, as with a budget of 0
    enabled: bool | None = setting(
        None,
        TRUTH,
        "Whether the model thinks before it answers; if not given, as its template has it.",
        ANSWER,
        name="think",
    )
    # "none" is enabled=False
    effort: str | None = setting(
        None,
        WORD,
        f"How hard it thinks, for templates that take that: {one_of(EFFORTS)}.",
        ANSWER,
        "LEVEL",
        choices=EFFORTS,
    )
    # then the end mark of thinking is put, and the answer begins
    budget_tokens: int | None = setting(
        None,
        WHOLE,
        "Tokens of thinking after which it has to answer; no limit if not given.",
        ANSWER,
        "TOKENS",
        name="think_budget",
        low=0,
    )

    def __post_init__(self) -> None:
        check(self)
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
