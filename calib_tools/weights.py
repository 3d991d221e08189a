"""A model's weights, one tensor at a time, from all files of the model.

Read, not mapped: pages of a mapped file count as memory of the process, and of a large model they would become all of
it. Knows names and types, nothing of what a tensor is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from math import prod
from typing import BinaryIO

import torch

from triattn_local.errors import ModelNotFoundError
from triattn_local.model.gguf_file import TensorInfo, read_gguf
from triattn_local.model.model_info import ModelInfo
from triattn_local.support.closing import Closing

from .dequantize import can_dequantize, dequantize


class Weights(Closing):
    """The tensors of one model, by name. To be used in a ``with`` statement.

    Raises
    ------
    ModelNotFoundError
        A file of a split model is missing or damaged.
    """

    def __init__(self, info: ModelInfo) -> None:
        self.path = info.path
        self._places: dict[str, tuple[TensorInfo, BinaryIO, int]] = {}
        with ExitStack() as files:
            for shard in info.shards:
                header = read_gguf(shard)
                data = files.enter_context(shard.open("rb", buffering=0))
                for tensor in header.tensors:
                    self._places[tensor.name.decode("utf-8", "replace")] = tensor, data, header.data_start
            self._files = files.pop_all()

    def close(self) -> None:
        self._files.close()

    def __contains__(self, name: str) -> bool:
        return name in self._places

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._places)

    def unreadable(self) -> list[str]:
        """Types of tensors that can be read by nobody here, such as those that only a fork of llama.cpp has."""
        types = {tensor.ggml_type for tensor, _, _ in self._places.values()}
        return [str(ggml_type) for ggml_type in sorted(types) if not can_dequantize(ggml_type)]

    def shape(self, name: str) -> tuple[int, ...]:
        """As torch has it: the fastest dimension last."""
        return tuple(reversed(self._place(name)[0].shape))

    def read(self, name: str, device: torch.device, *, first: int = 0, n_row: int | None = None) -> torch.Tensor:
        """A tensor, or some of its rows.

        Parameters
        ----------
        name : str
        device : torch.device
        first, n_row : int
            Rows to read; dimensions before the last are counted as one.

        Returns
        -------
        float32 tensor [n_column] of a tensor of one dimension, else [n_row, n_column]
        """
        tensor, data, data_start = self._place(name)
        n_all = prod(tensor.shape[1:])
        n_row = n_all - first if n_row is None else n_row
        row_bytes = (tensor.n_bytes or 0) // n_all
        packed = torch.empty(n_row, row_bytes, dtype=torch.uint8)
        self._fill(packed, data, data_start + tensor.offset + first * row_bytes, name)
        rows = dequantize(packed.to(device), tensor.ggml_type)
        return rows[0] if len(tensor.shape) == 1 else rows

    def read_rows(self, name: str, rows: Sequence[int], device: torch.device) -> torch.Tensor:
        """Single rows of a tensor that is large, such as the embeddings of the tokens of a text.

        Returns
        -------
        float32 tensor [len(rows), n_column]
        """
        tensor, data, data_start = self._place(name)
        n_all = prod(tensor.shape[1:])
        row_bytes = (tensor.n_bytes or 0) // n_all
        wanted = sorted(set(rows))
        if wanted and not 0 <= wanted[0] <= wanted[-1] < n_all:
            raise ModelNotFoundError(f"has {n_all} rows in {name}, and token {wanted[-1]}", where=str(self.path))
        packed = torch.empty(len(wanted), row_bytes, dtype=torch.uint8)
        for i, row in enumerate(wanted):
            self._fill(packed[i], data, data_start + tensor.offset + row * row_bytes, name)
        places = {row: i for i, row in enumerate(wanted)}
        index = torch.tensor([places[row] for row in rows], device=device)
        return dequantize(packed.to(device), tensor.ggml_type)[index]

    def _place(self, name: str) -> tuple[TensorInfo, BinaryIO, int]:
        try:
            return self._places[name]
        except KeyError:
            raise ModelNotFoundError(f"has no tensor {name}", where=str(self.path)) from None

    def _fill(self, packed: torch.Tensor, data: BinaryIO, offset: int, name: str) -> None:
        view = memoryview(packed.numpy()).cast("B")
        data.seek(offset)
        while len(view):
            n = data.readinto(view)  # type: ignore[attr-defined]  # an unbuffered file has it
            if not n:
                raise ModelNotFoundError(f"became shorter while {name} was read", where=str(self.path))
            view = view[n:]
