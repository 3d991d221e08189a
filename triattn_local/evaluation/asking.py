"""Several questions to one text, which is read once; and answers that are judged by their likelihood.

A prompt is read as a server reads it: logits are asked for behind its last token alone, so that the library can tell
where a prompt ends. What one question does to the cache is undone before the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from triattn_local.engine.contexts import Context
from triattn_local.engine.runtime import n_shared

_TAIL = 64
"""last tokens of a prompt that are always read in front of its answer, however much it shares with other prompts"""


def read(context: Context, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Logits behind the last token, float32 [n_vocab], valid until the next decode."""
    context.pin_prompt(len(context.tokens) + len(tokens))
    n_last = (len(tokens) - 1) // context.n_batch * context.n_batch
    skim(context, tokens[:n_last])
    last: NDArray[np.float32] = context.decode(tokens[n_last:], n_logits=1)[0]
    return last


def skim(context: Context, tokens: Sequence[int]) -> None:
    """Read what is not the end of a prompt."""
    for i in range(0, len(tokens), context.n_batch):
        context.decode(tokens[i : i + context.n_batch])


def each_prompt(context: Context, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Number of each prompt, and the logits behind it, with the context standing there.

    What all of them begin with is read once, and its state put back for each.
    """
    n_common = 0
    if len(prompts) > 1:
        n_common = min(n_shared(prompts[0], prompt) for prompt in prompts)
        n_common = min(n_common, min(map(len, prompts)) - _TAIL)
    if n_common <= 0:
        for i, prompt in enumerate(prompts):
            context.clear()
            yield i, read(context, prompt)
        return
    shared = list(prompts[0][:n_common])
    skim(context, shared)
    state = context.state()
    for i, prompt in enumerate(prompts):
        if i:
            context.set_state(state, shared)
        yield i, read(context, prompt[n_common:])


def log_likelihoods(
    context: Context, logits: NDArray[np.float32], choices: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """Log likelihood of each choice as what follows, nats: float64 [n_choices]. Leaves the context somewhere behind.

    Parameters
    ----------
    logits : float32 [n_vocab]
        Those behind the last token that the context holds.
    """
    first = logits.astype(np.float64)
    tokens = list(context.tokens)
    state = context.state() if any(len(choice) > 1 for choice in choices) else None
    res = []
    for i, choice in enumerate(choices):
        rows = [first]
        if len(choice) > 1 and state is not None:
            if i:
                context.set_state(state, tokens)
            # one by one, as an answer is written
            rows += [context.decode([token], n_logits=1)[0].astype(np.float64) for token in choice[:-1]]
        res.append(sum(log_softmax(row)[token] for row, token in zip(rows, choice, strict=True)))
    return np.array(res)


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n_vocab] -> [n_vocab]"""
    top = logits.max()
    res: NDArray[np.float64] = logits - top - np.log(np.exp(logits - top).sum())
    return res


def greedy(context: Context, logits: NDArray[np.float32], max_tokens: int) -> list[int]:
    """The likeliest answer, token by token, without its end-of-turn token."""
    vocabulary = context.model.vocabulary
    answer: list[int] = []
    while not vocabulary.ends_turn(token := int(logits.argmax())):
        answer.append(token)
        if len(answer) == max_tokens:
            break
        logits = context.decode([token], n_logits=1)[0]
    return answer
