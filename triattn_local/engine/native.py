"""The C API of the patched llama.cpp (``llama-triattn.h``), typed.

One Python function a C function, with the C declaration above it; arrays come back as NumPy. Loads the library through
``llama_cpp``, so that there is one libllama in the process. Knows nothing of prompts, files or sessions.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import EvictionConfig
from ..errors import BackendMissingError, StateError, StatsError, TriattnError, UsageError, from_system
from ..model.architectures import RopeType
from ..support.setting import BYTES, NUMBER, TRUTH, WHOLE, WHOLE_OR_AUTO, WHOLE_OR_OFF, WORD, Kind, Setting, lines
from ..support.stop import Stop

OK, OFF, BAD_PARAM, NO_STATS, BAD_STATS, UNSUPPORTED, FAILED = 0, -1, -2, -3, -4, -5, -6


_COLD: dict[object, int] = {"off": 0, "auto": 2**32 - 1}
"""``LLAMA_TRIATTN_COLD_*``; what lies between is KiB"""

_C_TYPES: dict[Kind, type[Any]] = {
    WHOLE: ctypes.c_uint32,
    WHOLE_OR_OFF: ctypes.c_uint32,
    WHOLE_OR_AUTO: ctypes.c_uint32,
    BYTES: ctypes.c_uint32,
    NUMBER: ctypes.c_float,
    WORD: ctypes.c_int32,
    TRUTH: ctypes.c_int32,
}


def _to_c(line: Setting, value: Any) -> Any:
    if line.kind is BYTES:
        return _COLD[value] if isinstance(value, str) else -(-value // 1024)
    return line.choices.index(value) if line.choices else value


def _from_c(line: Setting, value: Any) -> Any:
    if line.kind is BYTES:
        return {number: word for word, number in _COLD.items()}.get(value, value * 1024)
    if line.kind is NUMBER:
        return round(value, 6)  # of a float32
    return line.choices[value] if line.choices else bool(value) if line.kind is TRUTH else value


class Params(ctypes.Structure):
    """``struct llama_triattn_params``, which EvictionConfig is line for line."""

    _fields_ = [(line.c_name, _C_TYPES[line.kind]) for line in lines(EvictionConfig)]

    @classmethod
    def from_config(cls, config: EvictionConfig | None) -> Params:
        """None turns eviction off."""
        if config is None:
            return cls(budget=0)
        return cls(*(_to_c(line, getattr(config, line.field)) for line in lines(EvictionConfig)))

    def to_config(self) -> EvictionConfig:
        values = {line.field: _from_c(line, getattr(self, line.c_name)) for line in lines(EvictionConfig)}
        return EvictionConfig(**values)


@dataclass(frozen=True)
class EngineStats:
    """What the engine has done since the context was made, as the C struct has it. Microseconds and bytes."""

    n_rounds: int
    n_rounds_forced: int
    n_tokens_evicted: int
    n_rows_moved: int
    t_score_us: int
    t_select_us: int
    t_move_us: int
    t_total_us: int
    n_graphs: int
    n_operations: int
    n_bytes_copied: int
    n_cells: int
    n_cells_used: int
    kv_bytes: int
    kv_bytes_full: int
    kv_bytes_other: int
    n_layer: int
    n_head_kv: int
    cold_bytes: int = 0
    """host memory that the cold tier holds"""
    cold_bytes_max: int = 0
    """and may hold; 0: it is off"""
    n_tokens_stored: int = 0
    """tokens whose rows went to it"""
    n_tokens_destroyed: int = 0
    """tokens that had to leave it for good"""
    n_recalls: int = 0
    n_rows_recalled: int = 0
    """K rows that came back, summed over layers and heads"""
    t_store_us: int = 0
    t_recall_us: int = 0
    n_pinned: int = 0
    """cells that hold pinned tokens now"""


class _Stats(ctypes.Structure):
    """``struct llama_triattn_stats``."""

    _fields_ = [
        (entry.name, ctypes.c_int32 if entry.name in ("n_layer", "n_head_kv") else ctypes.c_uint64)
        for entry in dataclasses.fields(EngineStats)
    ]


class _Layer(ctypes.Structure):
    """``struct llama_triattn_layer_info``."""

    _fields_ = [
        *[
            (name, ctypes.c_int32)
            for name in ("evicts", "n_head", "n_head_kv", "n_embd_head_k", "n_embd_head_v", "rope_mode", "rope_offset")
        ],
        *[(name, ctypes.c_int32) for name in ("n_rot", "n_band", "v_in_k")],
        ("rope_factor", ctypes.c_float),
        ("why", ctypes.c_char * 148),
    ]


@dataclass(frozen=True)
class LayerInfo:
    """How one layer's keys are cached, and whether its cache evicts."""

    why_kept: str | None
    """why its cache does not evict; None: it does"""
    n_head: int
    n_head_kv: int
    head_dim: int
    head_dim_v: int
    rope_type: RopeType | None
    """None: RoPE turns nothing in this layer"""
    rope_offset: int
    """first turned dimension of a head"""
    n_rot: int
    """turned dimensions"""
    n_band: int
    """values of q_abs for each query head"""
    v_in_k: bool
    """whether V is a part of the K row"""
    rope_factor: float
    """c, the length that RoPE gives to a turned pair of length 1"""


