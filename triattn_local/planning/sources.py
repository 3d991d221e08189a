"""Where the header of a model comes from: a file, a part of one, the hub, or a geometry.

Whatever it is, what comes out is a path that llama.cpp can open. Where there is no tensor data, the file has a hole in
its place: it says what size it has and takes no room.
"""

from __future__ import annotations

import contextlib
import difflib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import store
from ..errors import DoesNotFitError, ModelNotFoundError
from ..geometry import GEOMETRIES, find_geometry, write_outline
from ..model.gguf_file import GgufFile, read_head
from ..support.paths import expanded, is_file
from ..support.progress import Progress

_MOST_BYTES = 2**42
"""of a file: more than any model has"""


@contextlib.contextmanager
def open_header(model: str, models: Path, progress: Progress | None = None) -> Iterator[Path]:
    """A path with this model's header: its own, or one that is gone afterwards.

    Parameters
    ----------
    model : str
        A path (also of a header alone, or of a download that stopped), a name in the models folder, a geometry, or
        ``org/repo[:quant]`` of the hub.

    Raises
    ------
    ModelNotFoundError
        There is no such model, or its header cannot be true.
    """
    path = expanded(model)
    if is_file(path):
        with _whole(path) as there:
            yield there
        return
    try:
        found = store.resolve(model, models)
    except ModelNotFoundError:
        if model.lower() in GEOMETRIES:
            with tempfile.TemporaryDirectory() as folder:
                yield write_outline(find_geometry(model), Path(folder) / f"{model.lower()}.gguf")
            return
        if not store.is_repo(model):
            near = difflib.get_close_matches(model.lower(), GEOMETRIES, 1)
            if not near:
                raise
            raise ModelNotFoundError(f"no model and no geometry {model!r}", fix=f"did you mean {near[0]!r}?") from None
        with _outlines(store.remote_heads(model, progress=progress)) as there:
            yield there
        return
    with _whole(found) as there:
        yield there


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """The file itself if its tensor data is there, else a stand-in."""
    head = read_head(path)
    _check(head)
    if head.file_size >= head.data_end:
        yield path
        return
    if head.integer("split.count", 0):
        raise ModelNotFoundError(
            "is a part of a split model without its data",
            where=str(path),
            fix="give the model's name on the hub, or all of its files",
        )
    with _outlines([head]) as there:
        yield there


@contextlib.contextmanager
def _outlines(heads: Sequence[GgufFile]) -> Iterator[Path]:
    """Files with these headers, and holes behind them; the path of the first."""
    with tempfile.TemporaryDirectory() as folder:
        for head in heads:
            _check(head)
            try:
                with (Path(folder) / head.path.name).open("wb") as out:
                    out.write(head.head)
                    out.truncate(max(head.data_end, head.data_start))
            except OSError as error:
                raise DoesNotFitError(
                    f"a stand-in for {head.path.name} cannot be written: {error.strerror}",
                    where=folder,
                    fix="set TMPDIR to a folder on another disk",
                ) from None
        yield Path(folder) / heads[0].path.name


def _check(head: GgufFile) -> None:
    """Tensors lie one behind the other, as llama.cpp wants them, and are of a size that a disk may have.

    Raises
    ------
    ModelNotFoundError
        They do not: the header lies.
    """
    expected = 0
    for tensor in head.tensors:
        name = tensor.name.decode("utf-8", "replace")
        if tensor.offset != expected:
            raise head.broken(f"tensor {name} begins at {tensor.offset}, and the ones before it end at {expected}")
        if tensor.n_bytes is None:
            return  # the accounting says so
        expected += tensor.n_bytes + -tensor.n_bytes % head.alignment
    if head.data_start + expected > _MOST_BYTES:
        raise head.broken(f"claims {expected / 2**40:,.1f} TiB of tensors")
