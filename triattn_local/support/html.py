"""Pages that hold everything: no scripts, nothing fetched, readable offline and in ten years."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plotting import Picture

_CSS = """
:root { --ink: #1f2328; --quiet: #667080; --line: #e3e6ea; --blue: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.2rem; margin: 0 0 4px; }
p { margin: 4px 0 12px; color: var(--quiet); }
section { background: #fff; border: 1px solid var(--line); border-radius: 12px; padding: 22px 24px; margin-top: 20px; }
section svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; }
td, th { padding: 6px 12px 6px 0; text-align: left; border-top: 1px solid var(--line); vertical-align: top; }
tr:first-child td, tr:first-child th { border-top: 0; }
th { font-weight: 500; color: var(--quiet); }
td { overflow-wrap: anywhere; }
.numbers td, .numbers th { text-align: right; font-variant-numeric: tabular-nums; }
.numbers th:first-child { text-align: left; }
.wide { overflow-x: auto; }
.wide td, .wide th { white-space: nowrap; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px; margin-top: 24px; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px; }
.card b { display: block; font-size: 1.7rem; line-height: 1.2; color: var(--blue); }
.card span { color: var(--quiet); font-size: 0.9rem; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def document(title: str, heading: str, lead: str, *parts: str) -> str:
    """A page of parts that are HTML; the words before them are text."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<main>
<h1>{escape(heading)}</h1>
<p>{escape(lead)}</p>
{"".join(parts)}
</main>
</body>
</html>
"""


def section(title: str, reading: str, content: str) -> str:
    """A part of a page, with what is to be seen in it in a sentence."""
    return f"<section><h2>{escape(title)}</h2>{f'<p>{escape(reading)}</p>' if reading else ''}{content}</section>\n"


def inline(picture: Picture) -> str:
    """A picture as an element. Its ids are made its own, for a page has but one of each."""
    svg = picture.svg()
    for mark in ('id="', 'href="#', "url(#"):
        svg = svg.replace(mark, f"{mark}{picture.name}-")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(picture.title)}" ', 1)
