"""LaTeX mathematics as lines of text: what a terminal can show of it, and never less than what was written.

pylatexenc reads the source and knows the symbols; what stands above, below and in brackets is put into a line here. A
command that nobody knows stays as it was written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest

from pylatexenc import latex2text, latexwalker
from pylatexenc.macrospec import LatexContextDb


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SUPER = dict(zip("0123456789+-−=()abcdefghijklmnoprstuvwxyzABDEGHIJKLMNOPRTUVWαβγδεθφχ′*T",
                  "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᴬᴮᴰᴱᴳᴴᴵᴶᴷᴸᴹᴺᴼᴾᴿᵀᵁⱽᵂᵅᵝᵞᵟᵋᶿᵠᵡ′*ᵀ", strict=True))  # fmt: skip
_SUB = dict(zip("0123456789+-−=()aehijklmnoprstuvxβγρφχ",
                "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓᵦᵧᵨᵩᵪ", strict=True))  # fmt: skip
_SYMBOLS = {
    "implies": "⟹", "iff": "⟺", "impliedby": "⟸", "to": "→", "gets": "←", "le": "≤", "ge": "≥", "ne": "≠", "land": "∧",
    "lor": "∨", "lnot": "¬", "cdot": "·", "times": "×", "div": "÷", "dots": "…", "ldots": "…", "cdots": "⋯",
    "dotsc": "…", "dotsb": "⋯", "vdots": "⋮", "ddots": "⋱", "colon": ":", "mid": "|", "vert": "|", "lvert": "|",
    "rvert": "|", "Vert": "‖", "lVert": "‖", "rVert": "‖", "|": "‖", "{": "{", "}": "}", "lbrace": "{", "rbrace": "}",
    "lbrack": "[", "rbrack": "]", "langle": "⟨", "rangle": "⟩", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈",
    "rceil": "⌉", "circ": "∘",
    "prime": "′", "bmod": "mod", "%": "%", "$": "$", "&": "&", "#": "#", "_": "_", "backslash": "\\", "degree": "°",
    "square": "□", "blacksquare": "■", "qed": "∎", "checkmark": "✓", "therefore": "∴", "because": "∵", "hbar": "ℏ",
    "ell": "ℓ", "Re": "ℜ", "Im": "ℑ", "aleph": "ℵ", "emptyset": "∅", "varnothing": "∅", "setminus": "∖", "mapsto": "↦",
    "longrightarrow": "⟶", "longleftarrow": "⟵", "rightleftharpoons": "⇌", "leqslant": "≤", "geqslant": "≥",
    "nmid": "∤", "triangle": "△", "perp": "⊥", "parallel": "∥", "angle": "∠", "sim": "∼", "cong": "≅", "propto": "∝",
    "ast": "*",
}  # fmt: skip
_TIGHT = set("∑∏∫∬∭∮√∂∇∞∀∃¬∅∠△∘′…⋮ℵ")
"""symbols without space around them, beside letters"""
_PREFIXES = set("∂∇¬∠△∀∃")
"""stand right before what they belong to"""
_FUNCTIONS = _words(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp lim limsup liminf max min sup inf det "
    "dim ker gcd lcm deg arg Pr hom mod"
)
_WIDE = "\u2003"
"""a space that stays as wide as it is"""
_SPACES = {",": " ", ":": " ", ";": " ", " ": " ", "quad": _WIDE, "qquad": _WIDE * 2, "~": " ", "!": "", "enspace": " ",
           "thinspace": " ", "nobreakspace": " "}  # fmt: skip
_NOTHING = _words(
    "left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle textstyle "
    "scriptstyle limits nolimits hline nonumber notag centering"
)
_PLAIN = _words(
    "text textrm textbf textit texttt textsf mathrm mathbf mathit mathsf mathtt boldsymbol bm operatorname mbox hbox "
    "mathnormal emph mathop mathrel mathbin"
)
_ACCENTS = {"vec": "\u20d7", "hat": "\u0302", "widehat": "\u0302", "bar": "\u0304", "overline": "\u0305",
            "tilde": "\u0303",
            "widetilde": "\u0303", "dot": "\u0307", "ddot": "\u0308", "underline": "\u0332",
            "check": "\u030c"}  # fmt: skip
_ALPHABETS = {"mathbb": "DOUBLE-STRUCK", "mathcal": "SCRIPT", "mathscr": "SCRIPT", "mathfrak": "BLACK-LETTER"}
_MATRICES = {"matrix": "  ", "smallmatrix": "  ", "pmatrix": "()", "bmatrix": "[]", "Bmatrix": "{}", "vmatrix": "||",
             "Vmatrix": "‖‖", "cases": "{ ", "rcases": " }", "dcases": "{ "}  # fmt: skip
_HIGH = {"(": "⎛⎜⎝", ")": "⎞⎟⎠", "[": "⎡⎢⎣", "]": "⎤⎥⎦", "{": "⎧⎪⎩", "}": "⎫⎪⎭", "|": "│││", "‖": "║║║", " ": "   "}
_BRACE_POINTS = {"{": "⎨", "}": "⎬"}

Lines = list[str]


class _Fraction(str):
    """a/b, which must not run together with its neighbours."""


def render(source: str, *, in_line: bool = False) -> str:
    """Mathematics, without its delimiters, as text; lines end with a newline only where the source has several.

    Parameters
    ----------
    in_line : bool
        One line whatever there is: semicolons stand between rows.
    """
    return _render(source, in_line)


@lru_cache(512)
def _render(source: str, in_line: bool) -> str:
    try:
        # with no command known each one is a node of its own, and what follows are its arguments
        walker = latexwalker.LatexWalker(source.strip(), latex_context=LatexContextDb(), tolerant_parsing=False)
        nodes = walker.get_latex_nodes()[0]
        lines = _rows(_Items(nodes), in_line)
    except (latexwalker.LatexWalkerParseError, _HalfError, RecursionError):  # then it is shown as it was written
        return source.strip()
    if not any(lines):
        return source.strip()
    text = ("; " if in_line else "\n").join(line for line in map(str.rstrip, lines) if line)
    return text.replace(_WIDE, "  ")


class _HalfError(Exception):
    """A command lacks what it is about."""


class _Items:
    """Nodes one by one, text as single characters."""

    def __init__(self, nodes: Sequence[object]) -> None:
        self.all: list[object] = []
        for node in nodes:
            if isinstance(node, latexwalker.LatexCharsNode):
                self.all.extend(node.chars)
            elif node is not None:
                self.all.append(node)
        self.at = 0

    def peek(self) -> object | None:
        return self.all[self.at] if self.at < len(self.all) else None

    def next(self) -> object | None:
        item = self.peek()
        self.at += 1
        return item

    def skip_spaces(self) -> None:
        while isinstance(item := self.peek(), str) and item.isspace():
            self.at += 1

    def argument(self) -> object:
        self.skip_spaces()
        if (item := self.next()) is None:
            raise _HalfError
        return item

    def optional(self) -> str:
        """What stands in [ ], as written."""
        self.skip_spaces()
        rest = [item if isinstance(item, str) else "" for item in self.all[self.at :]]
        if rest[:1] != ["["] or "]" not in rest:
            return ""
        end = rest.index("]")
        self.at += end + 1
        return "".join(rest[1:end])


def _rows(items: _Items, in_line: bool) -> Lines:
    r"""Rows that \\ ends, below each other; & stands at the same place in each."""
    rows: list[list[list[object]]] = [[[]]]
    for item in items.all:
        if isinstance(item, latexwalker.LatexMacroNode) and item.macroname in ("\\", "cr", "newline"):
            rows.append([[]])
        elif isinstance(item, str) and item == "&":
            rows[-1].append([])
        else:
            rows[-1][-1].append(item)
    rows = [row for row in rows if any(not (isinstance(i, str) and i.isspace()) for cell in row for i in cell)]
    if not rows:
        return []
    if max(map(len, rows)) == 1:
        return [line for row in rows for line in _joined(_of(row[0]), in_line)]
    cells = [["; ".join(_joined(_of(cell), True)) for cell in row] for row in rows]
    return _aligned(cells, "rl", "" if in_line else None)


def _of(nodes: list[object]) -> _Items:
    items = _Items([])
    items.all = nodes
    return items


def _width(line: str) -> int:
    return sum(not unicodedata.combining(c) for c in line)


def _aligned(cells: list[list[str]], sides: str, between: str | None = None) -> Lines:
    """Columns; ``sides`` are taken in turns. One line for each row."""
    widths = [max(map(_width, column)) for column in zip_longest(*cells, fillvalue="")]
    lines = []
    for row in cells:
        parts = []
        for i, cell in enumerate(row):
            pad = " " * (widths[i] - _width(cell))
            side = sides[i % len(sides)]
            left = pad if side == "r" else pad[: len(pad) // 2] if side == "c" else ""
            parts.append(left + cell + pad[len(left) :])
        lines.append((" " if between is None else between or " ").join(parts))
    return lines


def _joined(items: _Items, in_line: bool) -> Lines:
    """One formula: mostly a line, more where something high stands in it."""
    pieces: list[str | Lines] = []
    while (item := items.next()) is not None:
        pieces.append(_piece(item, items, pieces, in_line))
    if not any(isinstance(piece, list) and len(piece) > 1 for piece in pieces):
        return [_line([p[0] if isinstance(p, list) else p for p in pieces])]
    columns: list[Lines] = []
    flat: list[str] = []
    for piece in pieces:
        if isinstance(piece, list):
            columns += [[_line(flat, strip=False)], piece]
            flat = []
        else:
            flat.append(piece)
    columns.append([_line(flat, strip=False)])
    height = max(map(len, columns))
    laid = []
    for column in columns:
        wide = max(map(_width, column))
        above = (height - len(column)) // 2
        full = [*[""] * above, *column, *[""] * (height - len(column) - above)]
        laid.append([line + " " * (wide - _width(line)) for line in full])
    return ["".join(parts).rstrip() for parts in zip(*laid, strict=True)]


def _one_line(items: _Items) -> str:
    return "; ".join(_rows(items, True))


def _line(pieces: Sequence[str], *, strip: bool = True) -> str:
    """Pieces of a line; a fraction gets brackets where it would run together with its neighbour."""
    parts: list[str] = []
    pieces = [piece for piece in pieces if piece]
    for i, piece in enumerate(pieces):
        if isinstance(piece, _Fraction):
            before = parts[-1][-1] if parts else " "
            after = pieces[i + 1][0] if i + 1 < len(pieces) else " "
            alone = not (before.isalnum() or before in ")]}") and not (
                after.isalnum() or after in "([√^_" + "".join(_SUPER.values())
            )
            piece = str(piece) if alone else f"({piece})"
        parts.append(piece)
    line = re.sub(r" ?\x00 ?(?=[)\]},;.!/]|$)", "", "".join(parts))
    line = re.sub(r"[ \x00]+", " ", line)
    line = re.sub(r"(?<=[(\[{⟨⌊⌈|]) (?=[+−±-])|^ (?=[±∓])", "", line)
    return line.strip() if strip else line


def _group(item: object | None) -> str:
    """An argument as one line."""
    if item is None:
        return ""
    if isinstance(item, latexwalker.LatexGroupNode):
        return _one_line(_Items(item.nodelist))
    return _one_line(_of([item]))


def _verbatim(item: object | None) -> str:
    if isinstance(item, latexwalker.LatexGroupNode):
        return re.sub(r"\\([%$&#_{} ])", r"\1", "".join(node.latex_verbatim() for node in item.nodelist))
    return item if isinstance(item, str) else _group(item)


def _bracketed(text: str, *, below: bool = False) -> str:
    """A part of a fraction, or what stands below a root: in brackets unless it is one thing."""
    one = re.fullmatch(
        r"\d+([.,]\d+)?|[^\W\d_][^\w\s]{0,3}|\w+!?" if not below else r"\d+([.,]\d+)?|[^\W\d][′'!]?", text
    )
    scripted = re.fullmatch(rf"\w[{re.escape(''.join(_SUPER.values()) + ''.join(_SUB.values()))}]*", text)
    depth, top = 0, ""
    for c in text:
        depth -= c in ")]}"
        top += "" if depth else c
        depth += c in "([{"
    enclosed = re.fullmatch(r"√?\(\)|\w\(\)|[d∂]\w", top)
    product = not below and re.fullmatch(r"[^\s+\-−±=/<>,;]+", top)
    return text if one or scripted or enclosed or product else f"({text})"


def _script(text: str, table: dict[str, str], mark: str) -> str:
    text = text.strip()
    if mark == "^" and text in ("∘", "°"):
        return "°"
    if text and all(c in table for c in text.replace(" ", "")):
        return "".join(table[c] for c in text.replace(" ", ""))
    one = len(text) == 1 or (mark == "_" and re.fullmatch(r"[A-Za-z]+", text))
    return f"{mark}{text}\x00" if one else f"{mark}({text})"


def _piece(item: object, items: _Items, before: list[str | Lines], in_line: bool) -> str | Lines:
    if isinstance(item, str):
        if item in "^_":
            return _script(_group(items.argument()), _SUPER if item == "^" else _SUB, item)
        if item.isspace():
            return "" if before and isinstance(before[-1], str) and before[-1].endswith((" ", "\x00")) else " "
        return {"~": " ", "'": "′"}.get(item, item)
    if isinstance(item, latexwalker.LatexGroupNode):
        if item.delimiters[0] != "{":
            return f"{item.delimiters[0]}{_group(item)}{item.delimiters[1]}"
        return _group(item)
    if isinstance(item, latexwalker.LatexMacroNode):
        piece = _macro(item, items)
        if piece in _PREFIXES:
            return piece
        # the space after a command belongs to it; between words it is one
        return piece + " " if item.macro_post_space and piece and not piece.endswith((" ", "\x00")) else piece
    if isinstance(item, latexwalker.LatexEnvironmentNode):
        return _environment(item, in_line)
    if isinstance(item, latexwalker.LatexMathNode):
        return _one_line(_Items(item.nodelist))
    return str(item.latex_verbatim())  # type: ignore[attr-defined]


def _macro(item: latexwalker.LatexMacroNode, items: _Items) -> str:
    name: str = item.macroname.rstrip("*")
    if name in ("frac", "dfrac", "tfrac", "cfrac", "nicefrac"):
        above, below = _group(items.argument()), _group(items.argument())
        return _Fraction(f"{_bracketed(above)}/{_bracketed(below, below=True)}")
    if name in ("binom", "dbinom", "tbinom"):
        return f"C({_group(items.argument())}, {_group(items.argument())})"
    if name == "sqrt":
        root = {"": "√", "2": "√", "3": "∛", "4": "∜"}
        degree = items.optional()
        inside = _bracketed(_group(items.argument()), below=True)
        return f"{root[degree]}{inside}" if degree in root else f"{_script(degree, _SUPER, '^')}√{inside}"
    if name in ("boxed", "fbox"):
        return f"[ {_group(items.argument())} ]"
    if name in ("pmod", "pod"):
        return f" (mod {_group(items.argument())})"
    if name in ("tag",):
        return f"   ({_verbatim(items.argument())})"
    if name in ("underbrace", "overbrace", "color", "textcolor", "label", "phantom", "hspace", "vspace"):
        first = items.argument()
        return (
            _bracketed(_group(first))
            if name.endswith("brace")
            else _group(items.argument())
            if name == "textcolor"
            else ""
        )
    if name in ("stackrel", "overset", "underset"):
        small, base = _group(items.argument()), _group(items.argument())
        return f"{base}{_script(small, *((_SUB, '_') if name == 'underset' else (_SUPER, '^')))}"
    if name in _PLAIN:
        words = items.argument()
        return _verbatim(words) if name.startswith(("text", "mbox", "hbox")) else _group(words)
    if name in _ACCENTS:
        return "".join(c + (_ACCENTS[name] if not c.isspace() else "") for c in _group(items.argument()))
    if name in _ALPHABETS:
        return "".join(_letter(c, _ALPHABETS[name]) for c in _group(items.argument()))
    if name == "not":
        return unicodedata.normalize("NFC", _group(items.argument()).strip() + "\u0338").join("\x00\x00")
    if name in ("left", "right", "middle") and isinstance(point := items.peek(), str) and point == ".":
        items.next()
        return ""
    if name in _NOTHING or name in _SPACES:
        item.macro_post_space = ""
        return _SPACES.get(name, "")
    if name in _FUNCTIONS:
        return name
    symbol = _SYMBOLS.get(name) or _symbol(name)
    if symbol:
        spaced = (
            len(symbol) == 1 and symbol not in _TIGHT and (unicodedata.category(symbol) == "Sm" or symbol in "·×÷∥⊥…⋯")
        )
        return f"\x00{symbol}\x00" if spaced else symbol
    arguments = ""
    while isinstance(group := items.peek(), latexwalker.LatexGroupNode):
        arguments += "{" + _group(group) + "}"
        items.next()
    return f"\\{item.macroname}{arguments}"


def _letter(letter: str, alphabet: str) -> str:
    kind = "CAPITAL " if letter.isupper() else "SMALL " if letter.islower() else "DIGIT "
    for name in (
        f"{alphabet} {kind}{letter}",
        f"MATHEMATICAL {alphabet.replace('BLACK-LETTER', 'FRAKTUR')} {kind}{letter}",
    ):
        try:
            return unicodedata.lookup(name)
        except KeyError:
            continue
    return letter


_KNOWN = latex2text.get_default_latex_context_db()


def _symbol(name: str) -> str:
    known = _KNOWN.get_macro_spec(name)
    shown = known.simplify_repl if known is not None else None
    return shown if isinstance(shown, str) and "%" not in shown and shown.strip() else ""


def _environment(item: latexwalker.LatexEnvironmentNode, in_line: bool) -> Lines | str:
    name: str = item.environmentname.rstrip("*")
    nodes = list(item.nodelist)
    if (
        name in ("array", "tabular", "alignat", "alignedat")
        and nodes
        and isinstance(nodes[0], latexwalker.LatexGroupNode)
    ):
        nodes = nodes[1:]
    items = _Items(nodes)
    if name not in _MATRICES and name != "array":
        lines = _rows(items, in_line)
        return "; ".join(lines) if in_line or not lines else lines
    rows: list[list[list[object]]] = [[[]]]
    for node in items.all:
        if isinstance(node, latexwalker.LatexMacroNode) and node.macroname in ("\\", "cr"):
            rows.append([[]])
        elif isinstance(node, str) and node == "&":
            rows[-1].append([])
        else:
            rows[-1][-1].append(node)
    cells = [[_one_line(_of(cell)) for cell in row] for row in rows]
    cells = [row for row in cells if any(row)]
    sides = _MATRICES.get(name, "  ")
    if in_line or len(cells) < 2:
        return f"{sides[0]}{'; '.join('  '.join(row) for row in cells)}{sides[1]}".strip()
    lines = _aligned(cells, "l" if "cases" in name else "c", "  ")
    n = len(lines)
    places = [0, *[1] * (n - 2), 2]
    if "cases" in name and n > 2:
        places[n // 2] = 3
    high = [_HIGH[side] + _BRACE_POINTS.get(side, _HIGH[side][1]) for side in sides]
    return [f"{high[0][p]} {line} {high[1][p]}".rstrip() for p, line in zip(places, lines, strict=True)]