# typedef void (*llama_triattn_ranking)(void * user_data, llama_seq_id seq_id, llama_pos pos_next,
#     int32_t n_set, int32_t n_cand, const llama_pos * pos, const int32_t * cells, float * scores);
_RANKING = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,
    *[ctypes.c_int32] * 4,
    *[ctypes.POINTER(ctypes.c_int32)] * 2,
    ctypes.POINTER(ctypes.c_float),
)


@dataclass(frozen=True)
class Round:
    """What a ranking sees of a round. Sets are rows: see ``llama-triattn.h`` for their order."""

    seq_id: int
    pos_next: int
    """position of the next token"""
    pos: NDArray[np.int32]
    """[n_set, n_candidates] tokens"""
    cells: NDArray[np.int32]
    """[n_candidates] where they lie"""
    scores: NDArray[np.float32]
    """[n_set, n_candidates] what the policy gave them; may be written, higher is kept longer"""


_INT, _UINT, _FLOAT, _BOOL = ctypes.c_int32, ctypes.c_uint32, ctypes.c_float, ctypes.c_bool
_POINTER, _TEXT = ctypes.c_void_p, ctypes.c_char_p

_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "llama_triattn_default_params": (Params, []),
    "llama_triattn_set_params": (_INT, [_POINTER, ctypes.POINTER(Params)]),
    "llama_triattn_load_stats": (_INT, [_POINTER, _TEXT]),
    "llama_triattn_check_stats": (_INT, [_POINTER]),
    "llama_triattn_get_layer": (_INT, [_POINTER, _POINTER, _INT, ctypes.POINTER(_Layer)]),
    "llama_triattn_fingerprint": (_TEXT, [_POINTER]),
    "llama_triattn_last_error": (_TEXT, []),
    "llama_triattn_get_params": (_INT, [_POINTER, ctypes.POINTER(Params)]),
    "llama_triattn_get_stats": (_INT, [_POINTER, ctypes.POINTER(_Stats)]),
    "llama_triattn_seq_pos_whole": (_INT, [_POINTER, _INT]),
    "llama_triattn_get_compute": (_INT, [_POINTER, ctypes.POINTER(_TEXT), ctypes.POINTER(ctypes.c_uint64), _INT]),
    "llama_triattn_seq_pos_cut": (_INT, [_POINTER, _INT]),
    "llama_triattn_pin": (_INT, [_POINTER, _INT, _INT, _INT]),
    "llama_triattn_unpin": (_INT, [_POINTER, _INT, _INT, _INT]),
    "llama_triattn_get_pins": (_INT, [_POINTER, _INT, _POINTER, _POINTER, _INT]),
    "llama_triattn_get_queries": (_INT, [_POINTER, _INT, _INT, _POINTER, _POINTER, _INT]),
    "llama_triattn_evict": (_INT, [_POINTER, _INT, _UINT]),
    "llama_triattn_score": (_INT, [_POINTER, _INT]),
    "llama_triattn_set_recall": (_INT, [_POINTER, _FLOAT, _FLOAT, _UINT, _UINT, _UINT]),
    "llama_triattn_save_cold": (ctypes.c_int64, [_POINTER, _INT, _TEXT]),
    "llama_triattn_open_cold": (_INT, [_POINTER, _TEXT]),
    "llama_triattn_set_abort_flag": (_INT, [_POINTER, ctypes.POINTER(_BOOL)]),
    "llama_triattn_set_ranking": (_INT, [_POINTER, _RANKING, _POINTER]),
    "llama_triattn_get_layers": (_INT, [_POINTER, _POINTER, _INT]),
    "llama_triattn_get_kept": (_INT, [_POINTER, _INT, _INT, _INT, _POINTER, _POINTER, _INT]),
    "llama_triattn_get_scores": (_INT, [_POINTER, _INT, _INT, _POINTER, _POINTER, _INT]),
    "llama_triattn_get_rows": (_INT, [_POINTER, _INT, _INT, _INT, _BOOL, _POINTER, _INT, _POINTER]),
    "llama_triattn_get_rows_info": (_INT, [_POINTER, _BOOL, ctypes.POINTER(_INT), ctypes.POINTER(_INT)]),
}


