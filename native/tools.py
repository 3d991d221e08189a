"""The commands llama-server, llama-bench, ggml-rpc-server and so on (llama_cpp/_tools.py in the wheel).

Why it exists: a wheel can put scripts on PATH but not programs that look for their libraries in site-packages. So the
programs lie in llama_cpp/bin and these entry points become them. It does not know their options.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from ._cpu import UnfitProcessorError, check


def _become(name: str) -> NoReturn:
    program = Path(__file__).parent / "bin" / name
    try:
        check(Path(__file__).parent / "lib")
    except UnfitProcessorError as error:
        raise SystemExit(f"{name}: {error}") from None
    try:
        os.execv(program, [str(program), *sys.argv[1:]])  # noqa: S606  # a shell is not wanted
    except OSError as error:
        raise SystemExit(f"{name}: cannot run {program}: {error.strerror}; pip install ./native again") from None


def server() -> NoReturn:
    _become("llama-server")


def bench() -> NoReturn:
    _become("llama-bench")


def perplexity() -> NoReturn:
    _become("llama-perplexity")


def quantize() -> NoReturn:
    _become("llama-quantize")


def rpc_server() -> NoReturn:
    _become("ggml-rpc-server")
