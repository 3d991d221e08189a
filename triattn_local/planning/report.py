"""A plan as ``plan`` tells it: every number that was decided, and what would still fit.

Knows nothing of terminals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ..engine.layers import layers_text
from ..engine.native import LayerInfo
from ..support.formats import size
from .accounting import Shape
from .cold import ColdPlan, cold_plan
from .placement import Use
from .planner import Choice, Planner, PlanRow


@dataclass(frozen=True)
class PlanReport:
    """What fits, and how. Sizes in bytes, lengths in tokens."""

    model: str
    architecture: str
    n_layer: int
    layers: Sequence[LayerInfo]
    """which evict, by the library"""
    n_ctx_train: int
    weights_bytes: int
    choice: Choice
    full: Choice
    """full attention for the same context, at the same place"""
    rows: Sequence[PlanRow]
    largest_budget: int
    """that fits with this context and place; as large as the context: full attention fits; 0 with full attention"""
    largest_full_ctx: int
    """longest context that full attention has room for; 0 if none"""
    checkpoint_memory: int
    """main memory promised to checkpoints"""
    cold: ColdPlan | None
    """what is evicted and kept beside; None: it is gone, or nothing is evicted"""
    is_measured: bool
    """the compute buffers are of these very cards; else they are those of one device that does all the work"""

    @property
    def why(self) -> str:
        """The choice and its reason, on one line."""
        return choice_text(self.choice)

    def as_dict(self) -> dict[str, object]:
        shape, placement = self.choice.shape, self.choice.placement
        return {
            "model": self.model,
            "architecture": self.architecture,
            "n_layer": self.n_layer,
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "n_ctx_train": self.n_ctx_train,
            "weights_bytes": self.weights_bytes,
            "n_ctx": shape.n_ctx,
            "rope_scaling": None if shape.rope_scaling is None else dataclasses.asdict(shape.rope_scaling),
            "budget": shape.budget,
            "window": shape.window,
            "batch": shape.n_batch,
            "parallel": shape.n_seq_max,
            "kv_unified": shape.kv_unified,
            "cache_type_k": shape.type_k,
            "cache_type_v": shape.type_v,
            "n_cells": self.choice.bytes.n_cells,
            "kv_bytes": self.choice.bytes.kv,
            "kv_bytes_full": self.full.bytes.kv,
            "full_fits": self.full.placement.fits,
            "n_gpu_layers": placement.n_gpu_layers,
            "tensor_split": placement.tensor_split,
            "memory": [_use(use) for use in placement.uses],
            "checkpoint_bytes": self.choice.checkpoint_bytes,
            "checkpoint_memory": self.checkpoint_memory,
            "cold_bytes": 0 if self.cold is None else self.cold.held,
            "cold_bytes_needed": 0 if self.cold is None else self.cold.needed,
            "cold_tokens": None if self.cold is None else self.cold.n_tokens,
            "largest_budget": self.largest_budget,
            "largest_full_ctx": self.largest_full_ctx,
            "contexts": [_row(row) for row in self.rows],
            "is_measured": self.is_measured,
            "why": self.why,
        }

    @property
    def title(self) -> str:
        return f"{self.model}: {self.architecture}, {self.n_layer} layers, {size(self.weights_bytes)} of weights"

    def bars(self) -> list[tuple[str, Sequence[tuple[str, int]], int, int, str]]:
        """Each memory as (name, parts, left alone, in all, what to say), for ``console.write_bars``."""
        told = "{} of {}, {} to spare"
        return [
            (
                use.name,
                use.parts,
                use.reserve,
                use.total,
                told.format(size(use.need), size(use.total), size(use.margin)),
            )
            for use in self.choice.placement.uses
        ]

    def properties(self) -> list[tuple[str, str]]:
        """(name, text) of all that was decided."""
        shape, placement = self.choice.shape, self.choice.placement
        types = " and ".join(dict.fromkeys((shape.type_k, shape.type_v)))
        lines = [("layers", layers_text(self.layers))]
        lines += [("context", f"{shape.n_ctx:,} tokens, trained for {self.n_ctx_train:,}")]
        if (scaled := scaling_text(shape)) is not None:
            lines.append(("RoPE scaling", scaled.removeprefix("RoPE ")))
        if shape.n_seq_max > 1:
            lines.append(("sequences", f"{shape.n_seq_max}, each with that context and that budget"))
        if shape.budget is not None:
            most = f"the largest that fits is {self.largest_budget:,}"
            lines.append(("budget", f"{shape.budget:,} tokens of each head; {most}"))
        here = f"{self.choice.bytes.n_cells:,} cells, {types}, {size(self.choice.bytes.kv)}"
        lines.append(("KV cache", f"{here}; full attention {size(self.full.bytes.kv)}"))
        if placement.cards:
            split = "" if placement.tensor_split is None else f", split {','.join(map(str, placement.tensor_split))}"
            lines.append(("GPU layers", f"{placement.n_gpu_layers} of {self.n_layer + 1}, the output is one{split}"))
        for use in placement.uses:
            told = ", ".join(f"{part} {size(n_bytes)}" for part, n_bytes in use.parts if n_bytes)
            lines.append((use.name, told or "nothing"))
        filled = "with a full context" if shape.budget is None else "with a full budget"
        lines.append(("a checkpoint", f"{size(self.choice.checkpoint_bytes)}, of a sequence {filled}"))
        if self.cold is not None:
            end = f"destroyed beyond {self.cold.n_tokens:,} tokens" if self.cold.n_tokens is not None else "all of it"
            lines.append(("kept cold", f"{size(self.cold.held)} of main memory for what is evicted, {end}"))
        longest = f"fits up to {self.largest_full_ctx:,} tokens" if self.largest_full_ctx else "does not fit"
        lines.append(("full attention", longest))
        if placement.cards and not self.is_measured:
            lines.append(("accuracy", "compute as one device has it that does all the work: these cards are not here"))
        return lines

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns, and a row for each length of context."""
        columns = ["context", "full attention", "fits", "to spare"]
        if self.choice.shape.budget is not None:
            columns += [f"budget {self.choice.shape.budget:,}", "fits", "to spare"]
        rows = []
        for row in self.rows:
            choices = [row.full] if row.evicting is None else [row.full, row.evicting]
            rows.append([f"{row.n_ctx:,} tokens", *(cell for choice in choices for cell in _cells(choice))])
        return columns, rows


