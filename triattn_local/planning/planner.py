"""What to run a model with on a machine: context, budget, cache type, layers on the cards.

The context costs nothing when the cache evicts, so it is as long as the model was trained for. The budget is the
largest usual one that fits; half-size keys and values, and then layers in main memory, come before a budget that is
too small to reason with. What a person fixed stays fixed. What does not fit is refused, with the nearest thing that
does.

Knows the library only through ``MemoryProbe``, and nothing of flags and terminals.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..config import Cold, EvictionConfig, RuntimeConfig
from ..errors import DoesNotFitError, UsageError
from ..model.model_info import CELL_STEP
from ..model.reach import reach, scaling_for
from ..support.formats import size
from .accounting import HOST, ContextBytes, MemoryProbe, Shape
from .machine import Machine
from .placement import Load, Placement, Use, kv_by_layer, place, round_bytes

BUDGETS = (4096, 3072, 2048, 1536, 1024, 768, 512)
"""what ``auto`` chooses from: with 4096 the method's authors lose nothing on AIME, and more costs speed"""
BUDGETS_WITHOUT_CARD = BUDGETS[2:]
"""a CPU pays for every cell at every token"""
ENOUGH = 2048
"""for such a budget auto takes a q8_0 cache"""
LEAST = 1024
"""rather than a smaller budget than this, auto takes layers off the cards"""
CACHE_TYPES = ("f16", "q8_0")
"""what ``auto`` chooses from"""
MAX_CTX = 131072
"""of ``auto``, whatever the model was trained for"""
TABLE = (8192, 16384, 32768, 65536, 131072)
"""contexts that full attention is looked at for"""

_MOST_CTX = 2**22


@dataclass(frozen=True)
class PlanRequest:
    """What is asked for; None is the planner's choice. Tokens."""

    n_ctx: int | None = None
    """of each sequence"""
    budget: int | Literal["auto", "off"] = "auto"
    window: int = EvictionConfig.window
    n_keep: int = EvictionConfig.n_keep
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    n_gpu_layers: int | None = None
    n_parallel: int = 1
    """sequences, each with its context and its budget"""
    kv_unified: bool = False
    """one buffer for all sequences"""
    n_batch: int = RuntimeConfig.n_batch
    n_ubatch: int = RuntimeConfig.n_ubatch
    flash_attn: bool = True
    checkpoint_bytes: int = 0
    """main memory that is promised to checkpoints of the cache"""
    cold: Cold = "auto"
    """main memory for what is evicted"""
    rope_scaling: str | None = None
    """kind of RoPE scaling for a context beyond the trained one"""

    def is_complete(self, machine: Machine) -> bool:
        """Whether nothing is left to choose."""
        chosen = (self.n_ctx, self.cache_type_k, self.cache_type_v, self.n_gpu_layers if machine.cards else 0)
        return self.budget != "auto" and None not in chosen

    def __post_init__(self) -> None:
        for where, value, most in (
            ("--ctx", self.n_ctx, _MOST_CTX),
            ("--budget", self.budget, _MOST_CTX),
            ("--parallel", self.n_parallel, 256),
            ("--batch", self.n_batch, _MOST_CTX),
        ):
            if isinstance(value, int) and not 1 <= value <= most:
                raise UsageError(f"{value} is not in 1 ... {most}", where=where)
        if isinstance(self.budget, int):
            EvictionConfig(budget_tokens=self.budget, window=self.window, n_keep=self.n_keep)


@dataclass(frozen=True)
class Choice:
    """A context, and where it lies."""

    shape: Shape
    bytes: ContextBytes
    placement: Placement

    @property
    def checkpoint_bytes(self) -> int:
        """One checkpoint of one sequence, when it holds as many tokens as it may."""
        tokens = self.shape.n_ctx
        if self.shape.budget is not None:
            tokens = min(tokens, self.shape.budget + self.shape.window)
        return self.bytes.kv * min(tokens, self.bytes.n_cells) // self.bytes.n_cells


@dataclass(frozen=True)
class PlanRow:
    """One length of context. Bytes."""

    n_ctx: int
    full: Choice
    evicting: Choice | None