@functools.cache
def library() -> ctypes.CDLL:
    """libllama as ``llama_cpp`` loaded it.

    Raises
    ------
    BackendMissingError
        If it is not installed, or is not the patched one.
    """
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as err:
        if (told := from_system(err)) and isinstance(told, BackendMissingError):
            raise told from err
        raise BackendMissingError(f"llama_cpp cannot be loaded: {err}", fix="pip install ./native") from err

    lib: ctypes.CDLL = llama_cpp.llama_cpp._lib
    for name, (restype, argtypes) in _PROTOTYPES.items():
        try:
            function = getattr(lib, name)
        except AttributeError:
            raise BackendMissingError(
                f"llama-cpp-python {llama_cpp.__version__} is not the patched build: it lacks {name}",
                fix="pip install ./native",
            ) from None
        function.restype = restype
        function.argtypes = argtypes
    return lib


# const char * llama_triattn_last_error(void);
def last_error() -> str:
    return bytes(library().llama_triattn_last_error()).decode("utf-8", "replace")


def _check(status: int) -> int:
    """A count or OK comes back as it is; a negative status becomes the error that it names."""
    if status >= 0:
        return status
    what = last_error() or f"status {status}"
    error: type[TriattnError] = {
        BAD_PARAM: UsageError,
        NO_STATS: StatsError,
        BAD_STATS: StatsError,
        OFF: StateError,
    }.get(status, TriattnError)
    raise error(what)


# int32_t llama_triattn_set_params(struct llama_model * model, const struct llama_triattn_params * params);
def set_params(model: int, config: EvictionConfig | None) -> None:
    """Settings of the contexts made from the model afterwards; None turns eviction off."""
    _check(library().llama_triattn_set_params(model, Params.from_config(config)))


# int32_t llama_triattn_load_stats(struct llama_model * model, const char * path);
def load_stats(model: int, path: Path) -> None:
    _check(library().llama_triattn_load_stats(model, os.fsencode(path)))


# int32_t llama_triattn_check_stats(const struct llama_model * model);
def check_stats(model: int) -> None:
    _check(library().llama_triattn_check_stats(model))


