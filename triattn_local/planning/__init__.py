"""Does it fit, and with what: context, budget, cache and layers for a model on a machine, before anything is loaded.

``plan_run`` is what ``run``, ``chat`` and ``serve`` call; ``Planner`` and ``report`` are what ``plan`` shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import ROPE_SCALINGS, EvictionConfig, RuntimeConfig
from ..engine.runtime import check_stats
from ..errors import UsageError
from ..settings import Settings
from .accounting import MemoryProbe
from .machine import Machine, parse_cards, this_machine
from .machine import machine as described_machine
from .planner import Choice, Planner, PlanRequest
from .report import PlanReport, choice_text, report, scaling_text
from .sources import open_header

__all__ = [
    "MemoryProbe",
    "Choice",
    "Machine",
    "PlanReport",
    "Planner",
    "RunPlan",
    "PlanRequest",
    "described_machine",
    "open_header",
    "parse_cards",
    "plan_run",
    "report",
    "this_machine",
    "choice_text",
    "request_of",
]


@dataclass(frozen=True)
class RunPlan:
    """What to load a model with."""

    config: RuntimeConfig
    eviction: EvictionConfig | None
    choice: Choice
    why: str | None
    """what was chosen and why, on one line; None where a person fixed everything"""


def request_of(
    settings: Settings,
    *,
    evict: bool = True,
    fixed: Collection[str] = (),
    n_parallel: int = 1,
    kv_unified: bool = False,
    checkpoint_bytes: int = 0,
) -> PlanRequest:
    """What a person wrote in flags, environment or config file is a wish; a default and ``auto`` are not.

    Parameters
    ----------
    evict : bool
        False for full attention, as --no-evict.
    fixed : collection of str
        Settings whose default a command means as it stands.
    """

    def given(name: str) -> bool:
        return settings.is_given(name) or (name in fixed and not settings.is_auto(name))

    config = settings.runtime()
    settings.eviction()
    budget: int | Literal["auto", "off"] = "auto"
    if given("budget"):
        budget = "off" if settings.budget is None else settings.budget
    return PlanRequest(
        n_ctx=settings.ctx if given("ctx") else None,
        budget=budget if evict else "off",
        window=settings.window,
        n_keep=settings.n_keep,
        cache_type_k=settings.cache_type_k if given("cache_type_k") else None,
        cache_type_v=settings.cache_type_v if given("cache_type_v") else None,
        n_gpu_layers=settings.gpu_layers if given("gpu_layers") else None,
        n_parallel=n_parallel,
        kv_unified=kv_unified,
        n_batch=config.n_batch if given("ctx") else settings.batch,
        n_ubatch=config.n_ubatch,
        flash_attn=settings.flash_attn,
        checkpoint_bytes=checkpoint_bytes,
        cold=settings.cold,
        rope_scaling=_kind(settings),
    )


def _kind(settings: Settings) -> str | None:
    kind = settings.rope_scaling
    if kind is not None and kind not in ROPE_SCALINGS:
        raise UsageError(
            f"{kind!r} is not one of {', '.join(ROPE_SCALINGS)}", where=settings.origins.get("rope_scaling")
        )
    return kind


def plan_run(
    path: Path,
    settings: Settings,
    *,
    evict: bool = True,
    fixed: Collection[str] = (),
    n_parallel: int = 1,
    kv_unified: bool = False,
    checkpoint_bytes: int = 0,
    verbose: bool = False,
    machine: Machine | None = None,
) -> RunPlan:
    """What ``run``, ``chat`` and ``serve`` load a model with on this machine.

    Parameters
    ----------
    path : Path
        The model, any GGUF with its data.
    settings : Settings
        What is written there stays; what is not is chosen.
    evict, fixed, n_parallel, kv_unified, checkpoint_bytes
        As ``request_of``; context and budget are those of each of ``n_parallel`` sequences. ``kv_unified`` is
        llama.cpp's one buffer for all of them.
    machine : Machine, optional
        Another one than this.

    Returns
    -------
    RunPlan
        ``config`` and ``eviction`` for ``Runtime.load``. For llama-server, of ``config``: ``-c`` n_ctx * n_seq_max,
        ``-np`` n_seq_max, ``-b`` n_batch, ``-ub`` n_ubatch, ``-ngl`` n_gpu_layers, ``-ctk`` cache_type_k, ``-ctv``
        cache_type_v and, unless it is None, ``--tensor-split`` tensor_split; and ``eviction`` as KV overrides.

    Raises
    ------
    DoesNotFitError
        Nothing that was asked for fits; the message names the nearest thing that does.
    ModelNotFoundError, StatsError, UsageError
        The model, its statistics or a setting cannot be taken.
    """
    request = request_of(
        settings,
        evict=evict,
        fixed=fixed,
        n_parallel=n_parallel,
        kv_unified=kv_unified,
        checkpoint_bytes=checkpoint_bytes,
    )
    if request.budget != "off" and settings.policy == "triattention":
        check_stats(path, settings.stats)  # what cannot run needs no plan
    machine = machine or this_machine()
    with MemoryProbe(path) as probe:
        choice = Planner(probe, machine, request).choose()
    shape, placement = choice.shape, choice.placement
    config = dataclasses.replace(
        settings.runtime(verbose=verbose),
        n_ctx=shape.n_ctx,
        n_batch=shape.n_batch,
        n_ubatch=shape.n_ubatch,
        n_seq_max=shape.n_seq_max,
        cache_type_k=shape.type_k,
        cache_type_v=shape.type_v,
        n_gpu_layers=placement.n_gpu_layers if placement.cards else settings.gpu_layers,
        tensor_split=placement.tensor_split,
        rope_scaling=shape.rope_scaling,
    )
    eviction = None
    if shape.budget is not None:
        eviction = settings.changed("plan", budget=shape.budget).eviction()
    # of a choice that a person made, what it does to the model
    why = scaling_text(shape) if request.is_complete(machine) else choice_text(choice)
    return RunPlan(config, eviction, choice, why)
