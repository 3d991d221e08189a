"""Answer one prompt."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from ..errors import UsageError
from ..settings import Settings
from ..support import console
from ..support.paths import decode, is_file
from .app import EXIT_INTERRUPTED, app
from .convert import convert_file
from .flags import (
    ANSWER,
    CACHE,
    COMPUTE,
    Given,
    NoEvict,
    Verbose,
    argument,
    option,
    switch,
    text_argument,
    with_settings,
)

DEMO_SETTINGS: Mapping[str, object] = {
    # small enough that an answer of some hundred tokens goes past the cache
    "budget": 160,
    "window": 32,
    "batch": 64,
    "max_tokens": 600,
    # a model of this size turns in circles without, with full attention too
    "temp": 0.7,
    "repeat_penalty": 1.1,
}


@app.command()
@with_settings(ANSWER, CACHE, COMPUTE, planned=True)
def run(
    *,
    model: Annotated[str | None, argument("MODEL", "A path, a name that `ls` shows, or `demo`.")] = None,
    prompt: Annotated[str | None, argument("PROMPT", "The prompt; else stdin is read.")] = None,
    demo: Annotated[bool, switch("--demo", "Fetch and convert a small real model, once, and use it.")] = False,
    file: Annotated[
        Path | None, option("--file", "FILE", "Text that goes before the prompt; - is stdin.", "-f")
    ] = None,
    raw: Annotated[bool, switch("--raw", "Continue the text itself: no chat template.")] = False,
    as_json: Annotated[bool, switch("--json", "The report on stdout, as its last line.")] = False,
    quiet: Annotated[bool, switch("--quiet", "No progress and no report on stderr.", "-q")] = False,
    verbose: Verbose = False,
    given: Given,
    no_evict: NoEvict = False,
) -> int:
    """Answer one prompt, in a cache that stays as small as its budget.

    The answer goes to stdout as it comes; a report follows on stderr, one JSON object on a line. Ctrl-C stops the
    answer and keeps what there is.
    """
    if demo and model is not None and prompt is not None:
        raise UsageError("--demo brings its own model", where=model, fix='triattn-local run --demo "PROMPT"')
    if demo:
        prompt = model
    elif model is None:
        raise UsageError("no model given", where="run", fix="name one that triattn-local ls shows, or give --demo")
    settings = Settings.load(given, defaults=DEMO_SETTINGS if demo else None)
    # what is wrong with the flags is said before anything is fetched, read or loaded
    limit, thinking = settings.n_predict(), settings.thinking()
    settings.sampling()
    settings.runtime()
    settings.eviction()
    text = _read_prompt(prompt, file)

    from .. import planning, store
    from .oneshot import answer, make_prompt

    path = demo_model(settings.models) if demo else store.resolve(str(model), settings.models)
    from ..answers.thinking import takes_effort
    from ..engine.runtime import Runtime

    plan = planning.plan_run(path, settings, evict=not no_evict, fixed=DEMO_SETTINGS if demo else (), verbose=verbose)
    if plan.why and not (quiet or as_json):
        console.say(plan.why, style="dim")
    with contextlib.nullcontext() if quiet or verbose else console.waiting(f"loading {path.name}"):
        runtime = Runtime.load(path, plan.config, plan.eviction, stats_path=settings.stats)
    with runtime as rt:
        if thinking.effort not in (None, "none") and not takes_effort(rt.vocabulary.chat_template):
            console.log(
                "warn", f"the model's chat template takes no effort: {settings.origins['effort']} changes nothing"
            )
        with console.Stages("tokens") as stages:
            out = _Answer(stages)
            report = answer(
                rt,
                make_prompt(rt, text, system=settings.system, raw=raw, thinking=thinking),
                model=str(path),
                max_tokens=limit,
                eviction=plan.eviction,
                sampling=settings.sampling(rt.suggested_sampling()),
                stop=settings.stop,
                thinking=thinking,
                on_prefill=(lambda *_: None) if quiet else out.reading,
                on_text=out.text,
            )
        out.end()
    if as_json:
        console.write_json(report.as_dict())
    elif not quiet:
        console.write_report(report.summary(), report.as_dict())
    return EXIT_INTERRUPTED if report.interrupted else 0


class _Answer:
    """Text to stdout as it comes; until its first word, a bar for the prompt."""

    def __init__(self, stages: console.Stages) -> None:
        self._stages = stages
        self._last = "\n"

    def reading(self, done: int, total: int) -> None:
        # a line for every prompt would be noise in a log: only a terminal sees it
        if console.stderr().is_terminal:
            self._stages("reading the prompt", done, total)

    def text(self, text: str) -> None:
        if text:
            self._stages.close()
            sys.stdout.write(text)
            sys.stdout.flush()
            self._last = text[-1]

    def end(self) -> None:
        if self._last != "\n":
            sys.stdout.write("\n")
            sys.stdout.flush()


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    """The file, then the prompt, or else stdin."""
    if prompt is None and file is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("no prompt", where="run", fix="give one in quotes, with --file, or on stdin")
        file = Path("-")
    parts = [_read_text(file)] if file is not None else []
    text = "\n\n".join([*parts, *([text_argument(prompt, "PROMPT")] if prompt is not None else [])])
    if not text.strip():
        raise UsageError("the prompt is empty", where="stdin" if str(file) == "-" else str(file or "run"))
    return text


def _read_text(file: Path) -> str:
    try:
        return decode(sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes())
    except UnicodeDecodeError:
        raise UsageError("is not UTF-8 text", where="stdin" if str(file) == "-" else str(file)) from None
    except OSError as error:
        where = "stdin" if str(file) == "-" else f"--file {file}"
        raise UsageError(f"cannot be read: {error.strerror}", where=where) from None


def demo_model(models: Path) -> Path:
    """The demo model with statistics inside: fetched and converted the first time."""
    from .. import store

    target = (models / store.DEMO.file).with_suffix(".triattn.gguf")
    if not is_file(target):
        with console.Stages() as stages:
            source = store.pull("demo", models, progress=stages)
        convert_file(source, target, n_tokens=store.DEMO_TOKENS)
    return target