def report(planner: Planner, choice: Choice) -> PlanReport:
    """All that ``plan`` tells of a choice."""
    info, n_gpu_layers = planner.info, choice.placement.n_gpu_layers
    full = dataclasses.replace(choice.shape, budget=None)
    return PlanReport(
        model=info.name,
        architecture=info.arch,
        n_layer=info.n_layer,
        layers=planner.probe.layers,
        n_ctx_train=info.n_ctx_train,
        weights_bytes=planner.probe.weights.total,
        choice=choice,
        full=planner.choice_of(full, n_gpu_layers),
        rows=planner.rows(choice),
        largest_budget=0 if choice.shape.budget is None else planner.largest_budget(choice.shape, n_gpu_layers),
        largest_full_ctx=planner.largest_ctx(full, n_gpu_layers),
        checkpoint_memory=planner.request.checkpoint_bytes,
        cold=None
        if choice.shape.budget is None
        else cold_plan(info, choice.shape, choice.placement.ram.margin, planner.request.cold),
        is_measured=planner.machine.is_here,
    )


def choice_text(choice: Choice) -> str:
    """Context, budget, place and margin, on one line."""
    shape, placement = choice.shape, choice.placement
    cache = shape.type_k if shape.type_k == shape.type_v else f"{shape.type_k}/{shape.type_v}"
    how = "full attention" if shape.budget is None else f"budget {shape.budget:,}"
    many = f"{shape.n_seq_max} x " if shape.n_seq_max > 1 else ""
    tight = placement.tightest
    parts = [f"{many}context {shape.n_ctx:,}", how, f"{cache} cache of {size(choice.bytes.kv)}"]
    if placement.cards:
        n, n_layer = (sum(use.n_layers for use in uses) for uses in (placement.cards, placement.uses))
        parts.append(f"{n} of {n_layer} layers on the GPU" if n else "no layer on the GPU")
    parts.append(f"{size(tight.need)} of {size(tight.total)} {tight.name}, {size(tight.margin)} to spare")
    if (scaled := scaling_text(shape)) is not None:
        parts.append(scaled)
    return ", ".join(parts)


def scaling_text(shape: Shape) -> str | None:
    """What stretches the context, in a clause; None: nothing but what the file says."""
    scaling = shape.rope_scaling
    if scaling is None:
        return None
    if scaling.kind == "none":
        return "RoPE without scaling, beyond the trained context too"
    return f"RoPE stretched {scaling.factor:.3g} times from {scaling.n_ctx_orig:,} ({scaling.kind})"


def _cells(choice: Choice) -> tuple[str, str, str]:
    fits = "yes" if choice.placement.fits else "no"
    return size(choice.bytes.kv), fits, size(choice.placement.tightest.margin)


def _use(use: Use) -> dict[str, object]:
    return {**dataclasses.asdict(use), "need": use.need, "margin": use.margin}


def _row(row: PlanRow) -> dict[str, object]:
    told: dict[str, object] = {
        "n_ctx": row.n_ctx,
        "full_kv_bytes": row.full.bytes.kv,
        "full_fits": row.full.placement.fits,
        "full_margin": row.full.placement.tightest.margin,
    }
    if row.evicting is not None:
        told |= {
            "kv_bytes": row.evicting.bytes.kv,
            "fits": row.evicting.placement.fits,
            "margin": row.evicting.placement.tightest.margin,
        }
    return told
