"""One prompt, one answer, one report: what ``run`` does, without the terminal.

The report always comes, also when the answer was stopped: what the cache did is half of what was asked for. Knows
nothing of flags and of how text and progress are shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..answers.thinking import ThinkingLimit, TokenSplitter, marks_of
from ..config import EvictionConfig, SamplingConfig, ThinkingConfig
from ..errors import UsageError
from ..support.formats import plural, size
from ..support.interrupts import stop_on_request

if TYPE_CHECKING:
    from ..engine.runtime import Runtime


_OPENED = 64
"""tokens at the end of a prompt, among which thinking, or the head of a message, may have been opened"""


@dataclass(frozen=True)
class RunReport:
    """What one answer took. Sizes in bytes, times in the units of their names."""

    model: str
    n_prompt: int
    n_generated: int
    n_thinking: int
    """how many of these were thinking, by the marks of the model's template"""
    stop_reason: str
    """stop, length, context, or cancelled"""
    interrupted: bool
    n_ctx: int
    """logical context"""
    n_cells: int
    """tokens that the cache really has room for"""
    n_evictions: int
    """rounds"""
    tokens_evicted: int
    evict_ms: float
    cold_bytes: int
    """memory that holds what was evicted"""
    n_recalls: int
    rows_recalled: int
    """rows that came back, summed over layers and heads"""
    recall_ms: float
    tokens_destroyed: int
    """that had to leave that memory for good"""
    n_pinned: int
    """tokens of the prompt that no round evicts"""
    prefill_tps: float
    decode_tps: float
    kv_bytes: int
    kv_bytes_full: int
    """what full attention would hold for the same context"""
    mode: str | None
    """None: full attention"""
    policy: str | None
    budget: int | None
    window: int | None
    keep: int | None
    seed: int

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def summary(self) -> str:
        """The same for a person, on one line."""
        parts = [f"{self.n_generated} tokens, {self.decode_tps:.1f} tok/s"]
        if self.mode is None:
            parts.append("full attention")
        elif self.n_evictions:
            rounds, n_all = plural(self.n_evictions, "round"), self.n_prompt + self.n_generated
            parts.append(f"{rounds} evicted {self.tokens_evicted} of {n_all} tokens")
            if self.n_pinned:
                parts.append(f"{self.n_pinned} pinned")
        else:
            parts.append("nothing evicted yet")
        if self.cold_bytes:
            parts.append(f"{size(self.cold_bytes)} of it kept beside, {plural(self.n_recalls, 'recall')}")
        parts.append(f"KV cache {size(self.kv_bytes)}, full attention {size(self.kv_bytes_full)}")
        if self.stop_reason == "length":
            parts.append("stopped at -n")
        elif self.stop_reason == "context":
            parts.append("stopped at the end of the context (--ctx)")
        elif self.interrupted:
            parts.append("interrupted")
        return " · ".join(parts)


def make_prompt(
    rt: Runtime, text: str, *, system: str | None, raw: bool, thinking: ThinkingConfig | None = None
) -> list[int]:
    """Tokens of the prompt: in the model's own chat template, or as it stands."""
    thinking = thinking or ThinkingConfig()
    if raw:
        asked = {"--system": system, "--think": thinking.enabled is not None, "--effort": thinking.effort}
        for flag in (flag for flag, is_given in asked.items() if is_given):
            raise UsageError(f"{flag} needs the chat template", where="--raw", fix="leave one of the two out")
        return rt.tokenize(text, add_special=True, parse_special=False)
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    return rt.tokenize(rt.apply_chat_template(messages, thinking=thinking), add_special=True, parse_special=True)


def answer(
    rt: Runtime,
    prompt: Sequence[int],
    *,
    model: str,
    max_tokens: int | None,
    eviction: EvictionConfig | None,
    sampling: SamplingConfig,
    stop: Sequence[str] = (),
    thinking: ThinkingConfig | None = None,
    on_prefill: Callable[[int, int], None],
    on_text: Callable[[str], None],
) -> RunReport:
    """Generate, hand on the text as it comes, and report.

    Ctrl-C stops the generation, in the prompt too, and is told in the report; a second one raises KeyboardInterrupt.

    Parameters
    ----------
    on_prefill : callable
        Called with (tokens read, tokens of the prompt).
    """
    from ..engine.runtime import Done, Prefill, Token

    n_read, n_generated, prefill_s, reason = 0, 0, 0.0, "cancelled"
    first_s = time.perf_counter()
    done: Done | None = None
    before = rt.detokenize(prompt[-_OPENED:], special=True)
    splitter = TokenSplitter(marks_of(rt.vocabulary.chat_template), before, rt.token_bytes)
    most = None if thinking is None else thinking.limit
    limit = None if most is None else ThinkingLimit(splitter, most, rt.tokenize)
    with stop_on_request() as stopped:
        for event in rt.generate(
            list(prompt), max_tokens=max_tokens, sampling=sampling, stop=stop, cancel=stopped, interject=limit
        ):
            if isinstance(event, Prefill):
                on_prefill(event.n_done, event.n_total)
                n_read, prefill_s, first_s = event.n_done, event.elapsed_s, time.perf_counter()
            elif isinstance(event, Token):
                n_generated = event.n_generated
                splitter.push_token(event.id, event.text)
                on_text(event.text)
            else:
                done = event
    decode_s = time.perf_counter() - first_s
    if done is not None:
        n_read, n_generated, reason = n_read - done.n_cached, done.n_generated, done.reason
        prefill_s, decode_s = done.prefill_s, done.decode_s
    stats = rt.stats()
    return RunReport(
        model=model,
        n_prompt=done.n_prompt if done is not None else len(prompt),
        n_generated=n_generated,
        n_thinking=splitter.n_tokens["thinking"],
        stop_reason=reason,
        interrupted=stopped.is_set(),
        n_ctx=stats.n_ctx,
        n_cells=stats.n_cells,
        n_evictions=stats.n_evictions,
        tokens_evicted=stats.tokens_evicted,
        evict_ms=round(stats.evict_ms, 3),
        cold_bytes=stats.cold_bytes,
        n_recalls=stats.n_recalls,
        rows_recalled=stats.rows_recalled,
        recall_ms=round(stats.recall_ms, 3),
        tokens_destroyed=stats.tokens_destroyed,
        n_pinned=stats.n_pinned,
        prefill_tps=round(n_read / prefill_s, 2) if prefill_s > 0 else 0.0,
        decode_tps=round(n_generated / decode_s, 2) if decode_s > 0 else 0.0,
        kv_bytes=stats.kv_bytes,
        kv_bytes_full=stats.kv_bytes_full,
        mode=eviction.mode if eviction else None,
        policy=eviction.policy if eviction else None,
        budget=eviction.budget_tokens if eviction else None,
        window=eviction.window if eviction else None,
        keep=eviction.n_keep if eviction else None,
        seed=sampling.seed,
    )
