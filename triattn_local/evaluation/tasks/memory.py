"""Texts whose early parts decide what is right late, with questions that have a choice of answers.

`restated` a value is given again, and again: the last one counts. `function` a function defined early in code is called
late. `state` values are handed on from name to name far apart. `trace` an agent's tool calls, and a result that is
wanted some turns later.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from triattn_local.contexts import Model

from ..haystack import chat, codes, fit, generator, places, sentences, spread, weave
from ..texts import read_text
from .base import Size
from .choice import Choice, Question
from .facts import HAYSTACKS

DEFAULT_TOKENS = 3000
DEFAULT_CASES = 4

_N_THINGS = 4
"""things that are told apart in a text, each asked for"""
_N_TIMES = 3
"""times that each value is stated"""
TURNS_BACK = 6
"""tool results between the one that is asked for and the question, and that one"""


def restated(model: Model, size: Size, number: int, n_tokens: int) -> list[Question]:
    """The number of a place, stated three times: which is the last?"""
    rng = generator("restated", number, seed=size.seed)
    kind = _kind(size, number, HAYSTACKS)
    names = places(rng, _N_THINGS)
    values = [codes(rng, _N_TIMES) for _ in names]
    order = [k for _ in range(_N_TIMES) for k in rng.sample(range(_N_THINGS), _N_THINGS)]
    stated = [0] * _N_THINGS
    inserts = []
    for k in order:
        word = "is" if stated[k] == 0 else "was changed and is now"
        inserts.append(f"The door code of {names[k]} {word} {values[k][stated[k]]}.")
        stated[k] += 1

    def prompt(parts: Sequence[str], name: str = names[0]) -> list[int]:
        text = weave(parts, spread(len(inserts)), inserts)
        ask = f"\n\nQuestion: What is the door code of {name} now? Answer with the number only."
        return chat(model, [{"role": "user", "content": text + ask}])

    parts = fit(sentences(read_text(kind), rng), prompt, n_tokens - 8, kind)
    return [
        Question(prompt(parts, name), [_tokens(model, value) for value in reversed(given)])
        for name, given in zip(names, values, strict=True)
    ]


_VERBS = ("merge", "scale", "rotate", "filter", "convert", "export")
_NOUNS = ("ledger", "profile", "channel", "voucher", "itinerary", "manifest")
_PARAMETERS = (
    "threshold", "margin", "locale", "retries", "prefix", "radius", "quota", "strict", "currency", "layers", "owner",
    "timezone", "depth", "region", "padding", "priority", "tolerance", "alias", "checksum", "interval",
)  # fmt: skip


def function(model: Model, size: Size, number: int, n_tokens: int) -> list[Question]:
    """Functions with keyword arguments in the first half of a module, called at its end: which names do they take?"""
    rng = generator("function", number, seed=size.seed)
    kind = _kind(size, number, ("python",))
    nouns = rng.sample(_NOUNS, _N_THINGS)
    names = [f"{verb}_{noun}" for verb, noun in zip(rng.sample(_VERBS, _N_THINGS), nouns, strict=True)]
    chosen = rng.sample(_PARAMETERS, 2 * _N_THINGS)
    pairs = [chosen[2 * k : 2 * k + 2] for k in range(_N_THINGS)]
    definitions = [
        f'def {name}({noun}, *, {first}, {second}):\n    """The {noun} with its {first} and {second}."""\n'
        f"    {noun}.update({first}={first}, {second}={second})\n    return {noun}"
        for name, noun, (first, second) in zip(names, nouns, pairs, strict=True)
    ]
    blocks = read_text(kind).split("\n\n\n")
    start = rng.randrange(len(blocks) // 3)

    def prompt(parts: Sequence[str], k: int = 0) -> list[int]:
        text = weave(parts, spread(_N_THINGS, 0.05, 0.5), definitions, "\n\n\n")
        call = f"\n\n\ndef test_{names[k]}():\n    {nouns[k]} = make_{nouns[k]}()\n    {names[k]}({nouns[k]},"
        return model.vocabulary.tokenize(text + call)

    parts = fit(blocks[start:], prompt, n_tokens - 8, kind)
    answers = [_tokens(model, f" {first}=") for first, _ in pairs]
    return [
        Question(prompt(parts, k), [answers[k], *(a for other, a in enumerate(answers) if other != k)])
        for k in range(_N_THINGS)
    ]


_NAMES = ("apples", "barrels", "candles", "drums", "engines", "flags", "grapes", "hammers", "inks", "jars", "kettles",
          "lamps")  # fmt: skip


def state(model: Model, size: Size, number: int, n_tokens: int) -> list[Question]:
    """Values that are handed on from name to name, in assignments far apart: what does the last name hold?"""
    rng = generator("state", number, seed=size.seed)
    kind = _kind(size, number, HAYSTACKS)
    names = rng.sample(_NAMES, 2 * _N_THINGS)
    values = codes(rng, _N_THINGS)
    first, last = names[:_N_THINGS], names[_N_THINGS:]
    lines = [f"`{name} = {value}`" for name, value in zip(first, values, strict=True)]
    lines += [f"`{last[k]} = {first[k]}`" for k in rng.sample(range(_N_THINGS), _N_THINGS)]

    def prompt(parts: Sequence[str], name: str = last[0]) -> list[int]:
        text = weave(parts, spread(len(lines)), lines)
        ask = f"\n\nQuestion: What is the value of `{name}`? Answer with the number only."
        return chat(model, [{"role": "user", "content": text + ask}])

    parts = fit(sentences(read_text(kind), rng), prompt, n_tokens - 8, kind)
    answers = [_tokens(model, value) for value in values]
    return [
        Question(prompt(parts, last[k]), [answers[k], *(a for other, a in enumerate(answers) if other != k)])
        for k in range(_N_THINGS)
    ]


_N_TURNS = 10


def trace(model: Model, size: Size, number: int, n_tokens: int) -> list[Question]:
    """An agent looks up orders one by one; then something of the one six results back is wanted."""
    rng = generator("trace", number, seed=size.seed)
    kind = _kind(size, number, HAYSTACKS)
    names = places(rng, _N_TURNS)
    fields = ("order_number", "invoice_total", "phone", "dock")
    rows = [dict(zip(fields, codes(rng, len(fields)), strict=True)) for _ in names]
    asked = _N_TURNS - TURNS_BACK
    others = rng.sample([k for k in range(_N_TURNS) if k != asked], _N_THINGS - 1)
    filler = sentences(read_text(kind), rng)

    def prompt(parts: Sequence[str], field: str = fields[0]) -> list[int]:
        ask = f"What is the {field} of {names[asked]}? Answer with the number only."
        return chat(model, [*_turns(names, rows, parts), {"role": "user", "content": ask}])

    parts = fit(filler, prompt, n_tokens - 8, kind)
    return [
        Question(prompt(parts, field), [_tokens(model, rows[k][field]) for k in (asked, *others)]) for field in fields
    ]


def _turns(names: Sequence[str], rows: Sequence[dict[str, str]], parts: Sequence[str]) -> list[dict[str, Any]]:
    """The conversation before the question; the parts are spread over the results as their notes."""
    res: list[dict[str, Any]] = [
        {"role": "system", "content": "You are an agent of a shipping company. Look up with the tool what is asked."},
        {"role": "user", "content": f"Look up the shipments of {', '.join(names)}, one after the other."},
    ]
    for k, (name, row) in enumerate(zip(names, rows, strict=True)):
        call = {"id": f"call{k:05d}", "type": "function"}
        call["function"] = {"name": "lookup", "arguments": f'{{"place": "{name}"}}'}  # type: ignore[assignment]
        notes = " ".join(parts[k * len(parts) // len(names) : (k + 1) * len(parts) // len(names)])
        values = ", ".join(f'"{field}": {value}' for field, value in row.items())
        content = f'{{"place": "{name}", {values}, "notes": "{notes}"}}'
        res.append({"role": "assistant", "content": "", "tool_calls": [call]})
        res.append({"role": "tool", "tool_call_id": call["id"], "content": content})
    res.append({"role": "assistant", "content": "All shipments are looked up. What would you like to know?"})
    return res


def _kind(size: Size, number: int, kinds: Sequence[str]) -> str:
    chosen = list(size.texts or kinds)
    return chosen[number % len(chosen)]


def _tokens(model: Model, text: str) -> list[int]:
    return model.vocabulary.tokenize(text, add_special=False)


RESTATED = Choice(
    "restated", "a value that is stated three times: the last one counts", _N_TIMES, restated, DEFAULT_TOKENS,
    DEFAULT_CASES,
)  # fmt: skip
FUNCTION = Choice(
    "function", "functions defined early in code and called late: the names of their arguments", _N_THINGS, function,
    DEFAULT_TOKENS, DEFAULT_CASES,
)  # fmt: skip
STATE = Choice(
    "state", "values handed on from name to name, far apart", _N_THINGS, state, DEFAULT_TOKENS, DEFAULT_CASES
)  # fmt: skip
TRACE = Choice(
    "trace", f"an agent's tool calls: a result asked for {TURNS_BACK} turns later", _N_THINGS, trace, DEFAULT_TOKENS,
    DEFAULT_CASES,
)  # fmt: skip
