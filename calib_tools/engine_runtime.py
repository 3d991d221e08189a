"""Queries and keys of a model as it really runs, taken from llama.cpp while it evaluates.

Every other way of calibrating has to reimplement the model, and gets a norm or a bias wrong sooner or later. Here the
graph that llama.cpp built is asked: what an attention node reads as query and what is written into the K cache of
layer il, followed back to the RoPE node, names that node's input the pre-RoPE query or key. Where no RoPE stands in
between, what is read and written is itself what is wanted. Nothing depends on how an architecture calls its tensors.

RoPE may overwrite its input, so the input has to be read before RoPE runs. Hence two passes: the first decode, of a
few tokens, only looks at the graph; from then on the callback halts the evaluation right behind the tensors found.

Knows nothing of statistics; imports no torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from triattn_local.config import RuntimeConfig
from triattn_local.engine import native
from triattn_local.engine.context_options import ContextOptions
from triattn_local.engine.contexts import Context, Model
from triattn_local.engine.layers import layers_of
from triattn_local.engine.native import LayerInfo
from triattn_local.errors import CalibrationError, ModelNotFoundError, TriattnError
from triattn_local.model.scoring import RopeParams
from triattn_local.support.closing import Closing

from .ggml_tensor import GGML_TYPE_F32, Node

Recorded = Literal["q_pre", "k_pre", "q_rot", "k_rot"]
Consumer = Callable[[int, Recorded, npt.NDArray[np.float32], int], None]
"""called with layer, kind, values float32 [n_token, n_head or n_head_kv, head_dim] and position of the first token; the
array is only lent until the call returns"""

_CACHE_K = re.compile(r"cache_k_l(\d+)")
# what may stand between RoPE and its use without changing more than layout or scale
_TRANSPARENT = frozenset(("VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE", "CONT", "CPY", "SCALE"))
_ROPE_NORM, _ROPE_NEOX, _ROPE_MROPE, _ROPE_IMROPE = 0, 2, 8, 40
_ROPE_TYPES: dict[int, Literal["norm", "neox"]] = {
    _ROPE_NORM: "norm",
    _ROPE_NEOX: "neox",
    # text gives all sections of M-RoPE the same position
    _ROPE_MROPE: "neox",
    _ROPE_IMROPE: "neox",
}
_MOST_STILL = 0.5
"""radians that a band may turn within the trained context, if llama.cpp leaves it where it is"""
# a number that no model has as its count of heads, so that the token dimension cannot be mistaken
_N_LOOK = 7


def _bands_that_stand_still(mode: int, n_band: int, sections: Sequence[int]) -> list[int]:
    """Bands that M-RoPE turns by the fourth position of a token, which is 0 in text; the fastest first."""
    n_all = sum(sections)
    if mode not in (_ROPE_MROPE, _ROPE_IMROPE) or n_all == 0:
        return []
    places = [band % n_all for band in range(n_band)]
    if mode == _ROPE_MROPE:
        return [band for band, place in enumerate(places) if place >= sum(sections[:3])]
    return [band for band, place in enumerate(places) if place >= 3 * sections[place % 3]]


@dataclass(frozen=True)
class LayerAttention:
    """Attention of one layer, as the graph shows it."""

    n_head: int
    n_head_kv: int
    head_dim: int
    n_cells: int
    """cells of the layer's K cache; a sliding-window layer has fewer than the context"""
    rope: RopeParams
    """what ggml really gets, but for the frequency factors"""


@dataclass(frozen=True)
class _Tap:
    """Where the values of one kind lie in the memory of a graph node."""

    il: int
    kind: Recorded
    offset: int
    """bytes"""
    shape: tuple[int, int]
    """heads, head_dim"""
    strides: tuple[int, int, int]
    """bytes from token to token, head to head, dimension to dimension"""
    rope: RopeParams
    n_cells: int


