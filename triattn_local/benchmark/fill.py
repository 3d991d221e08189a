"""A sequence made long without reading it: the state of a short one, its cells repeated.

Full attention at depth 32,768 costs what so many cells cost, whatever is in them, and reading them would take the
longest part of a benchmark. So one batch is read, and its rows stand in every cell below the measured ones.

Knows the layout in which the pinned llama.cpp writes the state of a plain cache (``llama_kv_cache::state_write``), and
refuses every other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_CELL = struct.Struct("<iIi")
"""position, number of sequences (1), sequence"""


class UnknownLayoutError(Exception):
    """The state is not that of one plain cache: sliding windows, several position axes, a recurrent part."""


@dataclass
class _Reader:
    data: Bytes
    at: int = 0

    def unpack(self, form: str) -> tuple[int, ...]:
        values = struct.Struct(form)
        return values.unpack(self.take(values.size).tobytes())

    def take(self, n: int) -> Bytes:
        part = self.data[self.at : self.at + n]
        if len(part) != n:
            raise UnknownLayoutError
        self.at += n
        return part


def repeat_cells(state: Bytes, n_cells: int) -> Bytes:
    """The state of a sequence of ``n_cells`` tokens, whose rows are those of the short one over and over.

    Parameters
    ----------
    state : uint8 array
        From ``Context.state``: the first sequence of a context without eviction.
    n_cells : int
        Tokens in all; at least as many as the state has.

    Raises
    ------
    UnknownLayoutError
        The state holds anything but one plain cache.
    """
    reader = _Reader(state)
    parts: list[Bytes] = []

    def keep(n: int) -> Bytes:
        parts.append(reader.take(n))
        return parts[-1]

    keep(struct.calcsize("<Ii"))  # magic, sequence
    [n_stream] = struct.unpack("<I", keep(4).tobytes())
    [n_short] = reader.unpack("<I")
    if n_stream < 1 or not 0 < n_short <= n_cells:
        raise UnknownLayoutError
    for pos in range(n_short):
        if reader.unpack(_CELL.format)[:2] != (pos, 1):
            raise UnknownLayoutError
    cells = np.zeros((n_cells, 3), "<i4")
    cells[:, 0], cells[:, 1] = np.arange(n_cells), 1
    parts += [np.frombuffer(struct.pack("<I", n_cells), np.uint8), cells.view(np.uint8).reshape(-1)]

    v_trans, n_layer = struct.unpack("<II", keep(8).tobytes())
    for is_v in (False, True):
        for _ in range(n_layer):
            if is_v and v_trans:
                _, element_bytes, n_rows = struct.unpack("<iII", keep(12).tobytes())
                columns = reader.take(n_rows * n_short * element_bytes).reshape(n_rows, n_short, element_bytes)
                parts.append(_repeated(columns, n_cells, axis=1).reshape(-1))
            else:
                _, row_bytes = struct.unpack("<iQ", keep(12).tobytes())
                rows = reader.take(n_short * row_bytes).reshape(n_short, row_bytes)
                parts.append(_repeated(rows, n_cells, axis=0).reshape(-1))
    # the other sequences' buffers, of which this state has no cells
    if keep(4 * (n_stream - 1)).any() or reader.at != len(state):
        raise UnknownLayoutError
    return np.concatenate(parts)


def _repeated(rows: Bytes, n: int, axis: int) -> Bytes:
    repeated: Bytes = np.take(rows, np.arange(n) % rows.shape[axis], axis=axis)
    return repeated
