"""Texts whose early parts decide what is right late, with questions that have a choice of answers.

`restated` a value is given again, and again: the last one counts. `function` a function defined early in code is called
late. `state` sums are carried on from step to step, far apart. `trace` an agent's tool calls, and a result that is
wanted some turns later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triattn_local.engine.contexts import Model

from ..haystack import chat, codes, fit, generator, places, sentences, spread, weave
from ..texts import read_text
from .base import Size
from .choice import Choice, Make, Question
from .facts import HAYSTACKS

DEFAULT_TOKENS = 3000
CARRIED_TOKENS = 700
"""of `restated` and `state`: further apart, a model of 0.5B tells old values from new ones with no part of its cache"""
DEFAULT_CASES = 4

_N_THINGS = 4
"""things that are told apart in a text, each asked for"""
_N_TIMES = 3
"""steps of a sum"""
_STAGES = ("Draft", "Revised", "Final")
_N_ANSWER = 8
"""tokens that an answer has at most"""
TURNS_BACK = 6
"""tool results between the one that is asked for and the question, and that one"""


def restated(model: Model, size: Size, number: int, n_tokens: int) -> list[Question]:
    """Budgets, drafted, revised and made final far apart: which number is the final one?"""
    rng = generator("restated", number, seed=size.seed)
    kind = _kind(size, number, HAYSTACKS)
    names = places(rng, _N_THINGS)
    values = [codes(rng, len(_STAGES)) for _ in names]
    inserts = [
        f"{stage}: the budget of {names[k]} is {values[k][at]}."
        for at, stage in enumerate(_STAGES)
        for k in rng.sample(range(_N_THINGS), _N_THINGS)
    ]

    def prompt(parts: Sequence[str], name: str = names[0]) -> list[int]:
        text = weave(parts, spread(len(inserts)), inserts)
        return model.vocabulary.tokenize(f"{text}\n\n{_STAGES[-1]}: the budget of {name} is ")

    parts = fit(sentences(read_text(kind), rng, kind), prompt, n_tokens - _N_ANSWER, kind)
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
        f'def {name}({first}, {second}):\n    """The {noun} with its {first} and {second}."""\n'
        f"    return ({first}, {second})"
        for name, noun, (first, second) in zip(names, nouns, pairs, strict=True)
    ]
    blocks = read_text(kind).split("\n\n\n")
    start = rng.randrange(max(len(blocks) // 3, 1))

    def prompt(parts: Sequence[str], name: str = names[0]) -> list[int]:
        text = weave(parts, spread(_N_THINGS, 0.05, 0.5), definitions, "\n\n\n")
        return model.vocabulary.tokenize(f"{text}\n\n\nresult = {name}(")

    parts = fit(blocks[start:], prompt, n_tokens - _N_ANSWER, kind)
    answers = [f"{first}=" for first, _ in pairs]
    return [Question(prompt(parts, name), _choices(model, answers, k)) for k, name in enumerate(names)]


_NAMES = ("apples", "barrels", "candles", "drums", "engines", "flags", "grapes", "hammers", "inks", "jars", "kettles",
          "lamps")  # fmt: skip


def state(model: Model, size: Size, number: int, n_tokens: int) -> list[Question]:
    """Sums that are carried on in steps far apart, several of them in turns: what is the last result?"""
    rng = generator("state", number, seed=size.seed)
    kind = _kind(size, number, HAYSTACKS)
    names = rng.sample(_NAMES, _N_THINGS)
    sums = [[rng.randint(200, 900)] for _ in names]
    inserts = [f"Sum of {name}, first: {values[0]}." for name, values in zip(names, sums, strict=True)]
    for step in range(2, _N_TIMES + 1):
        for k in rng.sample(range(_N_THINGS), _N_THINGS):
            before, by = sums[k][-1], rng.randint(11, 99)
            sums[k].append(before + by)
            inserts.append(f"Sum of {names[k]}, step {step}: {before} + {by} = {before + by}.")

    def prompt(parts: Sequence[str], name: str = names[0]) -> list[int]:
        text = weave(parts, spread(len(inserts)), inserts)
        return model.vocabulary.tokenize(f"{text}\n\nSum of {name}, result of step {_N_TIMES}: ")

    parts = fit(sentences(read_text(kind), rng, kind), prompt, n_tokens - _N_ANSWER, kind)
    return [
        Question(prompt(parts, name), [_tokens(model, str(value)) for value in reversed(values)])
        for name, values in zip(names, sums, strict=True)
    ]


_N_TURNS = 10


def trace(model: Model, size: Size, number: int, n_tokens: int) -> list[Question]:
    """An agent looks up orders one by one; then something of the one six results back is wanted."""
    rng = generator("trace", number, seed=size.seed)
    kind = _kind(size, number, HAYSTACKS)
    names = places(rng, _N_TURNS)
    fields = ("order number", "invoice number", "phone number", "dock number")
    rows = [dict(zip(fields, codes(rng, len(fields)), strict=True)) for _ in names]
    asked = _N_TURNS - TURNS_BACK
    others = rng.sample([k for k in range(_N_TURNS) if k != asked], _N_THINGS - 1)
    filler = sentences(read_text(kind), rng, kind)

    def prompt(parts: Sequence[str], field: str = fields[0]) -> list[int]:
        ask = f"What is the {field} of {names[asked]}? Answer with the number only."
        return chat(model, [*_turns(names, rows, parts), {"role": "user", "content": ask}])

    parts = fit(filler, prompt, n_tokens - _N_ANSWER, kind)
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
        values = " ".join(f"The {field} of {name} is {value}." for field, value in row.items())
        content = f'{{"place": "{name}", "shipment": "{values}", "notes": "{notes}"}}'
        res.append({"role": "assistant", "content": "", "tool_calls": [call]})
        res.append({"role": "tool", "tool_call_id": call["id"], "content": content})
    res.append({"role": "assistant", "content": "All shipments are looked up. What would you like to know?"})
    return res


def _kind(size: Size, number: int, kinds: Sequence[str]) -> str:
    chosen = list(size.texts or kinds)
    return chosen[number % len(chosen)]


def _choices(model: Model, answers: Sequence[str], right: int) -> list[list[int]]:
    """The right one first."""
    return [_tokens(model, answer) for answer in (answers[right], *answers[:right], *answers[right + 1 :])]


def _tokens(model: Model, text: str) -> list[int]:
    return model.vocabulary.tokenize(text, add_special=False)


def _task(name: str, about: str, n_choices: int, make: Make, n_tokens: int = DEFAULT_TOKENS) -> Choice:
    return Choice(name, about, n_choices, make, n_tokens, DEFAULT_CASES)


RESTATED = _task(
    "restated",
    "a value that is drafted, revised and made final: the last counts",
    len(_STAGES),
    restated,
    CARRIED_TOKENS,
)
FUNCTION = _task("function", "functions defined early in code, called late: names of arguments", _N_THINGS, function)
STATE = _task("state", "sums carried on in steps far apart: the last result", _N_TIMES, state, CARRIED_TOKENS)
TRACE = _task("trace", f"an agent's tool calls: a result asked for {TURNS_BACK} turns later", _N_THINGS, trace)
