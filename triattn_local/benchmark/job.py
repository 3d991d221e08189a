"""What a benchmark is asked to measure: depths, blocks, sequences, memory. Checked once, at the edge."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError

_MAX_DEPTH, _MAX_SEQ = 2**24, 256


@dataclass(frozen=True)
class Job:
    """What to measure."""

    depths: tuple[int, ...] = (4096, 8192)
    """logical tokens of each sequence, rising"""
    n_blocks: int = 5
    n_seq: int = 1
    """sequences that decode in one batch, at most"""
    vram_bytes: int | None = None
    """hold the device's memory to this; None: all that there is"""
    beyond_training: bool = False
    """also depths beyond the context that the model was trained for"""

    def __post_init__(self) -> None:
        for depth in self.depths:
            if not 0 < depth <= _MAX_DEPTH:
                raise UsageError(f"{depth} tokens", where="--depths", fix=f"give 1 ... {_MAX_DEPTH}")
        if not self.depths or list(self.depths) != sorted(set(self.depths)):
            raise UsageError("must rise", where="--depths", fix="give such as 2k,4k,8k")
        if self.n_blocks < 1:
            raise UsageError(f"{self.n_blocks} blocks measure nothing", where="--blocks", fix="give 1 or more")
        if not 1 <= self.n_seq <= _MAX_SEQ:
            raise UsageError(f"{self.n_seq} sequences", where="--parallel", fix=f"give 1 ... {_MAX_SEQ}")


def parse_depths(text: str) -> tuple[int, ...]:
    """``2k,4096`` -> tokens; k is 1,024.

    Raises
    ------
    UsageError
        It is no such list.
    """
    depths = []
    for part in text.lower().split(","):
        digits = part.strip().removesuffix("k")
        if not digits.isascii() or not digits.isdigit():
            raise UsageError(f"{part!r} is no number of tokens", where="--depths", fix="give such as 2k,4k,8k")
        depths.append(int(digits) * (1024 if part.strip().endswith("k") else 1))
    return tuple(depths)
