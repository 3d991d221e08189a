"""What eval measures, and that it notices when forgetting does not work."""

from __future__ import annotations

import importlib.util
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reader

from triattn_local import errors
from triattn_local.calib_tools.corpus import bundled_corpus
from triattn_local.config import EvictionConfig, RuntimeConfig
from triattn_local.engine import native, runtime
from triattn_local.engine.contexts import Model
from triattn_local.evaluation import (
    answers,
    asking,
    methods,
    problems,
    quick,
    report,
    results,
    runner,
    summary,
    texts,
)
from triattn_local.evaluation.tasks import TASKS, Size, pick_tasks
from triattn_local.evaluation.tasks.drift import distinct, repeated
from triattn_local.evaluation.tasks.nll import kl_divergence, log_sum_exp
from triattn_local.evaluation.tasks.reasoning import read_problems

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"

# ------------------------------------------------------------ names and texts


@pytest.fixture
def rankings() -> Any:
    """docs/examples/rankings.py"""
    spec = importlib.util.spec_from_file_location("rankings", EXAMPLES / "rankings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_methods_by_name_and_group_always_with_full_attention() -> None:
    assert [m.name for m in methods.pick_methods("random, modes")] == [
        "full",
        "per-layer-head",
        "per-head",
        "shared",
        "random",
    ]
    with pytest.raises(errors.UsageError, match="no method 'pyramidkv'"):
        methods.pick_methods("pyramidkv")
    with pytest.raises(errors.UsageError, match="no task 'mmlu'"):
        pick_tasks("mmlu")
    baselines = ["streaming", "knorm", "random", "random-pinned", "snapkv", "h2o", "tova", "rkv"]
    assert [m.name for m in methods.pick_methods("baselines")] == ["full", *baselines]
    assert {task.name for task in pick_tasks("niah")} == {"niah-single", "niah-keys", "niah-hops"}


def test_every_method_is_a_setting_that_the_engine_takes() -> None:
    base = EvictionConfig()
    for method in methods.METHODS.values():
        eviction = method.eviction(base, 1000)
        assert (eviction is None) == (method.name == "full")
        if eviction is not None:
            assert eviction.budget_tokens == 1000
            small = method.eviction(base, 64)  # 6 % of a short case
            assert small is not None
            assert small.n_keep + small.window < 64


def test_texts_are_long_enough_held_out_and_the_same_every_time() -> None:
    trained = "".join(document.text for document in bundled_corpus().documents)
    for kind in texts.KINDS:
        text = texts.read_text(kind)
        assert len(text) > 40_000
        assert texts.read_text(kind) == text
        middle = text[20_000:20_100]
        assert middle not in trained, kind


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("Grüße", "utf-8")
    assert texts.read_text(str(own)) == "Grüße"
    own.write_bytes(b"\xff\xfe")
    with pytest.raises(errors.UsageError, match="not UTF-8"):
        texts.read_text(str(own))
    with pytest.raises(errors.UsageError, match="cannot be read"):
        texts.read_text(str(tmp_path / "none.txt"))


@pytest.mark.parametrize("make", [problems.column_sum, problems.chain])
def test_made_problems_are_solved_rightly(make: Any) -> None:
    for seed in range(50):
        problem = make(random.Random(seed), 6)
        assert problem.solution.endswith(f"\\boxed{{{problem.answer}}}.")
        if make is problems.column_sum:
            assert eval(problem.question.removeprefix("What is ").rstrip("?")) == int(problem.answer)
        else:
            names: dict[str, int] = {}
            for line in problem.question.split(". What")[0].split("; "):
                exec(line.replace("lambda", "lam"), {}, names)
            assert names[problem.question.split()[-1].rstrip("?").replace("lambda", "lam")] == int(problem.answer)


# -------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("7318264", True),
        ("The number is 7,318,264.", True),
        ("73182645", False),
        ("it is 7318264, or perhaps 1111111", False),
        ("", False),
        ("7318264,1234567", True),
        ("It is 7 318 264", True),
        ("7\u202f318\u202f264", True),
        ("7'318'264", True),
        ("7318264.5", False),
        ("0.7318264", False),
        ("It is 7318264.", True),
        ("(7318264)", True),
    ],
)
def test_a_needle_counts_whole_and_alone(text: str, found: bool) -> None:
    assert answers.has_number(text, "7318264", ["1111111"]) is found


