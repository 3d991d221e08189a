"""Recursive state query: a depth-first walk over a tree, and the state to be restored after going back.

The walk is written down step by step with work at each node, so that the states of the upper nodes lie far behind when
the walk comes back to them. The axis is the number of levels that it goes back at once.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from pathlib import Path

from triattn_local.engine.contexts import Model

from ..haystack import chat, generator
from .base import Case, Metric, Metrics, Open, Size, ask_number

DEFAULT_TOKENS = 2400
DEPTHS = (1, 2, 4, 8)
DEFAULT_CASES = 12
_NODES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Recursion:
    name = "recursion"
    about = "a depth-first walk: the state of a node that the walk comes back to"
    metrics: tuple[Metric, ...] = (Metric("found", "share of the states restored", "more", is_share=True),)
    main = "found"

    def cases(self, model: Model, size: Size) -> list[Case]:
        n_tokens = size.n_tokens or DEFAULT_TOKENS
        res = []
        for i in range(size.n_cases or DEFAULT_CASES):
            depth, seed = DEPTHS[i % len(DEPTHS)], i // len(DEPTHS)
            prompt, answer, others = _walk(model, generator("walk", depth, seed, seed=size.seed), depth, n_tokens)
            res.append(Case(self.name, f"back-{depth}-seed-{seed}", n_tokens, (prompt, answer, others), depth))
        return res

    def run(self, model: Model, case: Case, budget_tokens: int, open_context: Open, reference: Path) -> Metrics:
        return ask_number(model, case, open_context)


def _walk(model: Model, rng: random.Random, depth: int, n_tokens: int) -> tuple[list[int], str, list[str]]:
    """Prompt, the state asked for, and the states of the other nodes.

    Down to a leaf below `depth` levels, back up by `depth`, with as much work on the way as fills n_tokens.
    """
    n_level = depth + 2
    nodes = rng.sample(_NODES, n_level)
    states = [str(s) for s in rng.sample(range(1000, 9999), n_level)]
    asked = n_level - 1 - depth

    def work(n: int, seed: int) -> str:
        local, total, steps = random.Random(seed), 0, []
        for _ in range(n):
            by = local.randint(2, 99)
            steps.append(f"{total} plus {by} is {total + by}")
            total += by
        return "; ".join(steps)

    seeds = [rng.random() for _ in nodes]

    def text(n_steps: int) -> str:
        lines = ["Follow this walk over a tree. Every node has a state; going back to a node restores its state.\n"]
        for node, state, seed in zip(nodes, states, seeds, strict=True):
            lines.append(f"Go down to node {node}. The state of {node} is {state}.")
            if n_steps:
                lines.append(f"Work at {node}: {work(n_steps, int(seed * 1e9))}.")
        lines += [f"Go back to node {node}." for node in reversed(nodes[asked:-1])]
        lines.append(f"\nThe walk is at node {nodes[asked]}. What is its state? Answer with the number only.")
        return "\n".join(lines)

    def tokens(n_steps: int) -> list[int]:
        return chat(model, [{"role": "user", "content": text(n_steps)}])

    most = bisect_right(range(1, n_tokens + 1), n_tokens, key=lambda n: len(tokens(n)))  # steps that fit
    return tokens(most), states[asked], [s for i, s in enumerate(states) if i != asked]
