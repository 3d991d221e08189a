"""A plan that chooses nothing: for tests whose models have no tensors that llama.cpp could account for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from triattn_local.settings import Settings


def as_written(
    path: Path, settings: Settings, *, evict: bool = True, verbose: bool = False, **others: object
) -> SimpleNamespace:
    """``planning.plan_run`` with the settings, defaults too, as they are."""
    del path, others
    eviction = settings.eviction() if evict else None
    return SimpleNamespace(config=settings.runtime(verbose=verbose), eviction=eviction, why=None)