@pytest.mark.parametrize(
    ("text", "expected", "right"),
    [
        ("so the answer is \\boxed{42}.", "42", True),
        ("so the answer is \\boxed{41}.", "42", False),
        ("\\boxed{\\frac{1}{2}}", "0.5", True),
        ("I do not know.", "42", False),
        # the last word counts
        ("It is \\boxed{5}. Wait, no: \\boxed{7}.", "7", True),
        ("It is \\boxed{5}. Wait, no: \\boxed{7}.", "5", False),
        ("It is \\boxed{5}. Wait, no: \\boxed{7", "5", True),
        ("\\boxed{7} is wrong, \\boxed{\\frac{1}{2}} it is, \\boxed{}", "0.5", True),
        ("The solutions are \\boxed{5} and \\boxed{7}.", "5, 7", True),
        ("The answer is 5. But then 2 + 1 = 3, so the answer is 3.", "3", True),
        ("The answer is 5. But then 2 + 1 = 3, so the answer is 3.", "5", False),
        ("\\fbox{6}", "6", True),
        ("\\boxed 7.", "7", True),
        # numbers
        ("\\boxed{1e6}", "1000000", True),
        ("\\boxed{1e6}", "1", False),
        ("The answer is 1e6.", "1", False),
        ("The answer is 1e6.", "1000000", True),
        ("\\boxed{1000000}", "1e6", True),
        ("\\boxed{1.5E-3}", "0.0015", True),
        ("\\boxed{2.50e+2}", "250", True),
        ("\\boxed{1 000 000}", "1000000", True),
        ("\\boxed{1\\,000\\,000}", "1000000", True),
        ("\\boxed{1{,}000{,}000}", "1000000", True),
        ("\\boxed{1,000,000.5}", "1000000.5", True),
        ("\\boxed{1.234.567}", "1234567", True),
        ("\\boxed{1_000}", "1000", True),
        ("\\boxed{2 1/2}", "2.5", True),
        ("\\boxed{2.5}", "2 1/2", True),
        ("\\boxed{7.}", "7", True),
        ("\\boxed{-7}", "\u22127", True),
        ("\\boxed{50\\%}", "50", True),
        ("\\boxed{\\frac{1}{2}}", "50\\%", True),
        ("\\boxed{12\\text{ cm}}", "12", True),
        ("\\boxed{\\$18.90}", "18.90", True),
        ("\\boxed{x = 5}", "5", True),
        ("\\boxed{(5, 7)}", "(5,7)", True),
        ("\\boxed{(7, 5)}", "(5,7)", False),
        ("\\boxed{\\text{(C)}}", "C", True),
        ("\\boxed{2e}", "2e", True),
        ("\\boxed{3, 5}", "35", False),
        # and what nobody can reckon ends at once
        ("\\boxed{9^{9^{9^9}}}", "5", False),
        ("\\boxed{9^{9^{9^9}}}", "9^{9^{9^9}}", True),
        ("\\boxed{1e999999999}", "5", False),
    ],
)
def test_answers_are_compared_as_mathematics(text: str, expected: str, right: bool) -> None:
    assert answers.is_right(text, expected) is right


def test_problem_files(tmp_path: Path) -> None:
    file = tmp_path / "aime.jsonl"
    file.write_text('{"problem": "1+1?", "answer": 2}\n\n{"question": "2+2?", "answer": "4"}\n')
    assert [(p.question, p.answer) for p in read_problems(file)] == [("1+1?", "2"), ("2+2?", "4")]
    for bad, why in [("nonsense", "line 1"), ('{"problem": "x"}', "line 1"), ("[1]", "line 1"), ("\n", "no problems")]:
        file.write_text(bad)
        with pytest.raises(errors.UsageError, match=why):
            read_problems(file)


# ------------------------------------------------------------------ statistics


