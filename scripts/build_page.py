"""Makes native/page.tar.xz: llama-server's own page as its sources of the pinned llama.cpp give it.

    python scripts/build_page.py          needs npm and node 20; npm fetches what the page's lock file names

Why it exists: llama.cpp builds the page with npm, or downloads it ready-made. A build of ours does neither: the page is
carried, made once for each pinned source. Two runs give the same files. Beside it, native/licenses/LICENSE.page has the
licences of the packages whose code is in it.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "native"))

import upstream  # noqa: E402

PAGE = ROOT / "native" / "page.tar.xz"
LICENCES = ROOT / "native" / "licenses" / "LICENSE.page"
BUILD = "b0"
"""as the build calls llama-server: upstream's own number is not in the source distribution"""

FRAMEWORKS = {"svelte", "@sveltejs/kit", "@vite-pwa/sveltekit", "vite-plugin-pwa", "tailwindcss"}
"""what of these is in the page does without the tools that they depend on"""


def main() -> None:
    pristine = upstream.pristine_tree(upstream.read_pin(ROOT / "patches" / "UPSTREAM"), upstream.cache_root())
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        tools = Path(folder) / "tools"
        # the page's tests read the server's sources beside it
        for name in ("ui", "server"):
            shutil.copytree(pristine / "vendor/llama.cpp/tools" / name, tools / name)
        page = tools / "ui"
        environment = {**os.environ, "LLAMA_BUILD_NUMBER": BUILD, "SOURCE_DATE_EPOCH": "0"}
        for words in (["npm", "ci", "--ignore-scripts"], ["npx", "svelte-kit", "sync"]):
            subprocess.run(words, cwd=page, env=environment, check=True)
        subprocess.run(["npm", "run", "build"], cwd=page, env=environment, check=True)
        LICENCES.write_text(_licences(page), encoding="utf-8")
        _pack(page / "dist")
    print(f"{PAGE}: {PAGE.stat().st_size:,} bytes")


def _licences(page: Path) -> str:
    """Of the packages that the page's sources import, and of those that these need."""
    wanted = {"workbox-core"}  # of the service worker, which its tool writes
    for path in (page / "src").rglob("*"):
        is_test = ".spec." in path.name or ".test." in path.name
        if path.is_file() and path.suffix in (".ts", ".js", ".svelte", ".css") and not is_test:
            text = path.read_text(errors="replace")
            wanted |= set(re.findall(r"""(?:from|import)\s*\(?\s*['"]((?:@[\w.-]+/)?[\w-][\w.-]*)""", text))
    parts, done = ["Packages whose code may be in llama-server's page, and their licences.\n"], set()
    while wanted:
        name = min(wanted)
        wanted.discard(name)
        folder = page / "node_modules" / name
        if name in done or not (folder / "package.json").is_file():
            continue
        done.add(name)
        about = json.loads((folder / "package.json").read_text())
        wanted |= set() if name in FRAMEWORKS else set(about.get("dependencies", ()))
        texts = sorted(p for p in folder.iterdir() if p.is_file() and re.match(r"licen[cs]e|copying", p.name, re.I))
        parts.append(f"---- {name} {about['version']}: {about.get('license')}\n")
        parts += [text.read_text(errors="replace").strip() + "\n" for text in texts[:1]]
    for text in sorted((page / "src/lib/vendors").glob("*/LICEN[CS]E*")):
        parts.append(f"---- {text.parent.name}\n\n{text.read_text(errors='replace').strip()}\n")
    return "\n".join(parts)


def _pack(dist: Path) -> None:
    with tarfile.open(PAGE, "w:xz", preset=9) as archive:
        for path in sorted(path for path in dist.rglob("*") if path.is_file()):
            data = path.read_bytes()
            info = tarfile.TarInfo(path.relative_to(dist).as_posix())
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    main()
