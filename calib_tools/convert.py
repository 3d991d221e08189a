"""``triattn-local convert``: a model's GGUF in, the same model with its statistics out.

Everything that can be known to fail is checked before the first token is evaluated, since calibrating a large model
takes long and a wrong output name is no reason to do it twice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from triattn_local.errors import CalibrationError, StatsError, UsageError
from triattn_local.model.metadata import read_stats, refuse_same_file, write_sidecar, write_with_stats
from triattn_local.model.model_info import ModelInfo, read_model_info
from triattn_local.model.stats import HIGH_R, TriattnStats
from triattn_local.support.atomic import check_writable
from triattn_local.support.interrupts import stop_for_sure
from triattn_local.support.progress import Progress, Unit

from .calibrate import DEFAULT_TOKENS, calibrate, check_can_calibrate, check_enough
from .checkpoint import saved_task
from .choose import ENGINES, EngineChoice, choose
from .corpus import bundled_corpus, read_corpus
from .decoder import why_unsupported
from .shards import check_names, default_output, link_others
from .weights import Weights

__all__ = ["DEFAULT_TOKENS", "ENGINES", "Concentration", "ConvertResult", "convert"]


@dataclass(frozen=True)
class Concentration:
    """How well a model's queries gather around their centres, over all heads measured."""

    n_heads: int
    mean_r: float
    """of R of each head's dominant band"""
    min_r: float
    share_high: float
    """share of heads with R > 0.95"""


class ConversionStopped(KeyboardInterrupt):
    """Ctrl-C, and a checkpoint from which the same call goes on with ``resume``."""


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
    engine: str
    engine_why: str
    checkpoint: Path
    """what --resume goes on from; gone once all is done"""
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
        paths = {name: str(getattr(self, name)) for name in ("path", "model", "checkpoint")}
        return {**asdict(self), **paths}


def convert(
    model: Path,
    out: Path | None = None,
    sidecar: bool = False,
    corpus: Sequence[Path] = (),
    n_tokens: int = DEFAULT_TOKENS,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    *,
    engine: str = "auto",
    resume: bool = False,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
) -> ConvertResult:
    """Calibrate a model and write its statistics into a copy of it, or into a sidecar.

    An interrupted call leaves a checkpoint beside the output and nothing else.

    Parameters
    ----------
    model : Path
        GGUF; the first file of a split model.
    out : Path, optional
        ``MODEL.triattn.gguf`` beside the model if not given, or ``MODEL.triattn-stats.gguf`` for a sidecar; of a split
        model the first file, ``MODEL.triattn-00001-of-00003.gguf``, to which the others are linked.
    sidecar : bool
        Write the statistics alone.
    corpus : sequence of Path
        UTF-8 texts to calibrate on; the bundled text if there are none.
    n_tokens : int
        Tokens of it.
    force : bool
        Replace ``out`` if it is there.
    dry_run : bool
        Check everything, do nothing.
    progress : callable, optional
        See ``support.progress``.
    engine : "auto", "torch" or "runtime"
        See ``choose``.
    resume : bool
        Go on from the checkpoint of an interrupted call, if there is one.
    n_threads, n_gpu_layers : int
        As for ``RuntimeEngine``.

    Raises
    ------
    ModelNotFoundError
        ``model`` is not a readable GGUF, or is damaged.
    CalibrationError
        The model or the text cannot be calibrated, or the checkpoint belongs to something else.
    UsageError
        ``out`` exists, is the model, or cannot be written, or is no name for a split model; or an engine that there is
        not.
    DoesNotFitError
        The disk does not hold the output.
    BackendMissingError
        There is no llama.cpp to run the model.
    """
    started_s = time.monotonic()
    if engine not in ENGINES:
        raise UsageError(f"{engine!r} is not one of {', '.join(ENGINES)}", where="--engine")
    info = read_model_info(model)
    check_can_calibrate(info)
    check_enough(n_tokens)
    text = read_corpus(corpus) if corpus else bundled_corpus()
    # last, for the name of the output is what is mended most easily
    path = output_path(info, out, sidecar, force)
    had_stats = not sidecar and _has_stats(info.path)
    checkpoint = path.with_name(path.name + ".checkpoint")
    choice = _choose(info, engine, checkpoint if resume else None, n_gpu_layers)
    plan = ConvertResult(
        path=path,
        model=info.path,
        sidecar=sidecar,
        dry_run=dry_run,
        replaced_stats=had_stats,
        corpus=text.label,
        engine=choice.engine,
        engine_why=choice.why,
        checkpoint=checkpoint,
    )
    if dry_run:
        return plan

    try:
        with stop_for_sure() as check:

            def tell(stage: str, done: int, total: int | None, unit: Unit | None = "tokens") -> None:
                check()
                if progress is not None:
                    progress(stage, done, total, unit)

            tell(f"{choice.engine} engine: {choice.why}", 0, None)
            stats = calibrate(
                info.path,
                text,
                n_tokens,
                lambda n_done, n_total: tell("calibrating", n_done, n_total),
                engine=choice.engine,
                checkpoint=checkpoint,
                resume=resume,
                n_threads=n_threads,
                n_gpu_layers=n_gpu_layers,
            )
            tensor_sha256 = write_output(info, path, stats, sidecar, tell)
            checkpoint.unlink(missing_ok=True)
    except KeyboardInterrupt:
        if not checkpoint.exists():
            raise
        raise ConversionStopped from None
    return replace(
        plan,
        corpus=stats.corpus,
        n_tokens=stats.n_tokens,
        n_layers=len(stats.layers),
        fingerprint=stats.model,
        concentration=_concentration(stats, info),
        file_bytes=path.stat().st_size,
        tensor_sha256=tensor_sha256,
        elapsed_s=round(time.monotonic() - started_s, 3),
    )


