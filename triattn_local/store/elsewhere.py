"""Models that other programs have on this machine: Ollama, LM Studio, the hub's cache, llama.cpp's own.

They are linked into the models folder, not copied: the file stays where it is, and goes when its program removes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelNotFoundError
from ..model.shard_names import is_first, shards
from ..support.paths import expanded, is_dir, is_file
from .folder import folder_errors, is_gguf
from .naming import is_gguf_name

_MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


@dataclass(frozen=True)
class Foreign:
    """A model of another program."""

    program: str
    name: str
    """as that program calls it"""
    path: Path
    """the file, or the first shard"""
    size_bytes: int


def elsewhere(models: Path, environ: Mapping[str, str] | None = None) -> list[Foreign]:
    """The GGUF models of other programs that the models folder does not have yet, program by program.

    What cannot be read is passed over: none of it is ours.
    """
    environ = os.environ if environ is None else environ
    here = {path.resolve() for path in _files(models)}
    found: dict[Path, Foreign] = {}
    for model in (*_ollama(environ), *_lm_studio(), *_hub(environ), *_llama_cpp(environ)):
        real = model.path.resolve()
        if real not in here and real not in found:
            found[real] = model
    return sorted(found.values(), key=lambda model: (model.program, model.name.lower()))


def link(model: Foreign, models: Path) -> Path:
    """A link to each of its files in the models folder, ``program/name.gguf``; the same again if it is there.

    Raises
    ------
    ModelNotFoundError
        The file is gone, or the name is another file's.
    TriattnError
        The folder cannot be written.
    """
    folder = models / model.program.lower().replace(" ", "-")
    links: dict[Path, Path] = {}
    if is_gguf_name(model.path.name):
        links = {folder / file.name: file for file in shards(model.path)}
    else:
        links = {folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model.name)}.gguf": model.path}
    with folder_errors(folder):
        for at, file in links.items():
            if not is_file(file):
                raise ModelNotFoundError("is gone", where=str(file), fix=f"fetch it again with {model.program}")
            if at.resolve() == file.resolve():
                continue
            if at.is_symlink() and not is_file(at):  # of a model that was there once
                at.unlink()
            if os.path.lexists(at):
                raise ModelNotFoundError("is another file", where=str(at), fix="rename it, or remove it")
            at.symlink_to(file.resolve())
    return next(iter(links))


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder, followlinks=True) if is_dir(folder) else ():
        yield from (Path(root, name) for name in names if is_gguf_name(name))


def _foreign(program: str, name: str, path: Path) -> Iterator[Foreign]:
    with contextlib.suppress(OSError):
        if is_gguf(path):
            yield Foreign(program, name, path, sum(file.stat().st_size for file in shards(path) if is_file(file)))


def _named(program: str, root: Path) -> Iterator[Foreign]:
    """Files that end in .gguf; projectors for pictures are no models."""
    for path in sorted(_files(root)):
        inside = path.relative_to(root).with_suffix("").as_posix()
        if is_first(path.stem) and "mmproj" not in path.name.lower():
            yield from _foreign(program, inside, path)


def _ollama(environ: Mapping[str, str]) -> Iterator[Foreign]:
    """Names are paths of manifests, which say by a hash which blob is the model."""
    given = environ.get("OLLAMA_MODELS", "").strip()
    roots = [expanded(given)] if given else [expanded("~/.ollama/models"), Path("/usr/share/ollama/.ollama/models")]
    for root in roots:
        for folder, _, tags in os.walk(root / "manifests"):
            for tag in sorted(tags):
                blob = _blob(Path(folder, tag), root)
                if blob is not None:
                    registry, *parts = Path(folder).relative_to(root / "manifests").parts
                    owner = "/".join(parts).removeprefix("library/")
                    known = registry == "registry.ollama.ai"
                    yield from _foreign("Ollama", f"{owner if known else f'{registry}/{owner}'}:{tag}", blob)


def _blob(manifest: Path, root: Path) -> Path | None:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        if manifest.stat().st_size > 1 << 20:
            return None
        for layer in json.loads(manifest.read_bytes())["layers"]:
            digest = _DIGEST.fullmatch(str(layer["digest"]))
            if layer["mediaType"] == _MODEL_LAYER and digest:
                return root / "blobs" / f"sha256-{digest[1]}"
    return None


def _lm_studio() -> Iterator[Foreign]:
    for root in ("~/.lmstudio/models", "~/.cache/lm-studio/models"):
        yield from _named("LM Studio", expanded(root))


def _hub(environ: Mapping[str, str]) -> Iterator[Foreign]:
    cache = environ.get("HF_HUB_CACHE", "").strip()
    home = environ.get("HF_HOME", "").strip() or "~/.cache/huggingface"
    root = expanded(cache) if cache else expanded(home) / "hub"
    for repo in sorted(root.glob("models--*")) if is_dir(root) else ():
        name = repo.name.removeprefix("models--").replace("--", "/")
        for path in sorted(repo.glob("snapshots/*/**/*.gguf")):
            if is_first(path.stem) and "mmproj" not in path.name.lower():
                yield from _foreign("Hugging Face", f"{name}/{path.stem}", path)


def _llama_cpp(environ: Mapping[str, str]) -> Iterator[Foreign]:
    given = environ.get("LLAMA_CACHE", "").strip()
    yield from _named("llama.cpp", expanded(given or "~/.cache/llama.cpp"))
