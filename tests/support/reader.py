"""A model that is a program: it finds the answers of eval's tasks in the text that it remembers, and in nothing else.

It stands in for `contexts.Model` where a task's cases and its scoring are tested: a task that can be done gives 1 with
all of the text in memory, and 0 without its middle. Characters are its tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

END = 0
_TURN = "<assistant>"

Solve = Callable[[str, str], str]
"""(what is remembered of the text, the last words in front of the answer) -> the answer"""


class Characters:
    n_vocab = 256

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        del add_special, parse_special
        return list(text.encode("latin-1", "replace"))

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        del special
        return bytes(tokens).decode("latin-1")

    def ends_turn(self, token: int) -> bool:
        return token == END

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]]) -> str:
        return "".join(f"<{m['role']}>{m['content']}\n{m.get('tool_calls', '')}" for m in messages) + _TURN


class Reader:
    """Instead of `contexts.Model`.

    Parameters
    ----------
    solve : callable
        What it knows how to do.
    memory : callable, optional
        What it remembers of a text; everything without it.
    """

    def __init__(self, solve: Solve, memory: Callable[[str], str] = lambda text: text) -> None:
        self.vocabulary = Characters()
        self.solve, self.memory = solve, memory

    def context(self, n_tokens: int) -> ReaderContext:
        return ReaderContext(self, n_tokens)


class ReaderContext:
    """Instead of `contexts.Context`: logits that leave no doubt, or all the same where it knows no answer."""

    n_batch = 128

    def __init__(self, model: Reader, n_tokens: int) -> None:
        self.model, self.n_tokens = model, n_tokens
        self.tokens: list[int] = []
        self.n_read = 0

    def __enter__(self) -> ReaderContext:
        return self

    def __exit__(self, *of: object) -> None:
        pass

    def decode(self, tokens: Sequence[int], n_logits: int = 0) -> NDArray[np.float32]:
        self.tokens += tokens
        self.n_read += len(tokens)
        assert len(self.tokens) <= self.n_tokens, "more tokens than the context was opened for"
        last = len(self.tokens)
        rows = [self._logits(n) for n in range(last - n_logits + 1, last + 1)]
        return np.array(rows, np.float32).reshape(n_logits, Characters.n_vocab)

    def _logits(self, n: int) -> NDArray[np.float32]:
        text = bytes(self.tokens[:n]).decode("latin-1")
        start = text.rindex(_TURN) + len(_TURN) if _TURN in text else _end_of_prompt(text)
        answer = self.model.solve(self.model.memory(text[:start]), text[start - 120 : start])
        written = text[start:]
        logits = np.zeros(Characters.n_vocab, np.float32)
        if answer:
            # whatever was put into its mouth before: the same place of its own answer comes next
            logits[ord(answer[len(written)]) if len(written) < len(answer) else END] = 20.0
        return logits

    def pin_prompt(self, n_tokens: int) -> None:
        """It forgets nothing."""

    def clear(self) -> None:
        self.tokens = []

    def state(self) -> list[int]:
        return list(self.tokens)

    def set_state(self, data: list[int], tokens: Sequence[int]) -> None:
        assert data == list(tokens)
        self.tokens = list(data)


def _end_of_prompt(text: str) -> int:
    """Of a text without turns: behind the call, or the words, that are to be gone on with."""
    return max(text.rfind(end) + len(end) for end in ("(", " is ", "step 3: "))


def without_middle(text: str) -> str:
    """The first and the last of a text, as a cache that keeps the most recent tokens."""
    return text[:40] + text[-200:]


# ------------------------------------------------------------ how the tasks are done


def find(pattern: str, text: str) -> str:
    """What the last match says, nothing if there is none."""
    return next(iter(re.findall(pattern, text)[::-1]), "")


def facts(text: str, ask: str) -> str:
    names = find(r"in this order: ([^.]*)\.", text).split(", ")
    known = {name: find(rf"The access code of {name} is (\d+)", text) for name in names}
    return json.dumps(known) if all(known.values()) else ""


def needles(text: str, ask: str) -> str:
    return find(rf"The secret number of {find('secret number of ([A-Za-z]+)[?]', ask)} is ([0-9]+)", text)


def restated(text: str, ask: str) -> str:
    return find(rf"Final: the budget of {find('budget of ([A-Za-z]+) is', ask)} is ([0-9]+)", text)


def state(text: str, ask: str) -> str:
    return find(rf"Sum of {find('Sum of ([a-z]+), result', ask)}, step 3: .*? = ([0-9]+)", text)


def function(text: str, ask: str) -> str:
    name = find(r"result = (\w+)\(", ask)
    first = find(rf"def {name}\((\w+),", text)
    return f"{first}=" if first else ""


def trace(text: str, ask: str) -> str:
    field, place = re.findall(r"What is the ([a-z ]+) of (\w+)\?", ask)[-1]
    return find(rf"The {field} of {place} is (\d+)", text)