def test_intervals() -> None:
    # by hand: mean 2, s 1, t(2) = 4.303
    interval = summary.mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half == pytest.approx(4.303 / math.sqrt(3), rel=1e-6)
    assert math.isinf(summary.mean_interval([1.0]).half)
    # Wilson, 10 of 12
    wilson = summary.share_interval([1.0] * 10 + [0.0] * 2)
    assert (wilson.low, wilson.high) == (pytest.approx(0.5520, abs=1e-3), pytest.approx(0.9530, abs=1e-3))
    all_right = summary.share_interval([1.0] * 12)
    assert all_right.high == 1.0
    assert all_right.low < 0.8


def test_kl_of_the_likeliest_and_the_rest() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 300)).astype(np.float32) * 3
    p, q = (x - log_sum_exp(x) for x in (a, b))
    exact = (np.exp(p) * (p - q)).sum(axis=1)
    assert kl_divergence(p, q) == pytest.approx(exact, rel=1e-4)
    top = np.argsort(-p, axis=1)[:, :100]
    rows = np.arange(5)[:, None]
    coarse = kl_divergence(p[rows, top], q[rows, top])
    assert (coarse <= exact + 1e-6).all()  # merging outcomes loses some of it, never gains
    assert coarse == pytest.approx(exact, rel=0.1)
    assert kl_divergence(p[rows, top], p[rows, top]) == pytest.approx(np.zeros(5), abs=1e-6)


def test_repetition() -> None:
    assert repeated(list(range(100)), 8) == 0.0
    assert repeated([1, 2] * 50, 8) == pytest.approx(91 / 93)
    assert distinct(list(range(100)), 4) == 1.0
    assert distinct([1] * 100, 4) == pytest.approx(1 / 97)


# ---------------------------------------------------------------------- runner


SMALL = RuntimeConfig(n_batch=64)
EVICTION = EvictionConfig(window=64)


def small_grid(names: str = "per-layer-head,streaming", tokens: int = 400, **more: Any) -> runner.Grid:
    return runner.Grid(
        tasks=pick_tasks("nll"),
        methods=methods.pick_methods(names),
        fractions=(0.5,),
        size=Size(n_tokens=tokens, texts=("novel",)),
        eviction=EVICTION,
        **more,
    )


