"""The ways to forget that are compared, by name. Each is a change to the settings that the user has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from triattn_local.config import EvictionConfig
from triattn_local.engine.contexts import Context
from triattn_local.errors import UsageError


@dataclass(frozen=True)
class Method:
    """One line of a table."""

    name: str
    about: str
    changes: dict[str, Any] | None = field(default_factory=dict)
    """fields of EvictionConfig; None: nothing is forgotten"""
    attach: Callable[[Context], None] | None = None
    """what is done to a fresh context, such as giving it a ranking: docs/examples/rankings.py"""

    def eviction(self, base: EvictionConfig, budget_tokens: int) -> EvictionConfig | None:
        """Settings for a budget; what is protected takes a quarter of it each where the budget has no room for more.

        Raises
        ------
        UsageError
            A budget of a few tokens.
        """
        if self.changes is None:
            return None
        changes = {"n_keep": base.n_keep, "window": base.window, "cold": "off", **self.changes}
        if budget_tokens <= changes["n_keep"] + changes["window"]:
            for name in ("n_keep", "window"):
                changes[name] = min(changes[name], budget_tokens // 4)
        return dataclasses.replace(base, budget_tokens=budget_tokens, **changes)


FULL = "full"

PIN = 0.5
"""part of the budget that a prompt may take, as with ``--keep auto``"""


GROUPS: dict[str, tuple[Method, ...]] = {
    "modes": (
        Method(FULL, "full attention", None),
        Method("per-layer-head", "a set for each KV head of each layer"),
        Method("per-head", "a set for each KV head, over all layers", {"mode": "per-head"}),
        Method("shared", "one set, mean over layers and heads", {"mode": "shared"}),
    ),
    "recall": (
        Method("cold", "per-layer-head, and what was forgotten comes back when it is asked for", {"cold": "auto"}),
        Method("cold-per-head", "the same with sets over all layers", {"mode": "per-head", "cold": "auto"}),
        Method("cold-shared", "the same with one set", {"mode": "shared", "cold": "auto"}),
    ),
    "baselines": (
        Method("streaming", "the first and the most recent tokens", {"policy": "streaming"}),
        Method("knorm", "the smallest key norms", {"policy": "knorm"}),
        Method("random", "any tokens", {"policy": "random"}),
        Method("random-pinned", "any tokens behind the prompt, which stays", {"policy": "random", "pin": PIN}),
        Method("snapkv", "what the last 32 queries attend to, and its neighbours", {"policy": "snapkv"}),
        Method("h2o", "what all queries so far attended to, added up", {"policy": "h2o"}),
        Method("tova", "what the last query attends to", {"policy": "tova"}),
        Method("rkv", "what the last 8 queries attend to, less what keys say twice", {"policy": "rkv"}),
    ),
    "queries": (
        Method("pinned", "per-layer-head, and the prompt stays while it fits", {"pin": PIN}),
        Method(
            "weight-q-0.5", "what the last 24 queries attend to counts half as much as the centres", {"weight_q": 0.5}
        ),
        Method("weight-q-1", "as much as the centres", {"weight_q": 1.0}),
        Method("weight-q-2", "twice as much", {"weight_q": 2.0}),
    ),
    "ablations": (
        Method("trig-only", "without the norm term", {"terms": "trig"}),
        Method("norm-only", "without the trigonometric term", {"terms": "norm"}),
        Method("no-r", "norm term weighted with a_f instead of a_f (1 - R_f)", {"weight_r": False}),
        Method("linear-offsets", "as many future distances, evenly spaced", {"offsets": "linear"}),
        Method("offsets-4096", "future distances up to 4,096", {"offset_max": 4096}),
        Method("offsets-256", "future distances up to 256", {"offset_max": 256}),
        Method("paper", "keys alone decide, the values do not count", {"weight_v": 0.0}),
        Method("weight-v-0.25", "values count half as much", {"weight_v": 0.25}),
        Method("weight-v-1", "values count twice as much", {"weight_v": 1.0}),
        Method("shared-max", "one set, max over layers and heads", {"mode": "shared", "aggregate": "max"}),
        Method("window-32", "a round every 32 tokens, 32 protected", {"window": 32}),
        Method("window-64", "a round every 64 tokens, 64 protected", {"window": 64}),
        Method("window-256", "a round every 256 tokens, 256 protected", {"window": 256}),
        Method("keep-0", "no first token is protected", {"n_keep": 0}),
        Method("keep-64", "the first 64 tokens are protected", {"n_keep": 64}),
    ),
}

METHODS: dict[str, Method] = {method.name: method for group in GROUPS.values() for method in group}


def pick_methods(names: str) -> tuple[Method, ...]:
    """Methods of a comma-separated list of names and groups, "all" among them, in the order of the registry.

    Full attention is always there: the others are measured against it.
    """
    wanted = {FULL}
    for name in (part.strip() for part in names.split(",")):
        if name == "all":
            wanted.update(METHODS)
        elif name in GROUPS:
            wanted.update(method.name for method in GROUPS[name])
        elif name in METHODS:
            wanted.add(name)
        else:
            raise UsageError(
                f"there is no method {name!r}",
                where="--methods",
                fix=f"take some of {', '.join([*METHODS, *GROUPS, 'all'])}",
            )
    return tuple(method for method in METHODS.values() if method.name in wanted)
