"""Models of the Hugging Face hub, through its own client.

The files stay in the hub's cache (so that its resuming, its offline mode and its other users keep working) and are
linked into the models folder once they are verified. HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are read by the client.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from ..errors import ModelNotFoundError, TriattnError, UsageError
from ..model.gguf_file import GgufFile, HeadCutError, parse_head
from ..model.shard_names import is_first, shards, without_shard
from ..support.paths import is_file
from ..support.progress import Progress
from ..version import __version__
from .folder import (
    entries,
    folder_errors,
    is_gguf,
    lock,
    need_disk,
    no_trace,
    place,
    scratch_folder,
    sha256_of,
)
from .naming import DEFAULT_QUANT, is_gguf_name, quant_label, quant_names

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_NO_LANGUAGE_MODEL = ("mmproj", "imatrix")
"""files that repositories keep beside the model, and that have the same suffix"""


_HEAD_READ = 8 << 20
"""bytes asked for at once: most headers, whose largest part is the vocabulary, are shorter"""
_HEAD_MOST = 256 << 20
"""no model's header is as long"""


_Sizes = dict[str, tuple[int | None, str | None]]
"""file name -> (bytes, sha256), each None where the hub does not tell"""


class HubClient(Protocol):
    """What is used of ``huggingface_hub.HfApi``."""

    def model_info(self, repo_id: str, *, files_metadata: bool = False) -> ModelInfo: ...

    def hf_hub_download(self, repo_id: str, filename: str) -> str: ...


def pull_hub(repo: str, quant: str, models: Path, progress: Progress, hub: HubClient | None) -> Path:
    wanted = quant or DEFAULT_QUANT
    folder = models / repo
    for entry in entries(models):
        # a file stands in the folder only after it was verified, and a model only with all its shards
        if (
            entry.path.parent == folder
            and wanted.lower() in quant_names(entry.path.name)
            and all(is_file(file) for file in shards(entry.path))
        ):
            return entry.path

    with _hub_errors(repo):
        hub, sizes, names = _find(repo, quant, progress, hub)
        total = sum(sizes[name][0] or 0 for name in names)
        need_disk(_hub_cache(), total - _hub_bytes_here(repo, names))
    name = Path(names[0]).name
    with (
        _hub_errors(repo),
        no_trace(folder, models),
        folder_errors(folder),
        lock(folder, name),
        scratch_folder(folder, name) as scratch,
    ):
        linked: list[tuple[Path, Path]] = []
        for file in names:
            # the library shows its own bar, resumes, and reads HF_HOME, HF_TOKEN and HF_HUB_OFFLINE
            progress(f"fetching {repo} {file}", 0, 0)
            blob = Path(hub.hf_hub_download(repo, file)).resolve()
            _verify_blob(blob, file, *sizes[file], progress)
            link = scratch / Path(file).name
            _link(blob, link)
            linked.append((link, folder / link.name))
        # the first shard last: a model is there when its first shard is
        for link, target in reversed(linked):
            place(link, target)
    return folder / name


def hub_heads(repo: str, quant: str, progress: Progress, hub: HubClient | None = None) -> list[GgufFile]:
    """What stands before the tensor data of each file of a model, in order; nothing else is fetched.

    Raises
    ------
    ModelNotFoundError
        As ``pull_hub``; or a file is no GGUF, or has a header that cannot be true.
    """
    import huggingface_hub

    with _hub_errors(repo):
        names = _find(repo, quant, progress, hub)[2]
        files = huggingface_hub.HfFileSystem()
        heads = []
        for name in names:
            progress(f"reading the header of {repo} {name}", 0, 0)
            with files.open(f"{repo}/{name}", "rb", block_size=_HEAD_READ, cache_type="none") as file:
                heads.append(_read_head(Path(name), file, file.size))
        return heads


def _find(repo: str, quant: str, progress: Progress, hub: HubClient | None) -> tuple[HubClient, _Sizes, list[str]]:
    """The client, the files of the repository, and the names of those of the model, in order."""
    import huggingface_hub

    hub = hub or huggingface_hub.HfApi(library_name="triattn-local", library_version=__version__)
    progress(f"asking the hub for {repo}", 0, 0)
    sizes = _hub_files(hub, repo)
    return hub, sizes, _choose(repo, quant, sorted(sizes))


def _read_head(name: Path, file: BinaryIO, size: int) -> GgufFile:
    data = b""
    while True:
        more = file.read(min(_HEAD_READ, size - len(data)))
        data += more
        try:
            return parse_head(name, data, size)
        except HeadCutError:
            if not more or len(data) >= min(size, _HEAD_MOST):
                raise