@pytest.mark.slow
def test_a_stopped_run_goes_on_where_it_was(smollm2_triattn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[str] = []

    def stop(step: runner.Step) -> None:
        seen.append(step.method)
        if step.method == "streaming":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run_grid(smollm2_triattn, SMALL, small_grid(), out, progress=stop)
    assert seen == ["full", "per-layer-head", "streaming"]
    with (out / "lines.jsonl").open("a") as file:
        file.write('{"task": "nll", "ca')  # the crash came in the middle of a line
    before = [line.key for line in runner.read_lines(out)]
    seen.clear()
    lines = runner.run_grid(smollm2_triattn, SMALL, small_grid(), out, progress=lambda step: seen.append(step.method))
    assert seen == ["streaming"]
    assert [line.key for line in lines][:2] == before
    forgetting = lines[1]
    assert forgetting.n_rounds >= 2
    assert forgetting.n_cells == 512  # 200 + 64 + 64, up to a multiple of 256
    assert 200 < forgetting.n_cells_used_max <= 200 + 64 + 64

    with pytest.raises(errors.UsageError, match="holds a run with size"):
        runner.run_grid(smollm2_triattn, SMALL, small_grid(tokens=300), out)
    whole = (out / "lines.jsonl").read_text()
    (out / "lines.jsonl").write_text("{}\n" + whole)
    with pytest.raises(errors.UsageError, match="line 1 is damaged"):
        runner.read_lines(out)

    rows = summary.summarise(lines)
    differences = [
        float(lines[2].metrics["nll_diff"]) - float(lines[1].metrics["nll_diff"]),
        rows[2].against and rows[2].against.mean,
    ]
    assert differences[0] == pytest.approx(differences[1])
    text = report.markdown(rows, "SmolLM2", "triattn-local eval demo")
    assert "| per-layer-head | 0.5 | 200 |" in text
    results.write_files(rows, "SmolLM2", "triattn-local eval demo", out)
    assert (out / "nll.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "src=" not in page.replace("xlink:href", "")


@pytest.mark.slow
def test_nll_is_that_of_the_logits(smollm2_triattn: Path, tmp_path: Path) -> None:
    """Against one batch of the whole text in another context, and a budget that is never reached: nothing is lost."""
    task = TASKS["nll"]
    with Model(smollm2_triattn, RuntimeConfig(n_batch=64)) as model:
        (case,) = task.cases(model, Size(n_tokens=200, texts=["python"]))
        file = tmp_path / "reference.npz"
        full = task.run(model, case, 0, lambda n: model.context(None, n), file)
        whole = task.run(
            model, case, 150, lambda n: model.context(EvictionConfig(budget_tokens=1024, cold="off"), n), file
        )
    with Model(smollm2_triattn, RuntimeConfig(n_batch=256)) as model, model.context(None, 256) as context:
        logits = context.decode(case.data[:-1], n_logits=199).astype(np.float64)
    nll = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(199), case.data[1:]]
    assert full["nll"] == pytest.approx(nll.mean(), abs=2e-3)
    assert whole["nll"] == pytest.approx(nll[149:].mean(), abs=2e-3)
    assert whole["nll_diff"] == pytest.approx(0.0, abs=1e-5)
    assert whole["kl"] == pytest.approx(0.0, abs=1e-5)
    assert whole["top1"] == 1.0


@pytest.mark.slow
def test_bad_grids(smollm2_triattn: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="no fraction"):
        runner.run_grid(smollm2_triattn, SMALL, runner.Grid((), (), (1.5,)), tmp_path / "a")
    with pytest.raises(errors.UsageError, match="are needed"):
        runner.run_grid(smollm2_triattn, SMALL, small_grid(tokens=10**6), tmp_path / "b")
    with pytest.raises(errors.UsageError, match="window"):
        runner.run_grid(smollm2_triattn, SMALL, small_grid(tokens=6), tmp_path / "c")


@pytest.mark.slow
def test_needles_lie_where_the_case_says(smollm2_triattn: Path) -> None:
    with Model(smollm2_triattn, SMALL) as model:
        for name in ("niah-single", "niah-keys", "niah-hops"):
            cases = TASKS[name].cases(model, Size(n_tokens=1000, n_cases=6))
            assert cases == TASKS[name].cases(model, Size(n_tokens=1000, n_cases=6))
            for case in cases:
                prompt, answer, forbidden = case.data
                text = model.vocabulary.detokenize(prompt, special=True)
                assert 900 < len(prompt) <= 1000
                assert text.count(answer) == 1
                assert all(other not in answer for other in forbidden)
                if name == "niah-single":
                    assert abs(text.index(answer) / len(text) - case.axis) < 0.08
        (case,) = TASKS["recursion"].cases(model, Size(n_tokens=800, n_cases=1))
        prompt, answer, others = case.data
        text = model.vocabulary.detokenize(prompt, special=True)
        assert f"is {answer}." in text
        assert answer not in others
        assert 700 < len(prompt) <= 800


@pytest.mark.slow
@pytest.mark.parametrize("name", ["niah-single", "recursion", "reasoning", "drift"])
def test_every_task_runs_with_rounds(name: str, smollm2_triattn: Path, tmp_path: Path) -> None:
    grid = runner.Grid(
        tasks=pick_tasks(name),
        methods=methods.pick_methods("per-layer-head"),
        fractions=(0.5,),
        size=Size(n_tokens=420, n_cases=1),
        eviction=EVICTION,
    )
    full, forgetting = runner.run_grid(smollm2_triattn, SMALL, grid, tmp_path)
    assert full.n_rounds == 0
    if name != "reasoning":  # an answer may end before anything must go
        assert forgetting.n_rounds >= 1
    main = TASKS[name].main
    for line in (full, forgetting):
        assert math.isfinite(float(line.metrics[main]))
        json.dumps(line.metrics)
    row = summary.summarise([full, forgetting])[1]
    assert row.method == "per-layer-head"
    assert "per-layer-head" in report.markdown([row], "x", "y")


# ------------------------------------------------- many facts, and late questions

SOLVED = {
    "facts": reader.facts,
    "needles": reader.needles,
    "restated": reader.restated,
    "function": reader.function,
    "state": reader.state,
    "trace": reader.trace,
}


def scored(name: str, model: reader.Reader, folder: Path, budget: int = 0, **size: Any) -> list[dict[str, Any]]:
    """Metrics of two cases of a task, of 7,000 characters."""
    task: Any = TASKS[name]
    cases = task.cases(model, Size(n_tokens=7000, n_cases=2, **size))
    return [dict(task.run(model, case, budget, model.context, folder / f"{case.name}.npz")) for case in cases]


@pytest.mark.parametrize("name", SOLVED)
def test_a_task_is_done_with_all_of_the_text_and_not_without_its_middle(name: str, tmp_path: Path) -> None:
    main = TASKS[name].main
    knows, forgot = reader.Reader(SOLVED[name]), reader.Reader(SOLVED[name], reader.without_middle)
    assert [metrics[main] for metrics in scored(name, knows, tmp_path)] == [1.0, 1.0]
    lost = [metrics[main] for metrics in scored(name, forgot, tmp_path, budget=100)]
    # names of arguments are not equally long, and all that is left is to guess the shortest: right once in four
    assert lost == ([0.25, 0.25] if name == "function" else [0.0, 0.0])


@pytest.mark.parametrize("name", SOLVED)
def test_cases_are_the_same_for_a_seed_and_others_for_another(name: str) -> None:
    task, model = TASKS[name], reader.Reader(SOLVED[name])
    made: Any = [task.cases(model, Size(n_tokens=7000, n_cases=1, seed=seed)) for seed in (0, 0, 1)]  # type: ignore[arg-type]
    assert made[0] == made[1]
    assert made[0] != made[2]
    assert made[0][0].name == made[2][0].name


def test_facts_count_number_tokens_beside_full_attention(tmp_path: Path) -> None:
    """One digit wrong in one of five facts; full attention has another one wrong."""

    def slips(*places: int) -> reader.Solve:
        def solve(text: str, ask: str) -> str:
            names = reader.find(r"in this order: ([^.]*)\.", text).split(", ")
            known = json.loads(reader.facts(text, ask))
            for place in places:
                code = known[names[place]]
                known[names[place]] = code[:-1] + str((int(code[-1]) + 1) % 10)
            return json.dumps(known)

        return solve

    (full, _) = scored("facts", reader.Reader(slips(4)), tmp_path, n_facts=5)
    assert (full["n_number_tokens"], full["n_right"], full["of_full"]) == (20, 19, 1.0)
    # behind the slip the right digits are given, and what follows is judged by itself
    (one, _) = scored("facts", reader.Reader(slips(1, 2)), tmp_path, budget=100, n_facts=5)
    assert one["n_right"] == 18
    assert one["whole"] == pytest.approx(3 / 5)
    assert one["of_full"] == pytest.approx(18 / 19)


def test_needles_may_not_be_mixed_up(tmp_path: Path) -> None:
    def mixes_up(text: str, ask: str) -> str:
        return reader.find(r"secret number of [A-Za-z]+ is (\d+)", text)  # the last one, whatever is asked

    for metrics in scored("needles", reader.Reader(mixes_up), tmp_path, n_facts=4):
        assert metrics["found"] == pytest.approx(1 / 4)
        assert metrics["by_depth"] == "...x"


@pytest.mark.parametrize("name", ["restated", "state"])
def test_the_first_value_is_not_the_last(name: str, tmp_path: Path) -> None:
    def first(text: str, ask: str) -> str:
        what = reader.find(r"(?:budget|Sum) of ([A-Za-z]+)", ask)
        return str(next(iter(reader.re.findall(rf"(?:budget|Sum) of {what}(?: is|, first:) (\d+)", text)), ""))

    for metrics in scored(name, reader.Reader(first), tmp_path):
        assert metrics["right"] == 0.0
        assert metrics["margin"] < -10


def test_more_facts_than_there_are_places() -> None:
    with pytest.raises(errors.UsageError, match="more than the 36") as raised:
        TASKS["facts"].cases(reader.Reader(reader.facts), Size(n_facts=37))  # type: ignore[arg-type]
    assert raised.value.where == "--facts"
    with pytest.raises(errors.UsageError, match="larger --tokens"):
        TASKS["facts"].cases(reader.Reader(reader.facts), Size(n_tokens=400))  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError, match="other --texts"):
        TASKS["facts"].cases(reader.Reader(reader.facts), Size(n_tokens=10**5))  # type: ignore[arg-type]


