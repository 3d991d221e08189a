"""Problems with a long worked answer: is the answer still right when the work was forgotten in part?

Made by a program (sums, chains of definitions), or read from a file as AIME and MATH-500 come: JSON lines with
`problem` and `answer`. Answers are compared as mathematics.
"""

from __future__ import annotations

import json
from pathlib import Path

from triattn_local.config import SamplingConfig
from triattn_local.engine.contexts import Model
from triattn_local.errors import UsageError
from triattn_local.support.paths import decode

from ..answers import check_reader, generate, is_right
from ..haystack import generator
from ..problems import Problem, chain, column_sum
from .base import Case, Metric, Metrics, Open, Size

DEFAULT_TOKENS = 1024
DEFAULT_CASES = 12
_N_SHOTS = 2
_N_STEPS = (8, 10, 12, 16)


class Reasoning:
    name = "reasoning"
    about = "problems with a long worked answer"
    metrics: tuple[Metric, ...] = (
        Metric("right", "share of the answers that are right", "more", is_share=True),
        Metric("n_answer", "tokens of an answer", "less"),
    )
    main = "right"

    def cases(self, model: Model, size: Size) -> list[Case]:
        check_reader()
        n_tokens = size.n_tokens or DEFAULT_TOKENS
        if size.problems is not None:
            problems = read_problems(size.problems)[: size.n_cases]
            prompts = [
                [{"role": "user", "content": f"{p.question}\n\nPut the final answer in \\boxed{{}}."}] for p in problems
            ]
            names = [f"{size.problems.stem}-{i}" for i in range(len(problems))]
        else:
            problems, prompts, names = _made(size.n_cases or DEFAULT_CASES, size.seed)
        vocabulary = model.vocabulary
        res = []
        for name, problem, messages in zip(names, problems, prompts, strict=True):
            prompt = vocabulary.tokenize(vocabulary.apply_chat_template(messages), parse_special=True)
            if len(prompt) >= n_tokens:
                raise UsageError(
                    f"the problem alone has {len(prompt)} tokens", where=name, fix="give a larger --tokens"
                )
            sampling = [
                SamplingConfig(temperature=size.temperature, seed=1000 * size.seed + k) for k in range(size.n_samples)
            ]
            res.append(Case(self.name, name, n_tokens, (prompt, problem.answer, sampling)))
        return res

    def run(self, model: Model, case: Case, budget_tokens: int, open_context: Open, reference: Path) -> Metrics:
        prompt, expected, samplings = case.data
        right, n_answer, text = 0, 0, ""
        for sampling in samplings:
            with open_context(case.n_tokens) as context:
                answer = generate(context, prompt, case.n_tokens - len(prompt), sampling)
            text = model.vocabulary.detokenize(answer)
            right += is_right(text, expected)
            n_answer += len(answer)
        n = len(samplings)
        return {"right": right / n, "n_answer": n_answer / n, "expected": expected, "answer": text[-200:]}


def _made(n: int, seed: int) -> tuple[list[Problem], list[list[dict[str, str]]], list[str]]:
    """Problems of growing length, each after two worked ones of its kind."""
    problems, prompts, names = [], [], []
    for i in range(n):
        kind, make = (("sum", column_sum), ("chain", chain))[i % 2]
        n_steps = _N_STEPS[(i // 2) % len(_N_STEPS)]
        rng = generator(kind, i, seed=seed)
        messages: list[dict[str, str]] = []
        for _ in range(_N_SHOTS):
            shot = make(rng, 6)
            messages += [{"role": "user", "content": shot.question}, {"role": "assistant", "content": shot.solution}]
        problem = make(rng, n_steps)
        problems.append(problem)
        prompts.append([*messages, {"role": "user", "content": problem.question}])
        names.append(f"{kind}-{n_steps}-seed-{i // (2 * len(_N_STEPS))}")
    return problems, prompts, names


def read_problems(path: Path) -> list[Problem]:
    """JSON lines with `problem` (or `question`) and `answer`.

    Raises
    ------
    UsageError
        The file cannot be read, or a line is no such object.
    """
    try:
        lines = decode(path.read_bytes()).splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"cannot be read: {err}", where=str(path), fix="give a JSON lines file") from err
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            question = item["problem"] if "problem" in item else item["question"]
            problems.append(Problem(str(question), "", str(item["answer"])))
        except (ValueError, KeyError, TypeError) as err:
            raise UsageError(
                f"line {number} is no object with problem and answer: {err}",
                where=str(path),
                fix='write {"problem": "...", "answer": "..."}, one a line',
            ) from err
    if not problems:
        raise UsageError("holds no problems", where=str(path), fix="write one a line")
    return problems