# int32_t llama_triattn_get_layer(const struct llama_model * model, const struct llama_context * ctx, int32_t il,
#     struct llama_triattn_layer_info * info);
def get_layer(model: int, il: int, ctx: int | None = None) -> LayerInfo:
    """What the library knows of a layer of a loaded model; of a context, with its RoPE options.

    Raises
    ------
    UsageError
        The model has no such layer.
    """
    told = _Layer()
    _check(library().llama_triattn_get_layer(model, ctx, il, ctypes.byref(told)))
    return LayerInfo(
        why_kept=None if told.evicts else told.why.decode("utf-8", "replace"),
        n_head=told.n_head,
        n_head_kv=told.n_head_kv,
        head_dim=told.n_embd_head_k,
        head_dim_v=told.n_embd_head_v,
        rope_type=None if told.rope_mode < 0 else "norm" if told.rope_mode == 0 else "neox",
        rope_offset=told.rope_offset,
        n_rot=told.n_rot,
        n_band=told.n_band,
        v_in_k=bool(told.v_in_k),
        rope_factor=told.rope_factor,
    )


# const char * llama_triattn_fingerprint(const struct llama_model * model);
def fingerprint(model: int) -> str:
    return bytes(library().llama_triattn_fingerprint(model)).decode()


# int32_t llama_triattn_get_params(const struct llama_context * ctx, struct llama_triattn_params * params);
def get_params(ctx: int) -> EvictionConfig | None:
    """The settings in force, None if the context does not evict."""
    params = Params()
    status = library().llama_triattn_get_params(ctx, params)
    return None if status == OFF else params.to_config()


# int32_t llama_triattn_get_stats(const struct llama_context * ctx, struct llama_triattn_stats * stats);
def get_stats(ctx: int) -> tuple[EngineStats, bool]:
    """Counters and sizes, and whether the context evicts: without eviction only the sizes say something."""
    stats = _Stats()
    status = library().llama_triattn_get_stats(ctx, stats)
    if status != OFF:
        _check(status)
    return EngineStats(**{name: getattr(stats, name) for name, *_ in _Stats._fields_}), status == OK


# llama_pos llama_triattn_seq_pos_whole(const struct llama_context * ctx, llama_seq_id seq_id);
def seq_pos_whole(ctx: int, seq_id: int = 0) -> int:
    """T: the first position from which every token is present in every head."""
    return int(library().llama_triattn_seq_pos_whole(ctx, seq_id))


# int32_t llama_triattn_get_compute(
#     const struct llama_context * ctx, const char ** names, uint64_t * bytes, int32_t n_max);
def get_compute(ctx: int) -> dict[str, int]:
    """Bytes of the compute buffers, by the name of their memory (CPU, CUDA0, CUDA_Host)."""
    n = _check(library().llama_triattn_get_compute(ctx, None, None, 0))
    names, sizes = (ctypes.c_char_p * n)(), (ctypes.c_uint64 * n)()
    _check(library().llama_triattn_get_compute(ctx, names, sizes, n))
    return {(name or b"").decode(): size for name, size in zip(names, sizes, strict=True)}


# llama_pos llama_triattn_seq_pos_cut(const struct llama_context * ctx, llama_seq_id seq_id);
def seq_pos_cut(ctx: int, seq_id: int = 0) -> int:
    """The first position that the sequence can be cut at: T, or later for a sliding window or a recurrent state."""
    return int(library().llama_triattn_seq_pos_cut(ctx, seq_id))


# int32_t llama_triattn_evict(struct llama_context * ctx, llama_seq_id seq_id, uint32_t n_tokens);
def evict(ctx: int, seq_id: int = 0, n_tokens: int = 0) -> int:
    """Round now, down to n_tokens (0: the budget). Returns the number of tokens evicted."""
    return _check(library().llama_triattn_evict(ctx, seq_id, n_tokens))


# int32_t llama_triattn_pin(struct llama_context * ctx, llama_seq_id seq_id, llama_pos p0, llama_pos p1);
def pin(ctx: int, first: int, end: int, seq_id: int = 0) -> int:
    """Tokens [first, end) of a sequence are not evicted from now on, those included that are still to come.

    Returns how many of them are pinned: what was evicted from some head cannot be. Raises UsageError where the budget
    has no room for them.
    """
    return _check(library().llama_triattn_pin(ctx, seq_id, first, end))