class Planner:
    """Plans for one model on one machine."""

    def __init__(self, probe: MemoryProbe, machine: Machine, request: PlanRequest) -> None:
        self.probe = probe
        self.info = probe.info
        self.machine = machine
        if request.budget == "auto" and all(layer.why_kept is not None for layer in probe.layers):
            request = dataclasses.replace(request, budget="off")  # nothing to choose; the report says why
        self.request = request

    # ---------------------------------------------------------------- choose

    def choose(self) -> Choice:
        """The best that fits.

        Raises
        ------
        UsageError
            The model was not trained for the context that was asked for, nor is it stretched to it.
        DoesNotFitError
            Nothing that was asked for does; the message has the nearest thing that fits.
        """
        if self.request.n_ctx is not None:
            scaling_for(self.info, self.request.rope_scaling, self.request.n_ctx)
        for found in self._fitting(self.request):
            confirmed = self._confirmed(found)
            if confirmed.placement.fits:
                return confirmed
        raise self._refusal()

    def _best(self, request: PlanRequest) -> Choice | None:
        return next(self._fitting(request), None)

    def _fitting(self, request: PlanRequest) -> Iterator[Choice]:
        """What fits, the best first."""
        n_gpu_layers = self.n_gpu_layers(request)

        def whole(least: int) -> Iterator[Choice]:
            for shape in self._shapes(request, least):
                choice = self.choice_of(shape, n_gpu_layers)
                if choice.placement.fits:
                    yield choice

        yield from whole(ENOUGH)
        yield from whole(LEAST)
        if request.n_gpu_layers is None and self.machine.cards:
            # the smallest budget that is enough leaves most room for layers
            for shape in sorted(self._shapes(request, ENOUGH), key=lambda shape: (shape.type_k, shape.budget or 0)):
                partial = self._partial(shape)
                if partial is not None:
                    yield partial
        yield from whole(0)

    def n_gpu_layers(self, request: PlanRequest) -> int:
        """Layers on the cards: what is wished for, else all, and none without a card."""
        if request.n_gpu_layers is None or request.n_gpu_layers < 0:
            return self.all_layers
        return min(request.n_gpu_layers, self.all_layers)

    @property
    def all_layers(self) -> int:
        return self.info.n_layer + 1 if self.machine.cards else 0

    def _shapes(self, request: PlanRequest, least: int) -> Iterator[Shape]:
        """Contexts that serve the wish with a budget of at least so many tokens, the best first."""
        for types in self._types(request):
            if request.budget == "off":
                n_ctx = request.n_ctx or self.largest_ctx(self.shape(request, CELL_STEP, None, *types))
                if n_ctx:
                    yield self.shape(request, n_ctx, None, *types)
                continue
            n_ctx = request.n_ctx or min(self.reach, MAX_CTX)
            for budget in self._budgets(request, n_ctx):
                if budget >= min(least, n_ctx) or request.budget != "auto":
                    yield self.shape(request, n_ctx, budget, *types)

    def _types(self, request: PlanRequest) -> Iterator[tuple[str, str]]:
        for kind in CACHE_TYPES:
            types = (request.cache_type_k or kind, request.cache_type_v or kind)
            is_default = kind == CACHE_TYPES[0]
            if is_default or (None in (request.cache_type_k, request.cache_type_v) and self._can_quantise(request)):
                yield types

    def _can_quantise(self, request: PlanRequest) -> bool:
        return request.flash_attn and self.info.head_dim % 32 == 0 and self.info.head_dim_v % 32 == 0

    def _budgets(self, request: PlanRequest, n_ctx: int) -> Iterator[int]:
        if isinstance(request.budget, int):
            yield request.budget
            return
        least = request.n_keep + request.window + 1
        usual = BUDGETS if self.machine.cards else BUDGETS_WITHOUT_CARD
        useful = [budget for budget in usual if least <= budget < n_ctx]
        yield from useful or [max(least, min(n_ctx, usual[-1]))]

    def shape(self, request: PlanRequest, n_ctx: int, budget: int | None, type_k: str, type_v: str) -> Shape:
        n_batch = min(request.n_batch, n_ctx)
        return Shape(
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=min(request.n_ubatch, n_batch),
            type_k=type_k,
            type_v=type_v,
            budget=budget,
            window=request.window,
            n_seq_max=request.n_parallel,
            kv_unified=request.kv_unified,
            flash_attn=request.flash_attn,
            rope_scaling=scaling_for(self.info, request.rope_scaling, n_ctx),
        )

    @property
    def reach(self) -> int:
        """The longest context that makes sense, in tokens."""
        return reach(self.info, self.request.rope_scaling)

    # ------------------------------------------------- one shape

    def choice_of(self, shape: Shape, n_gpu_layers: int) -> Choice:
        """A context and where it would lie, whether it fits or not."""
        context = self.probe.context(shape)
        # every card is taken to need what one device that does all the work needs; ``_confirmed`` asks for each
        compute = max(context.compute_most, round_bytes(self.info, shape))
        inputs = shape.n_ubatch * (4 * self.info.n_embd + 4 * context.n_cells)
        load = Load(
            weights=self.probe.weights,
            kv_layers=kv_by_layer(self.info, shape, context),
            compute=compute,
            compute_host=min(inputs, compute),
            checkpoints=self.request.checkpoint_bytes,
        )
        return Choice(shape, context, place(load, self.machine, n_gpu_layers))

    def _confirmed(self, choice: Choice) -> Choice:
        """With what the library itself puts on each of this machine's cards."""
        n_gpu_layers = choice.placement.n_gpu_layers
        if not self.machine.is_here or not n_gpu_layers:
            return choice
        split = choice.placement.tensor_split
        with MemoryProbe(self.probe.path, n_gpu_layers, split) as probe:
            context = probe.context(choice.shape)

        def told(use: Use) -> Use:
            device = HOST if use is choice.placement.ram else use.name
            least = round_bytes(self.info, choice.shape) if use.kv else 0
            return dataclasses.replace(use, compute=max(context.compute.get(device, use.compute), least))

        placement = dataclasses.replace(
            choice.placement,
            cards=tuple(told(card) for card in choice.placement.cards),
            ram=told(choice.placement.ram),
        )
        return dataclasses.replace(choice, placement=placement)

    def _partial(self, shape: Shape) -> Choice | None:
        """As many layers on the cards as fit, the others in main memory."""
        for n_gpu_layers in range(self.all_layers - 1, -1, -1):
            choice = self.choice_of(shape, n_gpu_layers)
            if choice.placement.fits:
                return choice
        return None

    # ---------------------------------------------------------------- limits

    def largest_ctx(self, shape: Shape, n_gpu_layers: int | None = None) -> int:
        """The longest context of this shape that fits, at most what the model reaches; 0 if none does."""
        n_gpu_layers = self.all_layers if n_gpu_layers is None else n_gpu_layers
        most = max(CELL_STEP, min(max(self.reach, CELL_STEP), MAX_CTX))

        def fits(n_ctx: int) -> bool:
            longer = dataclasses.replace(
                shape,
                n_ctx=n_ctx,
                n_batch=min(self.request.n_batch, n_ctx),
                n_ubatch=min(self.request.n_ubatch, self.request.n_batch, n_ctx),
            )
            return self.choice_of(longer, n_gpu_layers).placement.fits

        return _largest(fits, most)

    def largest_budget(self, shape: Shape, n_gpu_layers: int) -> int:
        """The largest budget that fits with this context; 0 if none does, the context if nothing need be evicted."""
        least = self.request.n_keep + self.request.window + 1

        def fits(budget: int) -> bool:
            return self.choice_of(dataclasses.replace(shape, budget=max(budget, least)), n_gpu_layers).placement.fits

        return _largest(fits, shape.n_ctx)

    def rows(self, choice: Choice) -> list[PlanRow]:
        """Full attention beside the choice, for usual contexts and the chosen one."""
        n_gpu_layers = choice.placement.n_gpu_layers
        rows = []
        usual = [n_ctx for n_ctx in TABLE if n_ctx <= self.reach]
        for n_ctx in sorted({*usual, choice.shape.n_ctx}):
            shape = dataclasses.replace(choice.shape, n_ctx=n_ctx)
            full = self.choice_of(dataclasses.replace(shape, budget=None), n_gpu_layers)
            rows.append(PlanRow(n_ctx, full, self.choice_of(shape, n_gpu_layers) if shape.budget is not None else None))
        return rows

    # ---------------------------------------------------------------- refuse

    def _refusal(self) -> DoesNotFitError:
        shapes = [*self._shapes(self.request, 0)] or [self.shape(self.request, CELL_STEP, None, *CACHE_TYPES[:1] * 2)]
        n_gpu_layers = self.n_gpu_layers(self.request)
        smallest = min((self.choice_of(shape, n_gpu_layers) for shape in shapes), key=lambda choice: choice.bytes.kv)
        short = min(smallest.placement.uses, key=lambda use: use.margin)
        there = f"{size(short.total)}, {size(short.reserve)} of it left alone"
        what = f"{shape_text(smallest.shape)} needs {size(short.need)} of {short.name} ({there})"
        return DoesNotFitError(what, where=self.info.path.name, fix=self._nearest())

    def _nearest(self) -> str:
        """Flags of the nearest thing that fits: what was asked for, with one thing after another let go."""
        request = self.request
        if request.budget == "off":
            longest = max(
                self._fitting(dataclasses.replace(request, n_ctx=None)), key=lambda c: c.shape.n_ctx, default=None
            )
            evicting = self._best(dataclasses.replace(request, budget="auto"))
            parts = [] if evicting is None else [f"--budget {evicting.shape.budget} with this context"]
            parts += [] if longest is None else [f"--ctx {longest.shape.n_ctx} with full attention"]
            if parts:
                return f"nearest that fits: {', or '.join(parts)}"
        for easier in self._easier(request):
            found = self._best(easier)
            if found is not None:
                return f"nearest that fits: {self._flags(found)}"
        return "take a smaller quantisation or model"

    def _easier(self, request: PlanRequest) -> Iterator[PlanRequest]:
        """The wish without one thing after another that was fixed."""
        request = dataclasses.replace(request, cache_type_k=None, cache_type_v=None)
        yield request
        request = dataclasses.replace(request, budget="auto")
        yield request
        while request.n_parallel > 1:
            request = dataclasses.replace(request, n_parallel=request.n_parallel // 2)
            yield request
        request = dataclasses.replace(request, n_gpu_layers=None)
        yield request
        yield dataclasses.replace(request, checkpoint_bytes=0)

    def _flags(self, choice: Choice) -> str:
        """The flags that differ from what was asked for."""
        shape, request = choice.shape, self.request
        flags = []
        if request.cache_type_k not in (None, shape.type_k) or request.cache_type_v not in (None, shape.type_v):
            flags.append(f"--cache-type-k {shape.type_k} --cache-type-v {shape.type_v}")
        if request.budget not in ("auto", shape.budget):
            flags.append(f"--budget {shape.budget}")
        if choice.placement.n_gpu_layers != self.n_gpu_layers(request):
            flags.append(f"--gpu-layers {choice.placement.n_gpu_layers}")
        if shape.n_seq_max != request.n_parallel:
            flags.append(f"--parallel {shape.n_seq_max}")
        return " ".join(flags) or "less memory for checkpoints"


def shape_text(shape: Shape) -> str:
    """A context in a few words."""
    cache = shape.type_k if shape.type_k == shape.type_v else f"{shape.type_k}/{shape.type_v}"
    many = f"{shape.n_seq_max} x " if shape.n_seq_max > 1 else ""
    how = "full attention" if shape.budget is None else f"budget {shape.budget:,}"
    return f"{many}context {shape.n_ctx:,} with {how}, {cache} cache,"


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest multiple of a cache's step for which a thing fits that never fits again once it is too large."""
    if fits(most):
        return most
    steps = range(1, -(-most // CELL_STEP))
    return CELL_STEP * bisect_left(steps, True, key=lambda n: not fits(n * CELL_STEP))
