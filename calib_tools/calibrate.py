"""From a model and a text to its statistics: share out the text, watch the model read it, average.

The one place that joins corpus, engines and sums, that says which models can be calibrated at all, and that lets an
interrupted calibration go on.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from triattn_local.errors import CalibrationError
from triattn_local.model.gguf_file import read_gguf
from triattn_local.model.model_info import ModelInfo, fingerprint, read_model_info
from triattn_local.model.stats import TriattnStats
from triattn_local.support.progress import Count
from triattn_local.version import __version__

from .accumulate import HeadSums
from .checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from .choose import EngineName, choose
from .corpus import Corpus, bundled_corpus
from .engine_runtime import LayerAttention, Recorded, RuntimeEngine
from .engine_torch import Hidden, TorchEngine, best_device
from .tokens import MIN_TOKENS, SKIP_TOKENS, open_vocabulary, sequences, text_bytes
from .weights import Weights

DEFAULT_TOKENS = 8192
"""docs/calibration.md shows where the centres stop moving"""

CHUNK_TOKENS = 2048
"""tokens in one sequence; positions do not matter before RoPE, but what a token has read does"""


def check_can_calibrate(info: ModelInfo) -> None:
    """Refuse a model that TriAttention cannot work on, before anything is loaded.

    Raises
    ------
    CalibrationError
        Says which property of the model is in the way.
    """
    if info.obstacle is not None:
        raise CalibrationError(
            info.obstacle, where=str(info.path), fix="TriAttention needs a decoder with RoPE and a KV cache"
        )
    if not info.is_known:
        raise CalibrationError(
            f"has the architecture {info.arch!r}, which this version does not know",
            where=str(info.path),
            fix="update triattn-local",
        )


def calibrate(
    model: Path,
    corpus: Corpus | None = None,
    n_tokens: int = DEFAULT_TOKENS,
    progress: Count | None = None,
    *,
    engine: EngineName | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    n_batch: int = 512,
) -> TriattnStats:
    """Measure the centres of a model's queries and keys.

    Parameters
    ----------
    model : Path
        GGUF, the first file if it is split.
    corpus : Corpus, optional
        The bundled text if not given.
    n_tokens : int
        Tokens to read, evenly from all documents; fewer if the text is shorter.
    progress : callable, optional
        Called with (tokens done, tokens in all).
    engine : "torch" or "runtime", optional
        See ``choose``, which chooses if it is not given.
    checkpoint : Path, optional
        File that keeps what is done, after every layer (torch) or sequence (runtime).
    resume : bool
        Go on from what the file keeps, if it is there.
    n_threads, n_gpu_layers, n_batch : int
        As for ``RuntimeEngine``.

    Returns
    -------
    TriattnStats
        Checked against the model.

    Raises
    ------
    ModelNotFoundError, BackendMissingError
        Nothing to run, or nothing to run it with.
    CalibrationError
        The model cannot be calibrated, the text is too short, or the checkpoint belongs to something else.
    """
    info = read_model_info(model)
    check_can_calibrate(info)
    check_enough(n_tokens)
    corpus = bundled_corpus() if corpus is None else corpus
    if engine is None:
        with Weights(info) as weights:
            engine = choose(info, weights, n_gpu_layers).engine
    with open_vocabulary(info.path) as vocabulary:
        texts = sequences(vocabulary, corpus, n_tokens, min(CHUNK_TOKENS, info.n_ctx_train))
    own = fingerprint(info.path)
    task = {
        "model": own,
        "weights": _tensor_types(info),
        "corpus": corpus.label,
        "tokens": hashlib.sha256(b"\n".join(map(text_bytes, texts))).hexdigest(),
        "engine": engine,
        "writer": __version__,
    }
    saved = None if checkpoint is None or not resume else read_checkpoint(checkpoint, task)
    run = _Run(info, own, texts, task, checkpoint, saved, progress)
    if engine == "torch":
        sums = _run_torch(run, best_device(n_gpu_layers), n_threads)
    else:
        sums = _run_runtime(run, n_threads, n_gpu_layers, n_batch)
    layers = tuple(sorted({il for il, _ in sums}))
    q_sums, k_sums = [sums[il, "q_pre"] for il in layers], [sums[il, "k_pre"] for il in layers]
    stats = TriattnStats(
        layers=layers,
        q_mean=tuple(s.mean() for s in q_sums),
        q_abs=tuple(s.mean_abs() for s in q_sums),
        k_mean=tuple(s.mean() for s in k_sums),
        n_tokens=q_sums[0].n_tokens,
        corpus=corpus.label,
        tool=f"triattn-local {__version__}, {engine} engine",
        model=own,
    )
    stats.validate(run.info)
    return stats


def check_enough(n_tokens: int) -> None:
    """Refuse a number of tokens that no centre can be made of.

    Raises
    ------
    CalibrationError
        It is smaller than MIN_TOKENS.
    """
    if n_tokens < MIN_TOKENS:
        raise CalibrationError(f"{n_tokens} tokens are too few", fix=f"give --tokens {MIN_TOKENS} or more")


Sums = dict[tuple[int, Recorded], HeadSums]


@dataclass
class _Run:
    """One calibration under way."""

    info: ModelInfo
    own: str
    texts: list[list[int]]
    task: Mapping[str, str | int]
    path: Path | None
    saved: Checkpoint | None
    progress: Count | None

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.texts))

    def tell(self, n_done: float) -> None:
        if self.progress is not None:
            self.progress(int(n_done), self.n_tokens)

    def new_sums(self, layers: tuple[int, ...]) -> Sums:
        """Empty sums of the layers, or those of the checkpoint as far as it has them."""
        info = self.info
        sums: Sums = {}
        for il in layers:
            for kind, n_head in (("q_pre", info.n_head[il]), ("k_pre", info.n_head_kv[il])):
                one = HeadSums(n_head, info.head_dim, info.n_rot_of(il), info.rope_type or "neox")
                prefix = f"{il}.{kind}."
                state = {} if self.saved is None else _with_prefix(self.saved.arrays, prefix)
                if state:
                    one.restore(state)
                sums[il, kind] = one  # type: ignore[index]
        return sums

    def save(self, n_done: int, sums: Sums, hidden: torch.Tensor | None = None) -> None:
        if self.path is None:
            return
        arrays = {
            f"{il}.{kind}.{name}": array
            for (il, kind), one in sums.items()
            if one.n_tokens
            for name, array in one.state().items()
        }
        if hidden is not None:
            arrays["hidden"] = hidden.cpu().numpy()
        write_checkpoint(self.path, Checkpoint(self.task, n_done, arrays))


def _with_prefix(arrays: Mapping[str, npt.NDArray[np.float64]], prefix: str) -> dict[str, npt.NDArray[np.float64]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _run_torch(run: _Run, device: torch.device, n_threads: int | None) -> Sums:
    layers = run.info.full_layers
    assert layers, "the torch engine knows no architecture whose file does not tell"
    sums = run.new_sums(layers)
    with Weights(run.info) as weights:
        engine = TorchEngine(run.info, weights, device, n_threads)
        hidden = engine.start(run.texts)
        if run.saved is not None:
            values = torch.from_numpy(run.saved.arrays["hidden"]).to(device)
            hidden = Hidden(values, hidden.spans, run.saved.n_done)

        def add(il: int, q_pre: torch.Tensor, k_pre: torch.Tensor) -> None:
            sums[il, "q_pre"].add(q_pre[SKIP_TOKENS:])
            sums[il, "k_pre"].add(k_pre[SKIP_TOKENS:])

        n_layer = layers[-1] + 1
        while hidden.next_layer < n_layer:
            run.tell(run.n_tokens * hidden.next_layer / n_layer)
            engine.step(hidden, layers, add)
            if hidden.next_layer < n_layer:
                run.save(hidden.next_layer, sums, hidden.values)
        run.tell(run.n_tokens)
    return sums


def _run_runtime(run: _Run, n_threads: int | None, n_gpu_layers: int, n_batch: int) -> Sums:
    info = run.info
    n_ctx = max(map(len, run.texts))
    if info.full_layers is None:
        # only a context larger than any window shows which caches are as large as the context
        n_ctx = max(n_ctx, info.n_swa + 2 * n_batch)
    with (
        RuntimeEngine(
            info.path, n_ctx=n_ctx, n_batch=n_batch, n_threads=n_threads, n_gpu_layers=n_gpu_layers
        ) as engine,
        _one_torch_thread(),
    ):
        _check_fingerprint(run, engine)
        info = run.info = _as_loaded(info, engine)
        layers = info.full_layers or ()
        sums = run.new_sums(layers)
        n_read = 0 if run.saved is None else run.saved.n_done
        n_done = sum(map(len, run.texts[:n_read]))

        def add(il: int, kind: Recorded, values: npt.NDArray[np.float32], first_pos: int) -> None:
            nonlocal n_done
            if (il, kind) in sums:
                sums[il, kind].add(torch.from_numpy(values[max(0, SKIP_TOKENS - first_pos) :]))
            # the last layer's keys come last, when the batch is as good as done
            if il == layers[-1] and kind == "q_pre":
                n_done += len(values)
                run.tell(n_done)

        for i in range(n_read, len(run.texts)):
            engine.evaluate(run.texts[i], add)
            if i + 1 < len(run.texts):
                run.save(i + 1, sums)
    return sums


def _tensor_types(info: ModelInfo) -> str:
    """Hash of names, types and shapes of all tensors: tells quantisations of one model apart."""
    digest = hashlib.sha256()
    for shard in info.shards:
        file = read_gguf(shard)
        digest.update(file.head[file.infos_start : file.infos_end])
    return digest.hexdigest()


def _check_fingerprint(run: _Run, engine: RuntimeEngine) -> None:
    """The engine will refuse statistics whose fingerprint it does not find itself, so ask it at once."""
    if engine.fingerprint != run.own:
        raise CalibrationError(
            f"has the fingerprint {run.own}, and llama.cpp says {engine.fingerprint}",
            where=str(run.info.path),
            fix="this is a bug of triattn-local, please report it",
        )


def _as_loaded(info: ModelInfo, engine: RuntimeEngine) -> ModelInfo:
    """The model with the layers that the library says evict, and how it says that RoPE turns them.

    Raises
    ------
    CalibrationError
        The file, the library and the graph do not agree on what these layers are.
    """
    told = engine.described
    layers = tuple(il for il, layer in enumerate(told) if layer.why_kept is None)
    unrotated = tuple(il for il in layers if told[il].rope_type is None)
    if not layers:
        why = next((layer.why_kept for layer in told if layer.why_kept), "it has no attention")
        raise CalibrationError(f"no layer evicts: {why}", where=str(info.path), fix="take another model")
    if info.full_layers is not None and info.full_layers != layers:
        raise _disagreement(info, f"layers {list(info.full_layers)} cache the whole context", f"{list(layers)} evict")
    if info.full_layers is not None and (wrong := set(info.unrotated) & set(layers) ^ set(unrotated)):
        raise _disagreement(info, f"RoPE turns layers but {list(info.unrotated)}", f"not so in layer {min(wrong)}")
    info = replace(info, full_layers=layers, unrotated=unrotated)
    for il in layers:
        if (seen := engine.layers.get(il)) is None:
            raise CalibrationError(
                f"layer {il} caches keys whose making is not understood",
                where=str(info.path),
                fix="run it with --policy streaming, knorm or random, which need no statistics",
            )
        _check_agrees(info, il, seen)
    return info


def _check_agrees(info: ModelInfo, il: int, seen: LayerAttention) -> None:
    n_rot = info.n_rot_of(il)
    told = (info.n_head[il], info.n_head_kv[il], info.head_dim, n_rot, info.rope_type if n_rot else None)
    rope = seen.rope
    real = (seen.n_head, seen.n_head_kv, seen.head_dim, rope.n_rot, rope.rope_type if rope.n_rot else None)
    if told != real:
        raise _disagreement(
            info, f"layer {il} has (n_head, n_head_kv, head_dim, n_rot, RoPE) = {told}", f"llama.cpp computes {real}"
        )


def _disagreement(info: ModelInfo, told: str, real: str) -> CalibrationError:
    return CalibrationError(
        f"{told} by its file, and {real}",
        where=str(info.path),
        fix="take another file of this model, or run it with a policy that needs no statistics: streaming, knorm",
    )


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """llama.cpp's threads keep spinning while a callback runs, and more of torch's would only wait for them."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
