"""A benchmark from its files and settings to its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ..config import EvictionConfig, RuntimeConfig
from ..engine.contexts import Model, physical_cores
from ..engine.devices import Device, capped, check_cap, devices, nvidia_driver, used_bytes
from ..errors import UsageError
from ..model.model_info import read_model_info
from ..support.progress import Progress, silent
from .job import Job
from .measure import Measuring
from .report import BenchReport


def pick_device(config: RuntimeConfig, vram_bytes: int | None = None) -> Device:
    """Where the layers go: the GPU with the most memory, if any is used.

    Raises
    ------
    UsageError
        Its memory cannot be held to so many bytes.
    """
    found = devices()
    gpus = [device for device in found if device.is_gpu]
    if gpus and config.n_gpu_layers != 0:
        device = max(gpus, key=lambda gpu: gpu.total_bytes)
    else:
        device = next(device for device in found if device.kind == "cpu")
    if vram_bytes is not None:
        check_cap(device, vram_bytes)
    return device


def run_bench(
    path: Path,
    config: RuntimeConfig,
    eviction: EvictionConfig,
    job: Job,
    *,
    stats_path: Path | None = None,
    progress: Progress = silent,
    on_row: Callable[[BenchReport], None] = lambda _: None,
) -> BenchReport:
    """Measure one model.

    Parameters
    ----------
    on_row : callable, optional
        Called after each depth with what there is so far.

    Raises
    ------
    UsageError
        A depth does not reach beyond the budget.
    DoesNotFitError
        Not even one evicting sequence fits.
    TriattnError
        The model cannot be loaded, or cannot evict.
    """
    info = read_model_info(path)
    lowest = eviction.budget_tokens + eviction.window
    if job.depths[0] <= lowest:
        raise UsageError(
            f"depth {job.depths[0]} is not beyond budget + window = {lowest}",
            where="--depths",
            fix="give larger --depths or a smaller --budget",
        )
    depths = tuple(d for d in job.depths if job.beyond_training or d <= info.n_ctx_train) or job.depths
    device = pick_device(config, job.vram_bytes)
    with ExitStack() as stack:
        if job.vram_bytes is not None:
            stack.enter_context(capped(device, job.vram_bytes))
        before = used_bytes(device)
        model = stack.enter_context(Model(path, config, stats_path))
        measuring = Measuring(model, info, eviction, job, device, progress)
        measuring.warm_up()
        report = BenchReport(
            model=path.name,
            device=f"{device.name} ({device.description})",
            driver=nvidia_driver() if device.is_gpu else None,
            vram_bytes=job.vram_bytes,
            weights_bytes=max(0, used_bytes(device) - before),
            threads=config.n_threads or physical_cores(),
            cache_type_k=config.cache_type_k,
            cache_type_v=config.cache_type_v,
            flash_attn=config.flash_attn,
            mode=eviction.mode,
            policy=eviction.policy,
            budget=eviction.budget_tokens,
            window=eviction.window,
            n_batch=config.n_batch,
            n_blocks=job.n_blocks,
            block_tokens=eviction.window,
            left_out=tuple(d for d in job.depths if d not in depths),
            rows=(),
        )
        for depth in depths:
            row = measuring.measure(depth, report.weights_bytes)
            report = dataclasses.replace(report, rows=(*report.rows, row))
            on_row(report)
    return report
