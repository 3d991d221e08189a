"""Queries and keys of a model by a forward pass of our own, one layer at a time.

For models that do not fit into memory: a layer is read and unpacked, all tokens go through it, and it is dropped. What
stays is the hidden states, so that memory does not depend on the number of layers. Knows nothing of statistics, and
nothing of llama.cpp: that two engines which share no code agree is what makes both believable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from triattn_local.errors import CalibrationError
from triattn_local.model.model_info import ModelInfo

from .decoder import Decoder, Spans, why_unsupported
from .weights import Weights

Consumer = Callable[[int, torch.Tensor, torch.Tensor], None]
"""called with layer, queries [n_token, n_head, head_dim] and keys [n_token, n_head_kv, head_dim] of one whole sequence,
before RoPE, on the engine's device"""


def best_device(n_gpu_layers: int = -1) -> torch.device:
    """A GPU if there is one and layers may go there, else the CPU."""
    if n_gpu_layers != 0 and torch.cuda.is_available():
        return torch.device("cuda")
    if n_gpu_layers != 0 and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@dataclass
class Hidden:
    """All sequences between two layers: what a forward pass can be resumed from."""

    values: torch.Tensor
    """float32 [n_token, n_embd], all sequences behind one another"""
    spans: Spans
    next_layer: int = 0


class TorchEngine:
    """A model whose layers are computed one after the other. To be used in a ``with`` statement on ``weights``.

    Parameters
    ----------
    info : ModelInfo
    weights : Weights
    device : torch.device
    n_threads : int, optional
        Of the CPU; torch's own choice if not given.

    Raises
    ------
    CalibrationError
        A model that this engine does not know.
    """

    def __init__(self, info: ModelInfo, weights: Weights, device: torch.device, n_threads: int | None = None) -> None:
        if reason := why_unsupported(info, weights):
            raise CalibrationError(f"the torch engine {reason}", where=str(info.path), fix="give --engine runtime")
        if n_threads is not None:
            torch.set_num_threads(n_threads)
        self.decoder = Decoder(info, weights, device)

    def start(self, sequences: Sequence[Sequence[int]]) -> Hidden:
        """Embed sequences of tokens, each of which will be read from position 0."""
        spans, begin = [], 0
        for tokens in sequences:
            spans.append((begin, begin + len(tokens)))
            begin += len(tokens)
        with torch.inference_mode():
            return Hidden(self.decoder.embed([t for tokens in sequences for t in tokens]), tuple(spans))

    def step(self, hidden: Hidden, wanted: Collection[int], consumer: Consumer) -> None:
        """Take all sequences through the next layer.

        Parameters
        ----------
        hidden : Hidden
            Changed in place.
        wanted : collection of int
            Layers whose queries and keys the consumer gets, once for each sequence; of the last of them nothing else
            is computed.
        consumer : callable
            See ``Consumer``.
        """
        il = hidden.next_layer

        def sink(q_pre: torch.Tensor, k_pre: torch.Tensor) -> None:
            consumer(il, q_pre, k_pre)

        with torch.inference_mode():
            self.decoder.forward(
                il, hidden.values, hidden.spans, sink if il in wanted else None, last=il >= max(wanted)
            )
        hidden.next_layer += 1
