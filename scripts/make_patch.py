"""Makes the patches: lays out a tree to edit, and writes the difference back as a patch file.

Why it exists: native/patching.py takes a patch only if it fits to the letter and adds lines without removing any; that
is no form to write by hand. It does not know what a hook is for: the header that says so is written by you, and kept.

    python scripts/make_patch.py edit DIR            upstream's source with all patches applied, for editing
    python scripts/make_patch.py save DIR NAME       rewrite patches/NAME from it, or create it
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "native"))

import upstream  # noqa: E402
from patching import Patch, PatchError, apply_patches, read_patch, read_patches  # noqa: E402

PATCHES = ROOT / "patches"
_HEADER = "What this patch is for, and why upstream's files must know of it.\n\n"
# where hooks can be; the rest of the distribution is documentation and tests
_PATCHED_FOLDERS = (
    "llama_cpp",
    *(f"vendor/llama.cpp/{name}" for name in ("common", "ggml", "include", "src", "tools")),
)


def edit(target: Path) -> None:
    """Copy the pristine source to `target` and apply every patch there."""
    if target.exists():
        raise upstream.BuildError(f"{target} exists; name a new folder, or remove it first")
    pristine = _pristine()
    changed = apply_patches(read_patches(PATCHES), pristine)
    shutil.copytree(pristine, target)
    for path, content in changed.items():
        (target / path).write_bytes(content)
    print(f"edit {target}, then: python scripts/make_patch.py save {target} NAME.patch")


def save(target: Path, name: str) -> None:
    """Write patches/`name`: what `target` has, and the source with the patches before that one has not.

    Files that only other patches touch are theirs.
    """
    pristine = _pristine()
    others = [patch for patch in read_patches(PATCHES) if patch.name != name]
    base = apply_patches((patch for patch in others if patch.name < name), pristine)
    old = read_patch(PATCHES / name) if (PATCHES / name).exists() else Patch(name, _HEADER)
    of_others = {path for patch in others for path in patch.hunks} - set(old.hunks)

    with tempfile.TemporaryDirectory() as tmp:
        for folder in _PATCHED_FOLDERS:
            for edited in sorted((target / folder).rglob("*")):
                path = edited.relative_to(target).as_posix()
                if not edited.is_file() or edited.suffix == ".pyc" or path in of_others:
                    continue
                before = base.get(path) or ((pristine / path).read_bytes() if (pristine / path).exists() else b"")
                if edited.read_bytes() == before:
                    continue
                for side, content in (("a", before), ("b", edited.read_bytes())):
                    (Path(tmp) / side / path).parent.mkdir(parents=True, exist_ok=True)
                    (Path(tmp) / side / path).write_bytes(content)
        command = [
            "git",
            "-c",
            "core.autocrlf=false",
            "-c",
            "core.quotepath=false",
            "diff",
            "--no-index",
            "--no-prefix",
        ]
        command += ["--minimal", "--no-color", "--no-renames", "--no-ext-diff", "a", "b"]
        diff = subprocess.run(command, cwd=tmp, capture_output=True, check=False).stdout.decode()
        # git's own two lines a file say nothing that the --- and +++ lines do not
        kept = [line for line in diff.splitlines(keepends=True) if not line.startswith(("diff --git ", "index "))]
        part = Path(tmp) / name
        part.write_text(f"{old.header.rstrip()}\n\n{''.join(kept)}", encoding="utf-8", newline="\n")
        patch = read_patch(part)
        apply_patches([*(other for other in others if other.name < name), patch], pristine)
        shutil.copyfile(part, PATCHES / name)
    print(f"patches/{name}: {patch.n_added} lines added in {len(patch.hunks)} files")


def _pristine() -> Path:
    cache = upstream.cache_root()
    with upstream.locked(cache):
        return upstream.pristine_tree(upstream.read_pin(PATCHES / "UPSTREAM"), cache)


def _main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("edit", "save"):
        sub = commands.add_parser(command)
        sub.add_argument("dir", type=Path)
        if command == "save":
            sub.add_argument("name", help="file name in patches/, such as 0001-hooks.patch")
    arguments = parser.parse_args()
    try:
        edit(arguments.dir) if arguments.command == "edit" else save(arguments.dir, arguments.name)
    except (upstream.BuildError, PatchError) as error:
        raise SystemExit(f"make_patch: {error}") from None


if __name__ == "__main__":
    _main()
