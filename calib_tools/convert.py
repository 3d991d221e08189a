"""``triattn-local convert``: a model's GGUF in, the same model with its statistics out.

Everything that can be known to fail is checked before the first token is evaluated, since calibrating a large model
takes long and a wrong output name is no reason to do it twice.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from triattn_local.atomic import check_writable
from triattn_local.errors import StatsError, UsageError
from triattn_local.metadata import read_stats, refuse_same_file, write_sidecar, write_with_stats
from triattn_local.model_info import ModelInfo, read_model_info
from triattn_local.stats import TriattnStats

from .calibrate import DEFAULT_TOKENS, calibrate, check_can_calibrate
from .corpus import Corpus, bundled_corpus, read_corpus

__all__ = ["DEFAULT_TOKENS", "Concentration", "ConvertResult", "convert"]

Progress = Callable[[str, int, int | None], None]
"""called with the stage, what is done and what there is in all: tokens, or None for a stage that is not counted"""

HIGH_R = 0.95
"""the paper's mark for a head whose queries point one way"""


@dataclass(frozen=True)
class Concentration:
    """How well a model's queries gather around their centres, over all heads measured."""

    n_heads: int
    mean_r: float
    """of R of each head's dominant band"""
    min_r: float
    share_high: float
    """share of heads with R > 0.95"""


@dataclass(frozen=True)
class ConvertResult:
    """What was done, or with ``dry_run`` would be."""

    path: Path
    """the file written"""
    model: Path
    """the file read"""
    sidecar: bool
    dry_run: bool
    replaced_stats: bool
    """the model had statistics already"""
    corpus: str
    """name and sha256 of the calibration text"""
    n_tokens: int | None = None
    """tokens averaged; this and all below is None of a dry run"""
    n_layers: int | None = None
    """full-attention layers measured"""
    fingerprint: str | None = None
    concentration: Concentration | None = None
    file_bytes: int | None = None
    tensor_sha256: str | None = None
    """sha256 of the tensor data, the same in both files; None of a sidecar"""
    elapsed_s: float | None = None

    def as_dict(self) -> dict[str, object]:
        """The same, ready for JSON."""
        return {**asdict(self), "path": str(self.path), "model": str(self.model)}


def convert(
    model: Path,
    out: Path | None = None,
    sidecar: bool = False,
    corpus: Path | None = None,
    n_tokens: int = DEFAULT_TOKENS,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    *,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
) -> ConvertResult:
    """Calibrate a model and write its statistics into a copy of it, or into a sidecar.

    Parameters
    ----------
    model : Path
        GGUF; the first file of a split model.
    out : Path, optional
        ``MODEL.triattn.gguf`` beside the model if not given, or ``MODEL.triattn-stats.gguf`` for a sidecar.
    sidecar : bool
        Write the statistics alone.
    corpus : Path, optional
        UTF-8 text to calibrate on; the bundled text if not given.
    n_tokens : int
        Tokens of it.
    force : bool
        Replace ``out`` if it is there.
    dry_run : bool
        Check everything, do nothing.
    progress : callable, optional
        See ``Progress``.
    n_threads, n_gpu_layers : int
        As for ``RuntimeEngine``.

    Raises
    ------
    ModelNotFoundError
        ``model`` is not a readable GGUF, or is damaged.
    CalibrationError
        The model or the text cannot be calibrated.
    UsageError
        ``out`` exists, is the model, or cannot be written.
    DoesNotFitError
        The disk does not hold the output.
    BackendMissingError
        There is no llama.cpp to run the model.
    """
    started_s = time.monotonic()
    info = read_model_info(model)
    check_can_calibrate(info)
    path = _output(info, out, sidecar, force)
    text = bundled_corpus() if corpus is None else read_corpus([corpus])
    had_stats = not sidecar and _has_stats(info.path)
    if dry_run:
        return ConvertResult(path, info.path, sidecar, True, had_stats, text.label)

    stats = _calibrate(info, text, n_tokens, progress, n_threads, n_gpu_layers)
    if progress is not None:
        progress(f"writing {path.name}", 0, None)
    tensor_sha256 = None
    if sidecar:
        write_sidecar(path, stats, info)
    else:
        tensor_sha256 = write_with_stats(info.path, path, stats)
    return ConvertResult(
        path=path,
        model=info.path,
        sidecar=sidecar,
        dry_run=False,
        replaced_stats=had_stats,
        corpus=stats.corpus,
        n_tokens=stats.n_tokens,
        n_layers=len(stats.layers),
        fingerprint=stats.model,
        concentration=_concentration(stats, info),
        file_bytes=path.stat().st_size,
        tensor_sha256=tensor_sha256,
        elapsed_s=round(time.monotonic() - started_s, 3),
    )


def _output(info: ModelInfo, out: Path | None, sidecar: bool, force: bool) -> Path:
    if info.split is not None and not sidecar:
        _check_first_shard(info, out)
    stem = info.path.name.removesuffix(".gguf")
    path = out or info.path.with_name(f"{stem}.{'triattn-stats' if sidecar else 'triattn'}.gguf")
    refuse_same_file(info.path, path)
    # the statistics are small beside any model, and the exact size is checked again when it is known
    check_writable(path, 0 if sidecar else info.file_bytes)
    if path.exists() and not force:
        raise UsageError("exists already", where=str(path), fix="replace it with --force, or give another name with -o")
    return path


def _check_first_shard(info: ModelInfo, out: Path | None) -> None:
    """A first file with statistics finds the others only by its own name, so it has to be placed by hand."""
    assert info.split is not None
    ending = f"-00001-of-{info.split.count:05d}.gguf"
    if out is None or re.fullmatch(f".+{re.escape(ending)}", out.name) is None:
        raise UsageError(
            f"is split into {info.split.count} files, and llama.cpp finds the others by the name of the first",
            where=str(info.path),
            fix=f"write --sidecar, or give -o a name that ends in {ending}, beside the others or links to them",
        )


def _has_stats(path: Path) -> bool:
    try:
        return read_stats(path) is not None
    except StatsError:  # damaged ones are replaced like any others
        return True


def _calibrate(
    info: ModelInfo,
    corpus: Corpus,
    n_tokens: int,
    progress: Progress | None,
    n_threads: int | None,
    n_gpu_layers: int,
) -> TriattnStats:
    if progress is not None:
        progress(f"loading {info.path.name}", 0, None)

    def tell(n_done: int, n_total: int) -> None:
        if progress is not None:
            progress("calibrating", n_done, n_total)

    return calibrate(info.path, corpus, n_tokens, tell, n_threads=n_threads, n_gpu_layers=n_gpu_layers)


def _concentration(stats: TriattnStats, info: ModelInfo) -> Concentration:
    r = np.concatenate(stats.head_concentration(info))
    return Concentration(
        r.size, round(float(r.mean()), 4), round(float(r.min()), 4), round(float((r > HIGH_R).mean()), 4)
    )
