#!/usr/bin/env python3
"""Damaged and hostile model files: change bytes and values of a header by chance, and see what reads it.

    python scripts/mutate_files.py                     # 10,000 files
    python scripts/mutate_files.py --files 200 --seed 7

Each file goes through `inspect`, `plan`, `convert --dry-run`, the library's reader of statistics and its loader, in a
process of its own that is forked from this one. No process may end by a signal or a traceback, take longer than 5 s of
its own time or more memory than is allowed, or give an exit code that errors.py does not have. What the trial before
loading (engine/trial.py) catches is not a fault, and is counted. The seed is printed: the same seed makes the
same files.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import llama_cpp
from llama_cpp._logger import set_verbose
from packed import array, pair, stats_for
from tiny_models import write_tiny

import triattn_local.calib_tools.convert
import triattn_local.inspection.describe
import triattn_local.planning  # noqa: F401  # imported once, not in each fork
from triattn_local.cli.app import run_app
from triattn_local.engine import native, trial
from triattn_local.errors import TriattnError
from triattn_local.model.gguf_file import GgufFile, read_gguf
from triattn_local.model.metadata import write_with_stats

TIME_LIMIT_S = 5
MEMORY_BYTES = 2 << 30
"""address space beyond what the process has when it is forked"""
CODES = {0, 1, 2, 3, 4, 5, 6}
FAULT = 99

NUMBERS = [0, 1, 2, 3, 7, 8, 32, 255, 256, 257, 513, 1025, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]
WORDS = ["", "llama", "qwen2", "gemma3", "gpt-oss", "mamba", "deepseek2", "bert", "clip", "granite", "yarn", "é" * 99]


def _words(text: str) -> list[str]:
    return text.split()


KEYS = _words("""
    expert_count expert_used_count expert_group_count expert_group_used_count nextn_predict_layers block_count
    context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv
    attention.key_length attention.value_length attention.layer_norm_rms_epsilon attention.sliding_window
    attention.sliding_window_pattern attention.causal attention.kv_lora_rank attention.scale rope.dimension_count
    rope.dimension_sections rope.freq_base rope.scaling.type rope.scaling.factor rope.scaling.attn_factor
    rope.scaling.original_context_length vocab_size pooling_type leading_dense_block_count ssm.conv_kernel
    ssm.state_size
""")
GENERAL = _words("""
    general.architecture general.type general.alignment general.file_type split.no split.count split.tensors.count
    tokenizer.ggml.model tokenizer.ggml.pre tokenizer.ggml.bos_token_id tokenizer.ggml.eos_token_id
    tokenizer.ggml.add_bos_token tokenizer.chat_template triattention.version triattention.n_tokens
    triattention.model triattention.layers triattention.q_mean.0 triattention.q_abs.1 triattention.k_mean.0
