"""Whether llama.cpp survives a file: tried in a process of its own before it is loaded in this one.

llama.cpp checks much of what a file says by assertions, which end the process: each of its architectures has some of
its own, and a list of them would be out of date with the next release. So the file is loaded once without its weights,
with a small context, where an end by a signal does no harm. What was survived is remembered: a file is tried once.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from ..errors import ModelNotFoundError
from ..support.paths import exists

HEADER_BYTES = 32 << 20
"""what a header has at most, in practice"""
TIME_LIMIT_S = 120
"""a header with a large vocabulary takes a second or two"""

_survived: set[Path] = set()

_REASON = "ended by "
"""begins what the process says of its end"""
_EXCEPTION = "what():"
"""in what the C++ library says of an exception that nobody caught, which ggml tells nobody"""


def check_survives(path: Path) -> None:
    """Refuse a file that would end the process.

    Raises
    ------
    ModelNotFoundError
        llama.cpp was ended by a signal while it loaded the file, or did not come to an end.
    """
    mark = _mark(path)
    if mark is None or mark in _survived or exists(mark):
        return
    why = try_to_load(path)
    if why is not None:
        raise ModelNotFoundError(
            f"llama.cpp cannot load it, and {why}", where=str(path), fix="take another file of this model"
        )
    _survived.add(mark)
    with contextlib.suppress(OSError):  # then it is tried again
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def try_to_load(path: Path) -> str | None:
    """What became of a process that loaded the file, in a clause; None: nothing, whether it could be loaded or not."""
    command = [sys.executable, "-c", "from triattn_local.engine.trial import load; load()", str(path)]
    # the library's own backtrace starts a debugger, and may hang in it
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIATTN_")}
    environment["GGML_NO_BACKTRACE"] = "1"
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIME_LIMIT_S
        )
    except OSError:  # no process can be started: then nothing can be tried
        return None
    except subprocess.TimeoutExpired:
        return f"does not come to an end within {TIME_LIMIT_S} s"
    if done.returncode >= 0:
        return None
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    said = [line for line in lines if line.startswith(_REASON) or _EXCEPTION in line]
    return f"would end by {_signal_name(-done.returncode)}{f' ({_shown(said[-1])})' if said else ''}"


def load(path: str | None = None) -> None:
    """Load a file without its weights, tokenize a text, make a small context; for the process that may end by it."""
    import llama_cpp

    from ..model.model_info import read_model_info

    @ctypes.CFUNCTYPE(None, ctypes.c_char_p)  # type: ignore[untyped-decorator]
    def tell(message: bytes) -> None:
        os.write(2, b"\n" + _REASON.encode() + message + b"\n")

    llama_cpp.llama_cpp._lib.ggml_set_abort_callback(tell)
    params = llama_cpp.llama_model_default_params()
    params.no_alloc = True
    params.use_extra_bufts = not read_model_info(path or sys.argv[-1]).is_mla  # as contexts.Model
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path or sys.argv[-1]), params)
    if not model:
        return
    text = "  A word\t12\n\n \u4e2d\u00e9".encode()
    tokens = (llama_cpp.llama_token * 256)()
    llama_cpp.llama_tokenize(llama_cpp.llama_model_get_vocab(model), text, len(text), tokens, 256, True, True)
    shape = llama_cpp.llama_context_default_params()
    shape.n_ctx = shape.n_batch = shape.n_ubatch = 256
    shape.swa_full = False
    context = llama_cpp.llama_init_from_model(model, shape)
    if context:
        llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


def _mark(path: Path) -> Path | None:
    """Name of an empty file that stands for a header that this library survived; None if the file cannot be read."""
    from llama_cpp import llama_cpp

    try:
        library = Path(llama_cpp._lib._name).stat()
        with path.open("rb") as file:
            digest = hashlib.blake2b(file.read(HEADER_BYTES), digest_size=16)
        digest.update(f"{path.stat().st_size} {library.st_size} {library.st_mtime_ns}".encode())
    except OSError:
        return None  # who loads it says so
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a name and a home
        root = Path(tempfile.gettempdir())
    return root / "triattn-local" / "survived" / digest.hexdigest()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _shown(line: str) -> str:
    """A reason, without the folder that it was compiled in."""
    return line.strip().removeprefix(_REASON).rpartition("/")[2][:200]