# int32_t llama_triattn_unpin(struct llama_context * ctx, llama_seq_id seq_id, llama_pos p0, llama_pos p1);
def unpin(ctx: int, first: int = -1, end: int = -1, seq_id: int = 0) -> None:
    """Take pins off [first, end); -1: from the beginning, to the end."""
    _check(library().llama_triattn_unpin(ctx, seq_id, first, end))


# int32_t llama_triattn_get_pins(
#     const struct llama_context * ctx, llama_seq_id seq_id, llama_pos * p0s, llama_pos * p1s, int32_t n_max);
def get_pins(ctx: int, seq_id: int = 0) -> list[tuple[int, int]]:
    """What is pinned of a sequence: ranges [first, end), rising, those to come included."""
    n = _check(library().llama_triattn_get_pins(ctx, seq_id, None, None, 0))
    ranges = np.empty((2, n), np.int32)
    _check(library().llama_triattn_get_pins(ctx, seq_id, _pointer(ranges[0]), _pointer(ranges[1]), n))
    return [(int(first), int(end)) for first, end in ranges.T]


# int32_t llama_triattn_get_queries(struct llama_context * ctx, llama_seq_id seq_id, int32_t il, llama_pos * pos,
#     float * rows, int32_t n_max);
def get_queries(ctx: int, il: int, n_head: int, head_dim: int, seq_id: int = 0) -> tuple[Any, NDArray[np.float32]]:
    """Queries that are recorded: positions, int32 [n], and rows, float32 [n, n_head, head_dim].

    As attention saw them, times its scale, and rotated where the cached keys are (``get_rows_info``). Raises UsageError
    where none are recorded.
    """
    n = _check(library().llama_triattn_get_queries(ctx, seq_id, il, None, None, 0))
    pos = np.empty(n, np.int32)
    rows = np.empty((n, n_head, head_dim), np.float32)
    _check(library().llama_triattn_get_queries(ctx, seq_id, il, _pointer(pos), _pointer(rows), n))
    return pos, rows


# int32_t llama_triattn_score(struct llama_context * ctx, llama_seq_id seq_id);
def score(ctx: int, seq_id: int = 0) -> int:
    """Score without evicting. Returns the number of candidates."""
    return _check(library().llama_triattn_score(ctx, seq_id))


# int32_t llama_triattn_set_recall(
#     struct llama_context * ctx, float share, float share_prompt, uint32_t block, uint32_t queries, uint32_t period);
def set_recall(ctx: int, share: float, share_prompt: float, block: int, queries: int, period: int) -> None:
    """Other recalls from now on: parts of the budget, tokens of a block, queries, tokens between two."""
    _check(library().llama_triattn_set_recall(ctx, share, share_prompt, block, queries, period))


# int64_t llama_triattn_save_cold(struct llama_context * ctx, llama_seq_id seq_id, const char * path);
def save_cold(ctx: int, path: Path, seq_id: int = 0) -> int:
    """Add to a file what it lacks of the evicted rows of a sequence; its next state names them.

    Returns the bytes written; nothing is synced.
    """
    return _check(library().llama_triattn_save_cold(ctx, seq_id, os.fsencode(path)))


# int32_t llama_triattn_open_cold(struct llama_context * ctx, const char * path);
def open_cold(ctx: int, path: Path) -> None:
    """States that name rows of this file find them when they are restored."""
    _check(library().llama_triattn_open_cold(ctx, os.fsencode(path)))


# int32_t llama_triattn_set_abort_flag(struct llama_context * ctx, const volatile bool * flag);
def set_abort(ctx: int, stop: Stop | None) -> None:
    """From now on ``llama_decode`` gives up and returns 2 while `stop` is set, where the backend asks (CPU, Metal).

    The context does not own it: it must live until another one, or None, takes its place, or the context goes.
    """
    _check(library().llama_triattn_set_abort_flag(ctx, None if stop is None else stop.flag))


