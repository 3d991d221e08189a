"""The memory that a plan is made for: what this machine has, or what a person says.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..engine.devices import devices, free_memory
from ..support.formats import parse_size

GIB = 1 << 30

CARD_RESERVE = GIB
"""of a card, for what no accounting sees: the driver's context, the kernels' own pools, a desktop; llama.cpp's --fit
leaves as much"""
RAM_RESERVE = GIB // 2
"""of main memory, for this program and its neighbours"""


@dataclass(frozen=True)
class Memory:
    """One place for buffers."""

    name: str
    total: int
    """bytes that there are, or that are free where it is this machine's"""
    reserve: int
    """bytes of them that are left alone"""

    @property
    def room(self) -> int:
        return max(0, self.total - self.reserve)


@dataclass(frozen=True)
class Machine:
    """The cards, in the order in which they get layers, and main memory."""

    cards: tuple[Memory, ...]
    ram: Memory
    is_here: bool
    """the cards are those of this machine, so that the library can tell what it puts on each"""


def parse_cards(text: str) -> tuple[int, ...]:
    """``24GiB,12GiB`` -> bytes of each; ``0`` or ``none`` for no card."""
    if text.strip().lower() in ("0", "none"):
        return ()
    return tuple(parse_size(part, "--vram") for part in text.split(","))


def this_machine() -> Machine:
    """What is free here and now."""
    cards = [
        Memory(device.name, device.free_bytes, CARD_RESERVE)
        for device in devices()
        if device.is_gpu and device.total_bytes > 0
    ]
    return Machine(tuple(cards), Memory("RAM", free_memory(), RAM_RESERVE), is_here=True)


def machine(vram: Sequence[int] | None, ram: int | None) -> Machine:
    """The machine at hand, with other cards or another main memory where they are given.

    Parameters
    ----------
    vram : sequence of int, optional
        Bytes of each card.
    ram : int, optional
        Bytes of main memory.
    """
    here = this_machine()
    cards, is_here = here.cards, True
    if vram is not None:
        # as many as the library has: it can be asked how it would fill them
        is_here = len(vram) == len(here.cards)
        names = [card.name for card in here.cards] if is_here else [f"GPU {i}" for i in range(len(vram))]
        if not is_here and len(vram) == 1:
            names = ["GPU"]
        cards = tuple(Memory(name, size, CARD_RESERVE) for name, size in zip(names, vram, strict=True))
    memory = here.ram if ram is None else Memory("RAM", ram, RAM_RESERVE)
    return Machine(cards, memory, is_here)
