"""Which tokens of a prompt are pinned: the part of the cache that an answer is about, and no round evicts.

Knows how much of the budget a prompt may take, and nothing of texts and templates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..config import EvictionConfig


@dataclass(frozen=True)
class PromptParts:
    """Where the parts of a prompt lie, in tokens."""

    n_system: int = 0
    """its first tokens: system prompt and tools"""
    question: int | None = None
    """the first token of the user's last turn, which goes to the prompt's end; None: not known"""


def pinned_ranges(
    n_prompt: int, eviction: EvictionConfig, parts: Callable[[], PromptParts] | None = None
) -> list[tuple[int, int]]:
    """Ranges [first, end) to pin: the whole prompt, or its system part and its question, or one of the two.

    The first of these that takes at most ``eviction.pin`` of the budget, and leaves some of it; nothing if none does,
    or if pin is 0. `parts` is asked only where the whole prompt is too long.
    """
    n_max = min(
        int(eviction.pin * eviction.budget_tokens), eviction.budget_tokens - eviction.window - eviction.n_keep - 1
    )
    if 0 < n_prompt <= n_max:
        return [(0, n_prompt)]
    if parts is None or n_max <= 0:
        return []
    known = parts()
    system = (0, min(known.n_system, n_prompt))
    question = (n_prompt if known.question is None else max(known.question, system[1]), n_prompt)
    for ranges in ([system, question], [system], [question]):
        ranges = [(first, end) for first, end in ranges if first < end]
        if ranges and sum(end - first for first, end in ranges) <= n_max:
            return ranges
    return []