def test_what_questions_share_is_read_once() -> None:
    shared = list(range(1, 200)) * 3
    prompts = [shared + [200 + k] * 70 for k in range(3)]
    with reader.Reader(lambda text, ask: "").context(1000) as context:
        for i, _ in asking.each_prompt(context, prompts):  # type: ignore[arg-type]
            assert context.tokens == prompts[i]
            context.decode([1, 2, 3])  # an answer
        assert context.n_read == len(shared) + 3 * (70 + 3)
        # one question: nothing is shared, and the prompt is read at once
        context.clear()
        assert [i for i, _ in asking.each_prompt(context, prompts[:1])] == [0]  # type: ignore[arg-type]


def test_answers_are_counted_and_not_cases() -> None:
    interval = summary.share_interval([1.0, 0.5], [12, 12])
    assert (interval.mean, interval.n) == (0.75, 24)
    assert interval.low == pytest.approx(summary.share_interval([1.0] * 18 + [0.0] * 6).low)
    assert report.show(TASKS["needles"].metrics[0], interval) == "18 of 24"


@pytest.mark.slow
def test_a_question_meets_what_it_would_meet_alone(smollm2_triattn: Path) -> None:
    """With and without forgetting: the state that is put back is the one that reading anew makes."""
    with Model(smollm2_triattn, SMALL) as model:
        (case,) = TASKS["restated"].cases(model, Size(n_tokens=700, n_cases=1))
        prompts = [question.prompt for question in case.data]
        for eviction in (None, EvictionConfig(budget_tokens=256, window=64)):
            with model.context(eviction, 800) as context:
                logits = {i: row.copy() for i, row in asking.each_prompt(context, prompts)}
            n_shared = min(*(runtime.n_shared(prompts[0], p) for p in prompts), min(map(len, prompts)) - asking._TAIL)
            with model.context(eviction, 800) as alone:
                asking.skim(alone, prompts[-1][:n_shared])
                expected = asking.read(alone, prompts[-1][n_shared:])
                assert logits[len(prompts) - 1] == pytest.approx(expected, abs=2e-2)
                choices = case.data[-1].choices
                scores = asking.log_likelihoods(alone, expected, choices)
            with model.context(None, 800) as full:
                asking.skim(full, prompts[-1][:n_shared])  # other batches give other logits, by a tenth of a nat
                rows = [asking.read(full, prompts[-1][n_shared:]).astype(np.float64)]
                rows += [full.decode([token], n_logits=1)[0].astype(np.float64) for token in choices[-1][:-1]]
                by_hand = sum(asking.log_softmax(row)[token] for row, token in zip(rows, choices[-1], strict=True))
            if eviction is None:
                assert scores[-1] == pytest.approx(by_hand, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SOLVED, "repetition"])
