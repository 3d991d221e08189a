"""Answers that a model gives, and whether they are right.

Only what was generated is looked at, never the prompt; a needle counts when it is there whole and nothing else that
could be meant for it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from triattn_local.config import SamplingConfig
from triattn_local.engine.contexts import Context
from triattn_local.engine.sampling import Sampler
from triattn_local.errors import BackendMissingError

from .final_answer import final_answer, has_box, is_endless, plain_numbers, same_text

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d]|[.,]\d)")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+")


def generate(
    context: Context,
    prompt: Sequence[int],
    max_tokens: int,
    sampling: SamplingConfig | None = None,
    *,
    ignore_eos: bool = False,
) -> list[int]:
    """Read a prompt and answer it, greedily without sampling. The end-of-turn token is not part of the answer."""
    context.prefill(prompt)
    return go_on(context, max_tokens, sampling, ignore_eos=ignore_eos)


def go_on(
    context: Context, max_tokens: int, sampling: SamplingConfig | None = None, *, ignore_eos: bool = False
) -> list[int]:
    """Answer after what the context holds; its last decode must have left logits."""
    vocabulary = context.model.vocabulary
    sampler = Sampler(sampling or SamplingConfig(), vocabulary.n_vocab, context.tokens)
    answer: list[int] = []
    try:
        while len(answer) < max_tokens:
            token = sampler.sample(context.handle, context.n_past)
            if not ignore_eos and vocabulary.ends_turn(token):
                break
            answer.append(token)
            if len(answer) < max_tokens:
                context.decode([token], n_logits=1)
    finally:
        sampler.close()
    return answer


def has_number(text: str, expected: str, forbidden: Sequence[str] = ()) -> bool:
    """The number is in the text, and none of those that it could be taken for."""
    numbers: set[str] = set()
    text = plain_numbers(text, alone=False)
    numbers |= {found.replace(" ", "") for found in _SPACED.findall(text)}
    for found in _NUMBER.findall(text):
        # 1,234 is one number, 12,34 and 1234567,7654321 are two, and 7.5 is none of 7 and 5
        numbers |= {found.replace(",", "")} if _GROUPED.fullmatch(found) else set(found.split(","))
    return expected in numbers and not numbers.intersection(forbidden)


def check_reader() -> None:
    """Raise BackendMissingError unless the library that reads answers is there: before hours of answers."""
    try:
        import math_verify  # noqa: F401
    except ImportError as err:
        raise BackendMissingError(
            "answers are read by math-verify, which is not installed", fix="pip install '.[eval]'"
        ) from err


def is_right(text: str, expected: str) -> bool:
    r"""The final answer of a worked solution is the expected one, as mathematics: 1/2 is 0.5 is \frac{1}{2}.

    Of a solution that corrects itself, what it says last.

    Raises
    ------
    BackendMissingError
        The library that reads answers is not installed.
    """
    check_reader()
    from math_verify import parse, verify

    answer, boxed = final_answer(text), has_box(text)
    if boxed and same_text(answer, expected):
        return True
    if is_endless(answer) or is_endless(expected):
        return False
    gold = parse(_boxed(expected), parsing_timeout=None)
    said = parse(_boxed(answer) if boxed else plain_numbers(answer, alone=False), parsing_timeout=None)
    return bool(gold) and bool(verify(gold, said, timeout_seconds=None))


def _boxed(answer: str) -> str:
    return f"\\boxed{{{plain_numbers(answer, alone=True)}}}"
