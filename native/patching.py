"""Applies the patches to upstream's files, in memory and to the letter.

Why not `patch` or `git apply`: neither is on every machine, both accept hunks that have drifted, and neither knows the
house rule that a patch only adds lines. Here a hunk must stand on exactly the lines that it names, in exactly that
place, and takes nothing away; the source it is made for is pinned by hash, so anything else is a mistake.

It does not know where files come from or go to: text in, text out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


class PatchError(Exception):
    """A patch that cannot be read, breaks the rule or does not apply; the message names patch, file and line."""


@dataclass(frozen=True)
class Hunk:
    """One place of one file.

    `start` is the 1-based line of the source *before* this patch where the hunk's first line of context stands (for a
    hunk without context, the line after which it is inserted); `body` holds its lines as (is_added, text with its end).
    """

    start: int
    body: tuple[tuple[bool, str], ...]

    @property
    def n_added(self) -> int:
        return sum(is_added for is_added, _ in self.body)


@dataclass
class Patch:
    """One patch file: the header that says why, and its hunks per path, the path relative to the source's root."""

    name: str
    header: str
    hunks: dict[str, list[Hunk]] = field(default_factory=dict)

    @property
    def n_added(self) -> int:
        return sum(hunk.n_added for hunks in self.hunks.values() for hunk in hunks)


def _lines(data: bytes) -> list[str]:
    # not str.splitlines: C++ sources may hold form feeds and other characters that it takes for line ends
    return re.findall(r"[^\n]*\n|[^\n]+", data.decode())


def read_patch(path: Path) -> Patch:
    """Read a unified diff with a/ and b/ prefixes, all of it additions.

    Raises
    ------
    PatchError
        On anything else: removed lines, created, deleted or renamed files, counts that do not add up.
    """
    lines = _lines(path.read_bytes())
    first = next((i for i, line in enumerate(lines) if line.startswith(("diff --git ", "--- "))), len(lines))
    patch = Patch(path.name, "".join(lines[:first]))
    hunks: list[Hunk] | None = None
    i = first
    while i < len(lines):
        where = f"{path.name}, line {i + 1}"
        line = lines[i]
        i += 1
        if line.startswith("--- "):
            old, new = line[4:].strip(), lines[i][4:].strip() if i < len(lines) else ""
            if not old.startswith("a/") or not new.startswith("b/") or old[2:] != new[2:]:
                raise PatchError(
                    f"{where}: expected '--- a/FILE' and '+++ b/FILE' of one existing file, found '{old}' and '{new}'; "
                    "new files belong in native/src or native/include"
                )
            hunks = patch.hunks.setdefault(old[2:], [])
            i += 1
        elif match := _HUNK.match(line):
            if hunks is None:
                raise PatchError(f"{where}: a hunk before any '--- a/FILE' line")
            n_old, n_new = (int(match.group(g) or 1) for g in (2, 4))
            body: list[tuple[bool, str]] = []
            while n_old > 0 or n_new > 0:
                text = lines[i] if i < len(lines) else ""
                if text[:1] not in (" ", "+", "\n"):
                    removes = text[:1] == "-"
                    rule = "it removes or replaces a line; hooks are additions only" if removes else "hunk ends early"
                    raise PatchError(f"{path.name}, line {i + 1}: {rule}")
                is_added = text[0] == "+"
                # an editor that strips blanks leaves an empty context line without its leading space
                body.append((is_added, text if text == "\n" else text[1:]))
                n_old -= not is_added
                n_new -= 1
                i += 1
            if n_old or n_new:
                raise PatchError(f"{where}: the hunk's line counts do not add up")
            hunks.append(Hunk(int(match.group(1)), tuple(body)))
        elif not line.startswith(("diff --git ", "index ")):
            raise PatchError(f"{where}: not part of a diff that only adds lines: '{line.strip()}'")
    if not patch.hunks:
        raise PatchError(f"{path.name}: holds no hunk")
    return patch


def read_patches(folder: Path) -> list[Patch]:
    """Read a folder's `*.patch`, in the order of their names, which is the order they apply in."""
    return [read_patch(path) for path in sorted(folder.glob("*.patch"))]


def apply_hunks(patch_name: str, path: str, source: bytes, hunks: Iterable[Hunk]) -> bytes:
    """Return `source`, the content of `path`, with the hunks inserted."""
    lines = _lines(source)
    result: list[str] = []
    done = 0
    for n, hunk in enumerate(hunks, start=1):
        has_context = any(not is_added for is_added, _ in hunk.body)
        at = hunk.start - 1 if has_context else hunk.start
        if at < done:
            raise PatchError(f"{patch_name}: hunk {n} of {path} overlaps the one before it")
        result += lines[done:at]
        for is_added, text in hunk.body:
            if is_added:
                result.append(text)
                continue
            found = lines[at] if at < len(lines) else "(end of file)"
            if found != text:
                raise PatchError(
                    f"{patch_name}: hunk {n} does not apply to {path} at line {at + 1}: "
                    f"expected '{text.strip()}', found '{found.strip()}'"
                )
            result.append(text)
            at += 1
        done = at
    return "".join(result + lines[done:]).encode()


def apply_patches(patches: Iterable[Patch], source: Path) -> Mapping[str, bytes]:
    """Return the patched content of every file that the patches touch; `source`, the pristine root, stays as it is."""
    patched: dict[str, bytes] = {}
    for patch in patches:
        for path, hunks in patch.hunks.items():
            if path not in patched:
                if not (source / path).is_file():
                    raise PatchError(f"{patch.name}: {path} does not exist in the source")
                patched[path] = (source / path).read_bytes()
            patched[path] = apply_hunks(patch.name, path, patched[path], hunks)
    return patched
