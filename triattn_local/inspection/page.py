"""One page that holds everything: no scripts, nothing fetched, readable offline and in ten years."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ..support import formats
from ..support.html import document, inline, section
from ..support.plotting import Picture
from .describe import ModelReport
from .evidence import MAIN_FRACTION, Evidence, LayerEvidence


def page(report: ModelReport, evidence: Evidence | None, pictures: Sequence[Picture]) -> str:
    """The report of one model as an HTML document."""
    types = " and ".join(dict.fromkeys((report.cache_type_k, report.cache_type_v)))
    cost = (
        f"{report.kv_bytes_per_token:,} bytes a token as {types}. "
        "With eviction the cache stays as large as its budget, whatever the context."
    )
    sections = [
        section("Model", "", _pairs(_model(report, evidence))),
        section("KV cache", cost, _memory(report)),
        *(section(p.title, p.reading, inline(p)) for p in pictures),
    ]
    if evidence is None:
        reading = (
            "Only the statistics were looked at. triattn-local inspect --measure runs held-out text through the model, "
            "and adds the rest."
        )
        sections.append(section("Not measured", reading, ""))
    cards = "".join(_cards(report, evidence))
    lead = (
        "TriAttention report. Do the queries of this model gather around fixed centres, and does the cache that is "
        "built on them keep what is attended to?"
    )
    title = f"TriAttention report: {report.name}"
    return document(title, report.name, lead, f'<div class="cards">{cards}</div>', *sections)


def _cards(report: ModelReport, evidence: Evidence | None) -> Iterable[str]:
    def card(number: str, text: str) -> str:
        return f'<div class="card"><b>{number}</b><span>{escape(text)}</span></div>'

    found = report.statistics
    if found is not None and found.concentration is not None:
        yield card(f"{found.concentration:.3f}", "R, median of heads: 1 if all queries of a head point one way")
    if evidence is not None:
        curve = evidence.over_heads(LayerEvidence.pearson_curve).mean()
        yield card(f"{curve:.2f}", "correlation of the predicted curve over distance with mean logits, mean of heads")
        overlap, mass = evidence.of_sets(lambda e: e.overlap), evidence.of_sets(lambda e: e.mass)
        yield card(f"{overlap[0, MAIN_FRACTION]:.0%}", "of the most attended quarter is in the quarter that is kept")
        best = f"{mass[-1, MAIN_FRACTION]:.0%}"
        yield card(f"{mass[0, MAIN_FRACTION]:.0%}", f"of attention goes to the kept quarter; at best {best}")


def _model(report: ModelReport, evidence: Evidence | None) -> list[tuple[str, str]]:
    pairs = [
        ("architecture", f"{report.architecture}, trained for {report.n_ctx_train:,} tokens"),
        ("layers", report.layers_text),
        ("heads", f"{report.n_head} for {report.n_head_kv} cached, {report.head_dim} dimensions each"),
        ("RoPE", f"{report.rope}, {report.n_rot} dimensions"),
        ("file", formats.size(report.file_bytes)),
        ("fingerprint", report.fingerprint),
    ]
    found = report.statistics
    if found is None:
        return [*pairs, ("statistics", "none")]
    if found.tool is not None:
        pairs += [("statistics", f"{found.n_tokens:,} tokens of {found.corpus}"), ("measured by", found.tool)]
    if found.problem:
        pairs.append(("problem", found.problem))
    if evidence is not None:
        pairs.append(("held-out text", f"{evidence.n_tokens:,} tokens of {evidence.corpus}, {evidence.engine} engine"))
    return pairs


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in pairs)
    return f"<table>{rows}</table>"


def _memory(report: ModelReport) -> str:
    budgets = list(report.memory[0].evicting)
    head = "".join(f"<th>budget {budget:,}</th>" for budget in budgets)
    rows = "".join(
        f"<tr><th>{row.n_ctx:,} tokens</th><td>{formats.size(row.full)}</td>"
        + "".join(f"<td>{formats.size(row.evicting[budget])}</td>" for budget in budgets)
        + "</tr>"
        for row in report.memory
    )
    return f'<table class="numbers"><tr><th>context</th><th>full attention</th>{head}</tr>{rows}</table>'
