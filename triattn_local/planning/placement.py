"""Which layers go to which card, and what each memory then holds.

As llama.cpp does it: the last layers go to the cards, the output with the very last; token embeddings stay in main
memory; a layer's KV cache lies with its weights. Knows nothing of files and of what is worth having.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..model.model_info import ModelInfo
from .accounting import HOST, ContextBytes, Shape, WeightBytes
from .machine import Machine, Memory


@dataclass(frozen=True)
class Use:
    """What one memory holds. Bytes."""

    name: str
    total: int
    reserve: int
    weights: int
    kv: int
    compute: int
    checkpoints: int
    n_layers: int
    """repeating layers"""

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        return (
            ("weights", self.weights),
            ("KV cache", self.kv),
            ("compute", self.compute),
            ("checkpoints", self.checkpoints),
        )

    @property
    def need(self) -> int:
        return sum(size for _, size in self.parts)

    @property
    def margin(self) -> int:
        """What is left beside the reserve; negative when it does not fit."""
        return self.total - self.reserve - self.need


@dataclass(frozen=True)
class Placement:
    """Where everything lies."""

    n_gpu_layers: int
    """llama.cpp's count, in which the output is one layer more"""
    cards: tuple[Use, ...]
    ram: Use
    tensor_split: tuple[int, ...] | None
    """layers of each card, the output included, as llama.cpp's --tensor-split takes them; None for one card"""

    @property
    def uses(self) -> tuple[Use, ...]:
        return (*self.cards, self.ram)

    @property
    def fits(self) -> bool:
        return all(use.margin >= 0 for use in self.uses)

    @property
    def tightest(self) -> Use:
        """The memory that has the least left: the cards decide where there are any in use."""
        return min((card for card in self.cards if card.need), key=lambda use: use.margin, default=self.ram)


@dataclass(frozen=True)
class Load:
    """What has to be placed. Bytes."""

    weights: WeightBytes
    kv_layers: tuple[int, ...]
    compute: Mapping[str, int] | int
    """of each device where the library knows them, else of any device that computes"""
    compute_host: int
    """of main memory when all layers are on cards"""
    checkpoints: int
    """in main memory"""


def kv_by_layer(info: ModelInfo, shape: Shape, context: ContextBytes) -> tuple[int, ...]:
    """Bytes of each layer's cache; they add up to what the library says."""
    with_cache = [il for il in range(info.n_layer) if info.n_head_kv[il] > 0] or list(range(info.n_layer))
    layers = [0] * info.n_layer
    full = info.full_layers or ()
    for il in full:
        layers[il] = context.n_cells * info.kv_bytes_of_layer(il, shape.type_k, shape.type_v)
    # of a hybrid's recurrent layers some files say that they have heads, and others that they have none
    others = [il for il in with_cache if il not in full] or [il for il in range(info.n_layer) if il not in full]
    rest = context.kv - sum(layers)
    if rest < 0 or (rest and not others):  # layers share their caches in a way that the file does not tell
        layers, others, rest = [0] * info.n_layer, with_cache, context.kv
    for i, il in enumerate(others):
        layers[il] = rest * (i + 1) // len(others) - rest * i // len(others)
    return tuple(layers)


def round_bytes(info: ModelInfo, shape: Shape) -> int:
    """What the graph of an eviction round takes of the compute buffer, at most.

    All layers are scored in one graph: the scores of each KV head stay until they are downloaded, and of one layer the
    keys, their squares and the sums of pairs of these, and the scores of each query head are float32 meanwhile.
    """
    if shape.budget is None:
        return 0
    layers = range(info.n_layer) if info.full_layers is None else info.full_layers
    n_candidates = shape.budget + shape.n_batch  # beside the window, a batch more than a round leaves
    scores = sum(info.n_head_kv[il] for il in layers)
    widest = max((info.n_head_kv[il] for il in layers), default=0) * max(info.head_dim, info.head_dim_v)
    most_heads = max((info.n_head[il] for il in layers), default=0)
    return 4 * n_candidates * (scores + 5 * widest // 2 + 3 * most_heads)


def place(load: Load, machine: Machine, n_gpu_layers: int) -> Placement:
    """Put the last ``n_gpu_layers`` onto the cards, each filled to the same part where there are several."""
    n_layer = len(load.kv_layers)
    n_gpu_layers = min(n_gpu_layers, n_layer + 1) if machine.cards else 0
    sizes = [(w, kv) for w, kv in zip(load.weights.layers, load.kv_layers, strict=True)]
    sizes.append((load.weights.output + load.weights.shared, 0))
    first = n_layer + 1 - n_gpu_layers
    counts = _share([w + kv for w, kv in sizes[first:]], [_room(card, load) for card in machine.cards])

    cards = []
    il = first
    for card, n in zip(machine.cards, counts, strict=True):
        here = sizes[il : il + n]
        cards.append(
            Use(
                name=card.name,
                total=card.total,
                reserve=card.reserve,
                weights=sum(w for w, _ in here),
                kv=sum(kv for _, kv in here),
                compute=_compute(load, card.name) if n else 0,
                checkpoints=0,
                n_layers=n - (1 if n and il + n > n_layer else 0),
            )
        )
        il += n
    on_cpu = sizes[:first]
    output = 0 if n_gpu_layers else load.weights.shared  # the second copy is only for another memory
    ram = Use(
        name=machine.ram.name,
        total=machine.ram.total,
        reserve=machine.ram.reserve,
        weights=load.weights.input + sum(w for w, _ in on_cpu) - output,
        kv=sum(kv for _, kv in on_cpu),
        compute=load.compute_host if n_gpu_layers > n_layer else _compute(load, HOST),
        checkpoints=load.checkpoints,
        n_layers=min(first, n_layer),
    )
    split = tuple(counts) if len(counts) > 1 and n_gpu_layers else None
    return Placement(n_gpu_layers, tuple(cards), ram, split)


def _compute(load: Load, device: str) -> int:
    return load.compute if isinstance(load.compute, int) else load.compute.get(device, 0)


def _room(card: Memory, load: Load) -> int:
    return max(0, card.room - _compute(load, card.name))


def _share(sizes: Sequence[int], rooms: Sequence[int]) -> list[int]:
    """How many of the layers each card gets, in order: every card is filled to about the same part of its room."""
    if len(rooms) < 2:
        return [len(sizes)] * len(rooms)

    def fill(part: float) -> list[int]:
        counts, i = [], 0
        for room in rooms:
            n, held = 0, 0
            while i + n < len(sizes) and held + sizes[i + n] <= part * room:
                held += sizes[i + n]
                n += 1
            counts.append(n)
            i += n
        return counts

    low, high = 0.0, 1.0
    if sum(fill(high)) < len(sizes):  # they do not fit: the last card shows what is missing
        counts = fill(high)
        counts[-1] += len(sizes) - sum(counts)
        return counts
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(fill(middle)) == len(sizes) else (middle, high)
    return fill(high)
