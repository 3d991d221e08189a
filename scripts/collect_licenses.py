"""Writes native/licenses/LICENSE.vendored: the notices of what llama.cpp carries and the wheel holds.

    python scripts/collect_licenses.py

They are taken from the pinned source, word for word. To be run after a move to a newer upstream; tests/test_licenses.py
fails when the file is not what the source says, or when a folder of third parties is not named here.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "native" / "licenses" / "LICENSE.vendored"
sys.path.insert(0, str(ROOT / "native"))

import upstream  # noqa: E402

# what it is, in which file of llama.cpp its notice is, and the words with which the notice begins and ends there
NOTICES = (
    ("cpp-httplib (vendor/cpp-httplib)", "vendor/cpp-httplib/LICENSE", None, None),
    ("nlohmann/json (vendor/nlohmann)", "licenses/LICENSE-jsonhpp", None, None),
    ("miniaudio (vendor/miniaudio)", "vendor/miniaudio/miniaudio.h", "This software is available as a choice", None),
    ("stb_image (vendor/stb)", "vendor/stb/stb_image.h", "This software is available under 2 licenses", None),
    (
        "subprocess.h (vendor/sheredom)",
        "vendor/sheredom/subprocess.h",
        "This is free and unencumbered",
        "unlicense.org/>",
    ),
    ("sha256.c (vendor/hash/sha256)", "vendor/hash/sha256/LICENSE", None, None),
    ("rotate-bits (vendor/hash/rotate-bits)", "vendor/hash/rotate-bits/LICENSE.md", None, None),
    ("xxHash (vendor/hash/xxhash)", "vendor/hash/xxhash/LICENSE", None, None),
    ("sha1.c (vendor/hash/sha1)", "vendor/hash/sha1/sha1.h", "SHA-1 in C", "Public Domain"),
    ("base64.hpp (common)", "common/base64.hpp", "This is free and unencumbered", "unlicense.org>"),
    ("sgemm.cpp (ggml/src/ggml-cpu/llamafile)", "ggml/src/ggml-cpu/llamafile/sgemm.cpp", "Copyright", "SOFTWARE."),
    ("YaRN's rope_yarn (ggml/src/ggml-cpu/ops.cpp)", "ggml/src/ggml-cpu/ops.cpp", "YaRN algorithm", "Bowen Peng."),
)


def notice(text: str, begin: str | None, end: str | None) -> str:
    """The part of a file from ``begin`` to ``end``, both included, without the marks of a comment."""
    text = text[text.index(begin) if begin else 0 :]
    text = text[: text.index(end) + len(end)] if end else text
    lines = [line.removeprefix("// ").removeprefix("//").rstrip() for line in text.splitlines()]
    return "\n".join(lines).removesuffix("*/").strip()


def collect(llama_cpp: Path) -> str:
    """All notices; ``llama_cpp`` is vendor/llama.cpp of the source."""
    parts = ["Third-party code within llama.cpp that is in the libraries and programs of this wheel, and its licences."]
    for name, file, begin, end in NOTICES:
        text = (llama_cpp / file).read_text(encoding="utf-8")
        parts.append(f"---- {name}\n\n{notice(text, begin, end)}")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    cache = upstream.cache_root()
    with upstream.locked(cache):
        source = upstream.pristine_tree(upstream.read_pin(ROOT / "patches" / "UPSTREAM"), cache)
    TARGET.write_text(collect(source / "vendor" / "llama.cpp"), encoding="utf-8")
    print(TARGET)