def _hub_files(hub: HubClient, repo: str) -> _Sizes:
    """From the hub's cache when it is offline."""
    try:
        info = hub.model_info(repo, files_metadata=True)
    except Exception as error:
        here = _hub_cached(repo) if _is_no_network(error) else {}
        if not here:
            raise
        return here
    return {
        file.rfilename: (file.size, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or []
        if is_gguf_name(file.rfilename)
    }


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _hub_cached(repo: str) -> _Sizes:
    snapshots = _hub_cache() / f"models--{repo.replace('/', '--')}" / "snapshots"
    return {
        path.relative_to(snapshot).as_posix(): (path.stat().st_size, None)
        for snapshot in (snapshots.iterdir() if snapshots.is_dir() else ())
        for path in snapshot.rglob("*")
        if is_gguf_name(path.name) and path.is_file()
    }


def _hub_bytes_here(repo: str, names: list[str]) -> int:
    """Bytes of these files that the hub's cache holds already, finished or begun."""
    finished = sum(size or 0 for name, (size, _) in _hub_cached(repo).items() if name in names)
    blobs = _hub_cache() / f"models--{repo.replace('/', '--')}" / "blobs"
    begun = sum(path.stat().st_size for path in blobs.glob("*.incomplete")) if blobs.is_dir() else 0
    return finished + begun


def _choose(repo: str, quant: str, names: list[str]) -> list[str]:
    """The files of one model: all shards, in order."""
    models = [name for name in names if not any(word in name.lower() for word in _NO_LANGUAGE_MODEL)]
    firsts = [name for name in models if is_first(Path(name).stem)]
    if not firsts:
        raise ModelNotFoundError(
            "the repository holds no GGUF", where=repo, fix="look for one whose name ends in -GGUF on the hub"
        )
    wanted = quant or DEFAULT_QUANT
    matches = [name for name in firsts if wanted.lower() in quant_names(name)]
    if len(matches) != 1:
        there = ", ".join(sorted({quant_label(name) if not matches else Path(name).stem for name in matches or firsts}))
        what = f"{len(matches)} files are {wanted}: {there}" if matches else f"no {wanted}; there is {there}"
        first = Path((matches or firsts)[0])
        one = without_shard(first.stem) if matches else quant_label(first.name)
        raise ModelNotFoundError(what, where=repo, fix=f"for example: triattn-local pull {repo}:{one}")
    first = Path(matches[0])
    files = [path.as_posix() for path in shards(first)]
    missing = [file for file in files if file not in names]
    if missing:
        raise ModelNotFoundError(f"shard {missing[0]} is missing", where=repo, fix="take another quantisation")
    return files


def _verify_blob(blob: Path, name: str, size: int | None, sha256: str | None, progress: Progress) -> None:
    found = blob.stat().st_size
    if size is not None and found != size:
        problem = f"has {found} bytes, not {size}"
    elif sha256 is not None and sha256_of(blob, f"checking {Path(name).name}", progress) != sha256:
        problem = f"does not have the sha256 {sha256} that the hub tells"
    elif not is_gguf(blob):
        problem = "is not a GGUF"
    else:
        return
    # the hub library believes a file that is there, so that only a removal makes it fetch again
    raise ModelNotFoundError(problem, where=name, fix=f"remove {blob} and pull again")


def _link(source: Path, link: Path) -> None:
    """A second name for 20 GB, not a second copy, wherever the file system has such a thing."""
    try:
        link.hardlink_to(source)
    except OSError:
        try:
            link.symlink_to(source)
        except OSError:
            shutil.copyfile(source, link)


def _is_no_network(error: BaseException) -> bool:
    from huggingface_hub import errors

    return isinstance(error, (errors.OfflineModeIsEnabled, ConnectionError, TimeoutError)) or any(
        kind.__name__ in ("TransportError", "ConnectionError") for kind in type(error).__mro__
    )


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Say in our words what the hub's client could not do."""
    from huggingface_hub import errors

    try:
        yield
    except TriattnError:
        raise
    except errors.GatedRepoError:
        raise ModelNotFoundError(
            "the repository is gated",
            where=repo,
            fix="accept its terms on its page, then set HF_TOKEN (or run: hf auth login)",
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFoundError(
            "the hub has no such repository, or it is private",
            where=repo,
            fix="check the name, or set HF_TOKEN for a private one",
        ) from None
    except errors.HFValidationError as error:
        raise UsageError(f"not a name of a repository: {error}", where=repo) from None
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", "no")
        raise ModelNotFoundError(f"the hub answered with status {status}", where=repo, fix="try again later") from None
    except Exception as error:
        if isinstance(error, errors.LocalEntryNotFoundError) or _is_no_network(error):
            offline = _offline_mode()
            raise ModelNotFoundError(
                "not in the hub's cache, and HF_HUB_OFFLINE is set"
                if offline
                else "no network: the hub does not answer",
                where=repo,
                fix="unset HF_HUB_OFFLINE" if offline else "try again with a connection; what has arrived is kept",
            ) from None
        if isinstance(error, errors.XetDownloadError) or type(error).__module__.startswith("hf_xet"):
            raise ModelNotFoundError(f"the download failed: {error}", where=repo, fix="try again") from None
        raise


def _offline_mode() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