def test_tasks_of_many_facts_run_with_rounds(name: str, smollm2_triattn: Path, tmp_path: Path) -> None:
    grid = runner.Grid(
        tasks=pick_tasks(name),
        methods=methods.pick_methods("per-layer-head"),
        fractions=(0.5,),
        size=Size(n_tokens={"repetition": 320, "trace": 1600}.get(name, 1000), n_cases=1, n_facts=4),
        eviction=EVICTION,
    )
    full, forgetting = runner.run_grid(smollm2_triattn, SMALL, grid, tmp_path)
    assert full.n_rounds == 0
    assert forgetting.n_rounds >= 1
    rows = summary.summarise([full, forgetting])
    text = report.markdown(rows, "x", "y")
    assert all(metric.name in text for metric in TASKS[name].metrics)
    assert all(math.isfinite(float(line.metrics[TASKS[name].main])) for line in (full, forgetting))


# --------------------------------------------------------------------- ranking


@pytest.mark.slow
def test_a_ranking_of_ones_own_decides(smollm2_triattn: Path) -> None:
    """Even positions first: what is kept beside the protected tokens is even."""
    with (
        Model(smollm2_triattn, RuntimeConfig(n_batch=100)) as model,
        model.context(EvictionConfig(budget_tokens=160, window=32), 1024) as context,
    ):
        seen: list[native.Round] = []

        def even_first(this: native.Round) -> None:
            seen.append(this)
            this.scores[:] = (this.pos % 2 == 0).astype(np.float32)
            this.scores[this.pos % 7 == 0] = np.nan  # no number: goes first

        context.rank_with(even_first)
        for i in range(0, 400, 100):
            context.decode(list(range(1000 + i, 1100 + i)))
        assert len(seen) == context.stats().n_rounds == 2
        assert [this.pos_next for this in seen] == [200, 300]
        pos = np.sort(native.get_kept(context.handle, 3, 1)[0])
        middle = pos[(pos >= 4) & (pos < 168)]
        assert len(middle) > 50
        assert (middle % 2 == 0).all()
        assert not (middle % 7 == 0).any()

        def fails(this: native.Round) -> None:
            raise ValueError("a bug in a ranking")

        context.rank_with(fails)
        with pytest.raises(ValueError, match="a bug in a ranking"):
            context.decode(list(range(1400, 1500)))


