"""How fast tokens come beside other work: ways to wait and numbers of threads, in turns.

    python scripts/beside_load.py MODEL.gguf [--turns 7] [--tokens 40] [--busy 0 1] [--first]
                                  [--way NAME=THREADS[,VARIABLE=VALUE...]] ...

Each way is a process of its own that holds the model and decodes a few tokens when it is its turn, with nothing else
to do on this machine, and beside so many busy processes. While strangers use the processor it waits, or tries again;
with --first it and its busy processes come before them (for root). 0 threads are one a physical core, 2f
are two that follow what others leave (then --first says nothing of an idle machine); a way may name another library,
LLAMA_CPP_LIB_PATH=DIR.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

WORKER = """
import sys, time
from pathlib import Path
from triattn_local.config import RuntimeConfig
from triattn_local.engine.contexts import Model
path, threads, n_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
follows = threads.endswith("f")
config = RuntimeConfig(n_ctx=1024, n_batch=64, n_threads=int(threads.rstrip("f")) or None, yield_cores=follows)
model = Model(Path(path), config)
context = model.context(None)
prompt = model.vocabulary.tokenize("Once upon a time there was a fox, and")
print("ready", flush=True)
for _ in sys.stdin:
    context.clear()
    context.prefill(prompt)
    context.decode([100])
    start_s = time.perf_counter()
    for i in range(n_tokens):
        context.decode([1000 + i])
    print(n_tokens / (time.perf_counter() - start_s), flush=True)
"""

WAYS = ("one=1", "all=0", "follow=0f", "passive=0,OMP_WAIT_POLICY=passive")
STRANGERS = 0.12
"""cores: what is measured while others use more does not count"""


def _used_s(pid: str) -> float:
    """Processor time that a process has used, or all together if none is named."""
    text = Path("/proc", pid, "stat").read_text()
    if pid:
        ticks = sum(int(n) for n in text.rpartition(")")[2].split()[11:13])
    else:
        n = [int(n) for n in text.splitlines()[0].split()[1:9]]
        ticks = sum(n) - n[3] - n[4]
    return ticks / os.sysconf("SC_CLK_TCK")


class Way:
    """A process with the model in it."""

    def __init__(self, text: str, model: str, n_tokens: int) -> None:
        self.name, _, rest = text.partition("=")
        threads, *variables = rest.split(",")
        environ = {**os.environ, **dict(pair.split("=", 1) for pair in variables)}
        words = [sys.executable, "-c", WORKER, model, threads, str(n_tokens)]
        self.process = subprocess.Popen(
            words, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        self.out, self.into = self.process.stdout, self.process.stdin
        assert self.out.readline() == "ready\n", "the model did not load"

    def rate(self) -> float:
        """Tokens a second of one go."""
        self.into.write("go\n")
        return float(self.out.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--patience", type=float, default=600, help="seconds to wait for quiet, for each number of busy ones"
    )
    parser.add_argument("--way", action="append")
    parser.add_argument("--first", action="store_true", help="before strangers")
    args = parser.parse_args()
    if args.first:
        _come_first()
    ways = [Way(text, args.model, args.tokens) for text in args.way or WAYS]
    try:
        for n_busy in args.busy:
            _turns(ways, args.turns, n_busy, args.patience, args.first)
    finally:
        for way in ways:
            way.into.close()
            way.process.wait()


def _turns(ways: list[Way], n_turns: int, n_busy: int, patience_s: float, first: bool) -> None:
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    until_s = time.monotonic() + patience_s
    for way in ways * n_turns:
        while time.monotonic() < until_s:
            if not first and not _quiet():
                continue
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_busy)]
            own = [str(way.process.pid), *(str(one.pid) for one in busy)]
            try:
                if busy:
                    time.sleep(0.3)
                all_s, own_s, start_s = _used_s(""), sum(map(_used_s, own)), time.monotonic()
                rate = way.rate()
                strange_s = _used_s("") - all_s - (sum(map(_used_s, own)) - own_s)
            finally:
                for one in busy:
                    one.kill()
                    one.wait()
            # who comes first leaves strangers what it does not use
            if first or strange_s <= STRANGERS * (time.monotonic() - start_s):
                rates[way.name].append(rate)
                break
    print(f"beside {n_busy} busy process(es), tokens a second: median, least, most, times", flush=True)
    for name, found in rates.items():
        if found:
            print(
                f"  {name:16} {statistics.median(found):8.1f} {min(found):8.1f} {max(found):8.1f} {len(found):3}",
                flush=True,
            )


def _come_first() -> None:
    """Linux gives sessions their shares first, and processes theirs of them."""
    os.nice(-20)
    if os.getpid() != os.getsid(0):
        os.setsid()
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("-20")


def _quiet() -> bool:
    """Whether nobody else uses the processor now; looks for a moment."""
    all_s = _used_s("")
    time.sleep(0.3)
    return _used_s("") - all_s <= STRANGERS * 0.3


if __name__ == "__main__":
    main()