class Ranking:
    """A Python function as the ranking of a context. Lives as long as the context uses it.

    An exception cannot cross the C library: it is kept, the round goes on with the scores as they are, and ``check``
    raises it.
    """

    def __init__(self, ctx: int, rank: Callable[[Round], None]) -> None:
        self._error: BaseException | None = None

        def call(
            _: int, seq_id: int, pos_next: int, n_set: int, n_cand: int, pos: Any, cells: Any, scores: Any
        ) -> None:
            if self._error is not None:
                return
            try:
                shape = (n_set, n_cand)
                as_array = np.ctypeslib.as_array
                rank(Round(seq_id, pos_next, as_array(pos, shape), as_array(cells, shape[1:]), as_array(scores, shape)))
            except BaseException as err:
                self._error = err

        self._function = _RANKING(call)
        _check(library().llama_triattn_set_ranking(ctx, self._function, None))

    def check(self) -> None:
        if self._error is not None:
            raise self._error


def _pointer(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


# int32_t llama_triattn_get_layers(const struct llama_context * ctx, int32_t * layers, int32_t n_max);
def get_layers(ctx: int) -> list[int]:
    """Model layers that evict."""
    n = _check(library().llama_triattn_get_layers(ctx, None, 0))
    layers = np.empty(n, np.int32)
    _check(library().llama_triattn_get_layers(ctx, _pointer(layers), n))
    return [int(il) for il in layers]


# int32_t llama_triattn_get_kept(ctx, seq_id, il, head_kv, llama_pos * pos, int32_t * cells, int32_t n_max);
def get_kept(ctx: int, il: int, head_kv: int, seq_id: int = 0) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Positions that a KV head holds, int32 [n_kept], and the cells that they lie in, int32 [n_kept], by cell."""
    n = _check(library().llama_triattn_get_kept(ctx, seq_id, il, head_kv, None, None, 0))
    pos = np.empty(n, np.int32)
    cells = np.empty(n, np.int32)
    _check(library().llama_triattn_get_kept(ctx, seq_id, il, head_kv, _pointer(pos), _pointer(cells), n))
    return pos, cells


# int32_t llama_triattn_get_scores(ctx, il, head, float * scores, int32_t * cells, int32_t n_max);
def get_scores(ctx: int, il: int, head: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Last scores of a query head before the z-score, float32 [n_candidates], and their cells, int32 [n_candidates]."""
    n = _check(library().llama_triattn_get_scores(ctx, il, head, None, None, 0))
    scores = np.empty(n, np.float32)
    cells = np.empty(n, np.int32)
    _check(library().llama_triattn_get_scores(ctx, il, head, _pointer(scores), _pointer(cells), n))
    return scores, cells


# int32_t llama_triattn_get_rows(
#     ctx, seq_id, il, head_kv, bool is_v, const int32_t * cells, int32_t n_cells, void * data);
def get_rows(
    ctx: int, il: int, head_kv: int, cells: NDArray[np.int32], *, is_v: bool = False, seq_id: int = 0
) -> NDArray[np.uint8]:
    """Cached rows as they lie in the cache: uint8 [n_cells, row_bytes], K after RoPE."""
    cells = np.ascontiguousarray(cells, np.int32)
    args = (ctx, seq_id, il, head_kv, is_v, _pointer(cells), len(cells))
    row_bytes = _check(library().llama_triattn_get_rows(*args, None))
    data = np.empty((len(cells), row_bytes), np.uint8)
    _check(library().llama_triattn_get_rows(*args, _pointer(data)))
    return data


# int32_t llama_triattn_get_rows_info(const struct llama_context * ctx, bool is_v, int32_t * type, int32_t * n_rot);
def get_rows_info(ctx: int, *, is_v: bool = False) -> tuple[int, int]:
    """ggml type of the cached rows, and the size of the Hadamard rotation applied to them (0: none)."""
    ggml_type = ctypes.c_int32()
    n_rot = ctypes.c_int32()
    _check(library().llama_triattn_get_rows_info(ctx, is_v, ctypes.byref(ggml_type), ctypes.byref(n_rot)))
    return ggml_type.value, n_rot.value