@pytest.mark.slow
def test_rankings_of_the_example_rank_every_set(smollm2_triattn: Path, rankings: Any) -> None:
    with Model(smollm2_triattn, RuntimeConfig(n_batch=100)) as model:
        for method in rankings.RANKINGS:
            assert method.attach is not None
            with model.context(method.eviction(EvictionConfig(window=32), 160), 512) as context:
                method.attach(context)
                for i in range(0, 300, 100):
                    context.decode(list(range(1000 + i, 1100 + i)))
                assert context.stats().n_rounds == 1, method.name


@pytest.mark.slow
def test_the_engine_counts_values_as_the_example_does(smollm2_triattn: Path, rankings: Any) -> None:
    kept = []
    with Model(smollm2_triattn, RuntimeConfig(n_batch=100)) as model:
        for weight, rank in ((0.5, None), (0.0, rankings.value(0.5)), (0.0, None)):
            with model.context(EvictionConfig(budget_tokens=160, window=32, weight_v=weight), 512) as context:
                if rank is not None:
                    rankings.method("value", "", rank).attach(context)
                for i in range(0, 300, 100):
                    context.decode(list(range(1000 + i, 1100 + i)))
                sets = [(il, h) for il in native.get_layers(context.handle) for h in range(3)]
                kept.append([frozenset(native.get_kept(context.handle, il, h)[0].tolist()) for il, h in sets])
    same = [len(a & b) for a, b in zip(kept[0], kept[1], strict=True)]
    assert sum(same) >= 0.999 * 160 * len(same)
    assert kept[0] != kept[2]


# ----------------------------------------------------------------------- quick


@pytest.mark.slow
def test_quick_passes_and_fails_when_scores_are_noise(
    smollm2_triattn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rankings: Any
) -> None:
    grid = quick.quick_grid(EvictionConfig())
    lines = runner.run_grid(smollm2_triattn, RuntimeConfig(n_batch=128), grid, tmp_path)
    assert quick.check(lines) < quick.LIMIT
    file = tmp_path / "lines.jsonl"  # what does not change need not run again
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "per-layer-head" not in line))

    def noise(context: Any, this: native.Round) -> Any:
        del context
        return np.random.default_rng(int(this.pos_next)).standard_normal(this.scores.shape)

    broken = methods.Method("per-layer-head", "scores that are noise", attach=rankings.method("", "", noise).attach)
    monkeypatch.setitem(methods.METHODS, "per-layer-head", broken)
    again = quick.quick_grid(EvictionConfig())
    with pytest.raises(errors.StatsError, match="hardly better than chance"):
        quick.check(runner.run_grid(smollm2_triattn, RuntimeConfig(n_batch=128), again, tmp_path))