def write_output(
    info: ModelInfo, path: Path, stats: TriattnStats, sidecar: bool, progress: Progress | None = None
) -> str | None:
    """Write statistics where ``convert`` puts them; the sha256 of the tensors if there are any in the file.

    Of a split model the first file is written, and hashed; the others are linked before it, so that the model is whole
    when its name appears.
    """
    stage = f"writing {path.name}"
    if sidecar:
        write_sidecar(path, stats, info)
        return None
    link_others(info, path)
    if progress is None:
        return write_with_stats(info.path, path, stats)
    return write_with_stats(info.path, path, stats, lambda done, total: progress(stage, done, total, "bytes"))


def _choose(info: ModelInfo, engine: str, checkpoint: Path | None, n_gpu_layers: int) -> EngineChoice:
    with Weights(info) as weights:
        if engine == "torch" and (reason := why_unsupported(info, weights)):
            raise CalibrationError(f"the torch engine {reason}", where=str(info.path), fix="give --engine runtime")
        if engine != "auto":
            return EngineChoice("torch" if engine == "torch" else "runtime", "as asked for")
        began = None if checkpoint is None else saved_task(checkpoint).get("engine")
        if began in ("torch", "runtime"):
            return EngineChoice("torch" if began == "torch" else "runtime", "the checkpoint is its work")
        return choose(info, weights, n_gpu_layers)


def output_path(info: ModelInfo, out: Path | None, sidecar: bool, force: bool) -> Path:
    """Name of the output, once all is checked that can be known before it is written.

    Raises
    ------
    UsageError, DoesNotFitError
        As ``convert``.
    """
    path = out or default_output(info, sidecar)
    if not sidecar:
        check_names(info, path)
    refuse_same_file(info.path, path)
    # the statistics are small beside any model, and the exact size is checked again when it is known
    check_writable(path, 0 if sidecar else info.file_bytes)
    if path.exists() and not force:
        raise UsageError("exists already", where=str(path), fix="replace it with --force, or give another name with -o")
    return path


def _has_stats(path: Path) -> bool:
    try:
        return read_stats(path) is not None
    except StatsError:  # damaged ones are replaced like any others
        return True


def _concentration(stats: TriattnStats, info: ModelInfo) -> Concentration:
    r = np.concatenate(stats.head_concentration(info))
    return Concentration(
        r.size, round(float(r.mean()), 4), round(float(r.min()), 4), round(float((r > HIGH_R).mean()), 4)
    )