class RuntimeEngine(Closing):
    """A model loaded in llama.cpp, whose queries and keys can be watched. To be used in a ``with`` statement.

    Parameters
    ----------
    model : Path
        First file of the model.
    n_ctx : int
        Tokens that are evaluated in one sequence.
    n_batch : int
        Tokens that are evaluated at once.
    n_threads : int, optional
        All cores if not given.
    n_gpu_layers : int
        -1 for all.
    verbose : bool
        llama.cpp's own log on stderr.
    kinds : sequence of "q_pre", "k_pre", "q_rot", "k_rot"
        What to hand out: queries and keys before RoPE, and after.

    Raises
    ------
    BackendMissingError
        There is no llama.cpp, or not the one that this program knows.
    ModelNotFoundError
        The file would end the process.
    CalibrationError
        llama.cpp cannot load the model.
    """

    def __init__(
        self,
        model: Path,
        *,
        n_ctx: int,
        n_batch: int = 512,
        n_threads: int | None = None,
        n_gpu_layers: int = -1,
        verbose: bool = False,
        kinds: Sequence[Recorded] = ("q_pre", "k_pre"),
    ) -> None:
        self.path = model
        self.n_ctx = n_ctx
        self.n_batch = min(n_batch, n_ctx)
        self.verbose = verbose
        self._kinds = frozenset(kinds)
        self._taps: dict[tuple[str, str], list[_Tap]] = {}
        self._unseen: set[tuple[str, str]] = set()
        self._looking = False
        self._counts: Counter[tuple[str, str]] = Counter()
        self._consumer: Consumer | None = None
        self._first_pos = 0
        self._n_token = 0
        self._error: BaseException | None = None
        self._buffer = np.empty(0, dtype=np.uint8)
        self._model: Model | None = None
        self._context: Context | None = None
        try:
            config = RuntimeConfig(
                n_batch=self.n_batch,
                n_ubatch=self.n_batch,
                n_threads=n_threads,
                n_gpu_layers=n_gpu_layers,
                verbose=verbose,
            )
            self._model, self._context = self._load(config)
            self.vocabulary = self._model.vocabulary
            self.layers = self._look()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the model. Safe to call twice."""
        if self._context is not None:
            self._context.close()
        if self._model is not None:
            self._model.close()

    @property
    def full_layers(self) -> tuple[int, ...]:
        """Layers whose cache holds the whole context; tells them apart only if ``n_ctx`` is larger than the window."""
        n_cells = max(layer.n_cells for layer in self.layers.values())
        return tuple(il for il, layer in sorted(self.layers.items()) if layer.n_cells == n_cells)

    @property
    def described(self) -> tuple[LayerInfo, ...]:
        """What the library says of each layer of the loaded model."""
        assert self._model is not None
        return layers_of(self._model)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the loaded model, by the library."""
        assert self._model is not None
        return native.fingerprint(self._model.handle)

    @property
    def context(self) -> Context:
        """What is watched."""
        assert self._context is not None
        return self._context

    def evaluate(self, tokens: Sequence[int], consumer: Consumer) -> None:
        """Run one sequence from position 0 and hand its queries and keys to the consumer.

        Parameters
        ----------
        tokens : sequence of int
            At most ``n_ctx``.
        consumer : callable
            See ``Consumer``; called once for each layer, kind and batch.

        Raises
        ------
        CalibrationError
            llama.cpp fails.
        """
        self._consumer = consumer
        self.context.clear()
        try:
            for first in range(0, len(tokens), self.n_batch):
                batch = tokens[first : first + self.n_batch]
                self._unseen = set(self._taps)
                self._decode(batch, first)
                if self._unseen:
                    name, op = min(self._unseen)
                    raise CalibrationError(f"{op} node {name} is gone from the graph", where=str(self.path))
        finally:
            self._consumer = None

    def _load(self, config: RuntimeConfig) -> tuple[Model, Context]:
        try:
            model = Model(self.path, config, goes_on=lambda _: self._error is None)
        except ModelNotFoundError:
            raise
        except TriattnError as error:
            self._raise_held()
            raise CalibrationError(
                "llama.cpp cannot load the model", where=str(self.path), fix="see why with --verbose"
            ) from error
        self._model = model
        options = ContextOptions.of(config, self.n_ctx)
        try:
            # without eviction, whatever the environment says: evicted keys would be missing in what later tokens read
            context = Context(model, None, options, on_node=self._visit, stops=lambda: self._error is not None)
        except TriattnError as error:
            self._raise_held()
            raise CalibrationError(
                f"llama.cpp makes no context of {self.n_ctx} tokens", where=str(self.path), fix="see if memory is short"
            ) from error
        self._context = context
        self._raise_held()
        return model, context

    def _look(self) -> dict[int, LayerAttention]:
        """Evaluate a few tokens to learn which nodes hold queries and keys."""
        self._looking = True
        token = self.vocabulary.bos or 0
        self._decode([token] * _N_LOOK, 0)
        self._looking = False
        for (name, op), n in self._counts.items():
            if n > 1 and (name, op) in self._taps:
                raise CalibrationError(f"the graph has {n} {op} nodes named {name}", where=str(self.path))
        found: dict[int, dict[str, _Tap]] = {}
        for tap in (tap for taps in self._taps.values() for tap in taps):
            if tap.kind in found.setdefault(tap.il, {}):
                raise CalibrationError(
                    f"several layers read the keys of layer {tap.il}, which is not supported", where=str(self.path)
                )
            found[tap.il][tap.kind] = tap
        layers: dict[int, LayerAttention] = {}
        for il, taps in found.items():
            if "q_pre" not in taps or "k_pre" not in taps or taps["q_pre"].rope.n_rot != taps["k_pre"].rope.n_rot:
                continue
            q, k = taps["q_pre"], taps["k_pre"]
            layers[il] = LayerAttention(q.shape[0], k.shape[0], q.shape[1], k.n_cells, q.rope)
        self._taps = {
            key: wanted
            for key, taps in self._taps.items()
            if (wanted := [tap for tap in taps if tap.kind in self._kinds and tap.il in layers])
        }
        if not layers:
            raise CalibrationError(
                "no layer writes keys of heads into a cache",
                where=str(self.path),
                fix="TriAttention needs a decoder with plain attention",
            )
        return layers

    def _decode(self, tokens: Sequence[int], first_pos: int) -> None:
        self._first_pos, self._n_token = first_pos, len(tokens)
        try:
            self.context.decode(tokens, n_logits=1)
        except TriattnError as error:
            self._raise_held()
            raise CalibrationError(f"llama.cpp fails to evaluate {len(tokens)} tokens", where=str(self.path)) from error
        self._raise_held()

    def _raise_held(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _visit(self, address: int, ask: bool, _: object) -> bool:
        # an exception that leaves a ctypes callback is printed and lost, so it waits until the decode is over
        if self._error is not None:
            return False
        try:
            node = Node(address)
            if self._looking:
                self._study(node)
                return False
            taps = self._taps.get(node.key)
            if taps is None or ask:
                return taps is not None
            self._unseen.discard(node.key)
            self._hand_out(node, taps)
            return True
        except BaseException as error:
            self._error = error
            return False

    def _study(self, node: Node) -> None:
        self._counts[node.key] += 1
        if node.op == "SET_ROWS":
            self._found("k", node, node.src(0))
        elif node.op == "FLASH_ATTN_EXT":
            self._found("q", node.src(1), node.src(0))
        elif node.op == "MUL_MAT":
            self._found("q", node.src(0), node.src(1))

    def _found(self, letter: Literal["q", "k"], cached: Node | None, value: Node | None) -> None:
        """Note where a value comes from, if it meets the K cache of some layer."""
        cache = cached.root() if cached is not None else None
        match = _CACHE_K.fullmatch(cache.name) if cache is not None else None
        if cache is None or match is None or value is None:
            return
        il = int(match[1])
        by_head: Node | None = None
        while True:
            if len(value.shape) == 4 and value.shape[2:] == (_N_LOOK, 1):
                by_head = value  # [head_dim, heads, tokens], nearest to where it is made
            if value.op not in _TRANSPARENT or (before := value.src(0)) is None:
                break
            value = before
        if value.op == "ROPE" and (turned := value.src(0)) is not None:
            source, rope = turned, self._rope_params(value)
        elif by_head is not None:
            source, value, rope = by_head, by_head, RopeParams("neox", 0)
        else:
            return
        n_cells = cache.shape[1]
        self._taps.setdefault(source.root().key, []).append(
            self._tap(il, "q_pre" if letter == "q" else "k_pre", source, rope, n_cells)
        )
        # what is not turned is one node before and after
        self._taps.setdefault((value if rope.n_rot else value.root()).key, []).append(
            self._tap(il, "q_rot" if letter == "q" else "k_rot", value, rope, n_cells)
        )

    def _rope_params(self, node: Node) -> RopeParams:
        _, n_rot, mode, _, n_ctx_orig = node.raw.op_params[:5]
        base, scale, ext, attn, fast, slow = node.f32_params(5, 6)
        if mode not in _ROPE_TYPES or node.raw.op_params[15] != 0:
            raise CalibrationError(f"RoPE mode {mode} of {node.name} is not supported", where=str(self.path))
        still = _bands_that_stand_still(mode, n_rot // 2, node.raw.op_params[11:15])
        # the last bands of Qwen3-VL stand still too, which would turn by a tenth of a radian in all of its context
        assert self._model is not None
        if still and self._model.info.n_ctx_train * base ** (-2 * still[0] / n_rot) > _MOST_STILL:
            raise CalibrationError(
                f"RoPE of {node.name} has sections that leave some of {n_rot} dimensions where they are in text",
                where=str(self.path),
                fix="take another file of this model: its sections should add up to half of the turned dimensions",
            )
        return RopeParams(_ROPE_TYPES[mode], n_rot, base, scale, ext, attn, fast, slow, n_ctx_orig)

    def _tap(self, il: int, kind: Recorded, node: Node, rope: RopeParams, n_cells: int) -> _Tap:
        head_dim, n_head, n_token, n_outer = node.shape
        if node.raw.type != GGML_TYPE_F32 or n_token != _N_LOOK or n_outer != 1:
            raise CalibrationError(
                f"{kind} of layer {il} is a tensor of type {node.raw.type} and shape {list(node.shape)}",
                where=str(self.path),
                fix="the calibration knows float32 [head_dim, heads, tokens] only",
            )
        stride_dim, stride_head, stride_token, _ = node.raw.nb
        return _Tap(
            il,
            kind,
            node.raw.view_offs if node.raw.view_src else 0,
            (n_head, head_dim),
            (stride_token, stride_head, stride_dim),
            rope,
            n_cells,
        )

    def _hand_out(self, node: Node, taps: list[_Tap]) -> None:
        n_bytes = node.n_bytes()
        if n_bytes > self._buffer.nbytes:
            self._buffer = np.empty(n_bytes, dtype=np.uint8)
        node.read(self._buffer[:n_bytes])
        for tap in taps:
            values: npt.NDArray[np.float32] = np.ndarray(
                (self._n_token, *tap.shape), np.float32, self._buffer[:n_bytes].data, tap.offset, tap.strides
            )
            assert self._consumer is not None
            self._consumer(tap.il, tap.kind, values, self._first_pos)