""")


class Mutator:
    """Makes files that are nearly this one."""

    def __init__(self, source: Path, chance: random.Random) -> None:
        self._file: GgufFile = read_gguf(source)
        self._data = source.read_bytes()
        self._pairs = {p.key: self._file.head[p.start : p.end] for p in self._file.pairs.values()}
        self._chance = chance

    def make(self) -> bytes:
        pairs, chance = dict(self._pairs), self._chance
        n_pairs, infos = None, self._file.head[self._file.infos_start : self._file.infos_end]
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            match chance.randrange(8):
                case 0 | 1 | 2:
                    key = chance.choice(self._keys())
                    pairs[key] = self._value(key)
                case 3:
                    pairs.pop(chance.choice(list(pairs)), None)
                case 4:
                    key = chance.choice(list(pairs))
                    pairs[key] = self._damaged(pairs[key])
                case 5:
                    infos = self._damaged(infos)
                case 6:
                    n_pairs = len(pairs) + chance.choice((-1, 1, 2**31, 2**63))
                case 7:
                    key = chance.choice(list(pairs))
                    pairs[f"{key}\0twice"] = pairs[key]
        n = len(pairs) if n_pairs is None else n_pairs
        head = struct.pack("<4sIQQ", b"GGUF", 3, len(self._file.tensors), n & (2**64 - 1))
        head += b"".join(pairs.values()) + infos
        whole = head + bytes(-len(head) % 32) + self._data[self._file.data_start :]
        return whole[: chance.randrange(len(whole))] if chance.random() < 0.05 else whole

    def _keys(self) -> list[str]:
        arch = self._file.text("general.architecture")
        return [*self._pairs, *(f"{arch}.{key}" for key in KEYS), *(f"{arch}.{key}" for key in KEYS), *GENERAL]

    def _value(self, key: str) -> bytes:
        chance = self._chance
        kind = chance.choice((4, 4, 4, 4, 5, 6, 6, 7, 8, 8, 10))
        many = chance.random() < 0.15
        items = [self._item(kind) for _ in range(chance.choice((0, 1, 4, 5, 600)) if many else 1)]
        return array(key, kind, items) if many else pair(key, kind, items[0])

    def _item(self, kind: int) -> object:
        chance = self._chance
        if kind == 8:
            return chance.choice(WORDS)
        if kind == 7:
            return chance.random() < 0.5
        if kind == 6:
            return chance.choice((0.0, 1.0, -1.0, 1e-5, 1e30, float("nan"), float("inf")))
        number = chance.choice(NUMBERS)
        return number % 2**31 if kind == 5 else number

    def _damaged(self, raw: bytes) -> bytes:
        """Some bytes changed, taken out or put in."""
        out = bytearray(raw)
        for _ in range(self._chance.choice((1, 1, 2, 8))):
            at = self._chance.randrange(max(len(out), 1))
            match self._chance.randrange(4):
                case 0 | 1:
                    out[at : at + 1] = bytes(
                        [self._chance.choice((0, 1, 0x7F, 0x80, 0xFF, self._chance.randrange(256)))]
                    )
                case 2:
                    del out[at : at + self._chance.randrange(1, 9)]
                case 3:
                    out[at:at] = self._chance.randbytes(self._chance.randrange(1, 9))
        return bytes(out)


def in_process(work: object, log: Path | None) -> tuple[int, float]:
    """(status as os.waitpid gives it, seconds of its own) of a function in a fork of this process."""
    pid = os.fork()
    if pid == 0:
        code = FAULT
        try:
            target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(target, 1)
            os.dup2(target, 2)
            code = work()  # type: ignore[operator]
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_utime + usage.ru_stime


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (2 * TIME_LIMIT_S, 2 * TIME_LIMIT_S))
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        most = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def try_in_fork(path: Path) -> str | None:
    """Stands in for ``trial.try_to_load``: a fork of this process is there sooner than a new one."""

    def load() -> int:
        trial.load(str(path))
        return 0

    status, _ = in_process(load, None)
    if not os.WIFSIGNALED(status):
        return None
    Path(path.parent, "caught").write_text(signal.Signals(os.WTERMSIG(status)).name)
    return f"would end by {signal.Signals(os.WTERMSIG(status)).name}"


def read_everywhere(path: Path, sound: object) -> int:
    """Hand a file to everything that reads headers; 0, or FAULT if one of them gave a code that there is not."""
    limit()
    trial.try_to_load = try_in_fork
    out = str(path.with_name("out.gguf"))
    codes = [
        run_app(["inspect", str(path)]),
        run_app(["plan", str(path), "--vram", "0", "--ram", "8GiB"]),
        run_app(["convert", str(path), "--dry-run", "-o", out, "--force"]),
    ]
    try:
        native.load_stats(sound, path)  # type: ignore[arg-type]
    except TriattnError as error:
        print(error)
    print("codes", codes)
    return 0 if set(codes) <= CODES else FAULT


def sources(folder: Path) -> Iterator[Path]:
    for arch in ("llama", "qwen2", "gemma3"):
        plain = write_tiny(folder / f"{arch}-plain.gguf", arch, leave_out=())
        converted = folder / f"{arch}.gguf"
        write_with_stats(plain, converted, stats_for(plain))
        yield converted


def load_sound(path: Path) -> object:
    params = llama_cpp.llama_model_default_params()
    params.no_alloc = True
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    return llama_cpp.llama_model_load_from_file(str(path).encode(), params)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--keep", type=Path, help="folder for the files that show a fault")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    chance = random.Random(options.seed)
    os.environ["GGML_NO_BACKTRACE"] = "1"
    native.library()
    set_verbose(False)
    seen: collections.Counter[str] = collections.Counter()
    n_faults, slowest, began_s = 0, 0.0, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = name
        models = list(sources(folder))
        sound = load_sound(models[0])
        mutators = [Mutator(model, chance) for model in models]
        path, log, caught = folder / "m.gguf", folder / "log", folder / "caught"
        for i in range(options.files):
            path.write_bytes(chance.choice(mutators).make())
            log.unlink(missing_ok=True)
            caught.unlink(missing_ok=True)
            status, seconds = in_process(lambda: read_everywhere(path, sound), log)
            said = log.read_text("utf-8", "replace")
            slowest = max(slowest, seconds)
            fault = None
            if os.WIFSIGNALED(status):
                fault = signal.Signals(os.WTERMSIG(status)).name
            elif os.WEXITSTATUS(status):
                fault = "a code that there is not, or a traceback"
            elif "this is a bug" in said or "Traceback" in said:
                fault = "called a bug"
            elif seconds > TIME_LIMIT_S:
                fault = f"{seconds:.1f} s"
            if fault:
                n_faults += 1
                print(f"file {i}: {fault}\n{said[-1500:]}", flush=True)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / f"{options.seed}-{i}.gguf").write_bytes(path.read_bytes())
            seen[said.rpartition("codes ")[2].strip()] += 1
            if caught.exists():
                seen[f"caught by the trial: {caught.read_text()}"] += 1
            if (i + 1) % 500 == 0:
                print(f"{i + 1} files, {n_faults} faults, {time.monotonic() - began_s:.0f} s", flush=True)
    for what, n in seen.most_common():
        print(f"{n:7,}  {what}")
    used_s = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    print(f"{time.monotonic() - began_s:.0f} s, {used_s:.0f} s of a processor")
    print(f"{options.files:,} files, {n_faults} faults, slowest {slowest:.1f} s, seed {options.seed}")
    return 1 if n_faults else 0


if __name__ == "__main__":
    sys.exit(main())
