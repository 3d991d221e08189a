"""Mathematics of an answer: shown so that it can be read, copied and exported as it was written."""

from __future__ import annotations

import random

import pytest

from triattn_local.tui.latex import render
from triattn_local.tui.markup import BLANK, parser

SHOWN = [
    (r"\frac{a+b}{2c}", "(a+b)/(2c)"),
    ("x^2 + y_{ij}^{n+1}", "x² + yᵢⱼⁿ⁺¹"),
    (r"\sqrt{b^2-4ac}", "√(b²-4ac)"),
    (r"\boxed{42}", "[ 42 ]"),
    (r"\begin{aligned} x &= 1 \\ y &= 2 \end{aligned}", "x = 1\ny = 2"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "⎛ 1  2 ⎞\n⎝ 3  4 ⎠"),
    (r"\sum_{i=1}^{n} i = \frac{n(n+1)}{2}", "∑ᵢ₌₁ⁿ i = n(n+1)/2"),
    (r"\int_0^\infty e^{-x^2}\,dx = \frac{\sqrt{\pi}}{2}", "∫₀^∞ e^(-x²) dx = √π/2"),
    (r"\mathbb{R}^n \to \mathbb{Z}", "ℝⁿ → ℤ"),
    (r"\left( \frac{1}{2} \right)^2", "( 1/2 )²"),
    (r"\text{if } x > 0", "if x > 0"),
    (r"a \leq b \neq c \approx d", "a ≤ b ≠ c ≈ d"),
    (r"\lim_{x \to 0} \frac{\sin x}{x} = 1", "lim_(x → 0) (sin x)/x = 1"),
    (r"\binom{n}{k}", "C(n, k)"),
    (r"50\%", "50%"),
    (r"\vec{v} \cdot \hat{n}", "v⃗ · n̂"),
    (r"\cfrac{1}{2+\cfrac{1}{3}}", "1/(2+1/3)"),
    (r"x \in \{1, 2\}", "x ∈ {1, 2}"),
    (r"\begin{cases} 1 & x>0 \\ 0 & \text{otherwise} \end{cases}", "⎧ 1  x>0\n⎩ 0  otherwise"),
    (r"\frac{1}{2", r"\frac{1}{2"),
    (r"\unknown{x}", r"\unknown{x}"),
    ("f'(x) = 3x^{2}", "f′(x) = 3x²"),
    (r"A \implies B \iff C", "A ⟹ B ⟺ C"),
    (r"\overline{AB} \parallel \angle ABC = 90^\circ", "A̅B̅ ∥ ∠ABC = 90°"),
    (r"\dfrac{3}{4} \times \tfrac12", "3/4 × 1/2"),
    (r"\operatorname{gcd}(a,b) \equiv 1 \pmod{7}", "gcd(a,b) ≡ 1 (mod 7)"),
    (r"x = \pm 3 \quad\text{or}\quad y", "x = ± 3   or  y"),
    (r"\mathbf{x}^T \mathbf{A}", "xᵀ A"),
    ("10^{-3}", "10⁻³"),
    ("2^{10}", "2¹⁰"),
    (r"e^{i\pi}+1=0", "e^(iπ)+1=0"),
    ("x^{a^b}", "x^(aᵇ)"),
    (r"\sqrt[3]{8}", "∛8"),
    (r"A = \begin{bmatrix} 1 & -2 \\ 30 & 4 \end{bmatrix} x", "A = ⎡ 1   -2 ⎤ x\n    ⎣ 30  4  ⎦"),
    (
        r"f(x) = \begin{cases} 1 & x>0 \\ 0 & x = 0 \\ -1 & \text{otherwise} \end{cases}",
        "       ⎧ 1   x>0\nf(x) = ⎨ 0   x = 0\n       ⎩ -1  otherwise",
    ),
    ("x = 1 \\\\\ny = 2", "x = 1\ny = 2"),
    (r"\frac{1}{2}x + 2\frac{1}{3}", "(1/2)x + 2(1/3)"),
    (r"x = \frac{-b \pm \sqrt{b^2-4ac}}{2a}", "x = (-b ± √(b²-4ac))/(2a)"),
    (r"\not= a \not\in B", "≠ a ∉ B"),
    (r"\frac{d}{dx}\left[x^n\right] = nx^{n-1}", "(d/dx)[xⁿ] = nxⁿ⁻¹"),
    (r"P(A|B) = \frac{P(B|A)P(A)}{P(B)}", "P(A|B) = P(B|A)P(A)/P(B)"),
    (r"\hat{\theta}_{MLE}", "θ̂_MLE"),
    (r"a_1, a_2, \ldots, a_n", "a₁, a₂, …, aₙ"),
    (r"90^{\circ}", "90°"),
    (r"\sum_{k=0}^\infty \frac{x^k}{k!}", "∑ₖ₌₀^∞ xᵏ/k!"),
    (r"\log_2 8 = 3", "log₂ 8 = 3"),
    (r"\nabla \times \mathbf{E} = -\frac{\partial \mathbf{B}}{\partial t}", "∇ × E = -∂B/∂t"),
    (r"\alpha\beta", "αβ"),
    (r"|x| < \epsilon", "|x| < ϵ"),
    (r"100\% \text{ of } \$5", "100% of $5"),
    (r"x^{\prime\prime}", "x′′"),
    (r"\mathcal{L}(\theta)", "ℒ(θ)"),
    (r"\{x \mid x > 0\}", "{x | x > 0}"),
    (r"\begin{align*} a &= b + c \\ &= d \end{align*}", "a = b + c\n  = d"),
    (r"\xrightarrow{f} y", r"\xrightarrow{f} y"),
    ("a % b", "a % b"),
    (r"\begin{vmatrix} a & b \\ c & d \end{vmatrix} = ad - bc", "│ a  b │ = ad - bc\n│ c  d │"),
    (r"\begin{pmatrix} 1 & 0 & 0 \\ 0 & 1 & 0 \\ 0 & 0 & 1 \end{pmatrix}", "⎛ 1  0  0 ⎞\n⎜ 0  1  0 ⎟\n⎝ 0  0  1 ⎠"),
    (r"\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}", "  1  2\n  3  4"),
    (r"\underbrace{a+b}_{n}", "(a+b)ₙ"),
    (r"\overset{?}{=}", "=^?"),
    (r"\gcd(48, 18) = 6", "gcd(48, 18) = 6"),
    (r"\lfloor x \rfloor + \lceil y \rceil", "⌊ x ⌋ + ⌈ y ⌉"),
    (r"\{a, b\} \subseteq \mathbb{N}", "{a, b} ⊆ ℕ"),
    (r"\sqrt{2} \cdot \sqrt[n]{x}", "√2 · ⁿ√x"),
    (r"\Delta x \cdot \Delta p \geq \frac{\hbar}{2}", "Δ x · Δ p ≥ ℏ/2"),
    (r"\boxed{\frac{3}{4}}", "[ 3/4 ]"),
    ("x_{1,2}", "x_(1,2)"),
    ("a^{-1}b^{1/2}", "a⁻¹b^(1/2)"),
    (r"\frac{\frac{1}{2}}{3}", "(1/2)/3"),
    (r"n! = \prod_{k=1}^n k", "n! = ∏ₖ₌₁ⁿ k"),
    (r"\angle ABC = 60^\circ", "∠ABC = 60°"),
    (r"\text{Area} = \pi r^2", "Area = π r²"),
    ("y = mx + b", "y = mx + b"),
    (r"2 \times 3 = 6", "2 × 3 = 6"),
    (r"\Rightarrow x = 3", "⇒ x = 3"),
    ("{", "{"),
    ("}", "}"),
    (r"\begin{align", r"\begin{align"),
    ("^", "^"),
    (r"\frac", r"\frac"),
    ("\\", "\\"),
    (r"\left\{ x \right\}", "{ x }"),
    (r"\Pr(X \le 3)", "Pr(X ≤ 3)"),
    (r"\displaystyle\sum_{i} x_i", "∑ᵢ xᵢ"),
    (r"5\,\text{km}", "5 km"),
    (r"\tag{1} x", "(1) x"),
]


@pytest.mark.parametrize(("source", "shown"), SHOWN, ids=[source for source, _ in SHOWN])
def test_a_formula_as_text(source: str, shown: str) -> None:
    assert render(source) == shown


def test_in_a_line_there_is_one_line() -> None:
    assert render(r"A = \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", in_line=True) == "A = (1 2; 3 4)"
    assert render("x = 1 \\\\\ny = 2", in_line=True) == "x = 1; y = 2"


COMMANDS = (
    r"\frac \left \right \begin{aligned} \end{aligned} \begin{pmatrix} \end{pmatrix} \sqrt \text \alpha \not \boxed \,"
)
PARTS = [*COMMANDS.split(), *"{}^_a1&()$%#[]~\\->.| \n", "\\\\", "\\[", "\\]", "\\(", "\\)", "$$", "\n\n", "1. ", "```"]


@pytest.mark.parametrize("seed", range(20))
def test_half_a_formula_is_shown_and_ends_nothing(seed: int) -> None:
    chance = random.Random(seed)
    md = parser()
    for _ in range(300):
        text = "".join(chance.choice(PARTS) for _ in range(chance.randint(1, 20)))
        render(text)
        render(text, in_line=True)
        md.parse(text)


def lines(text: str) -> list[str]:
    """What the paragraphs of a text show."""
    shown = []
    for token in parser().parse(text):
        if token.type == "inline":
            parts = ["\n" if child.type == "hardbreak" else child.content for child in token.children or []]
            shown += "".join(parts).replace(BLANK, " ").split("\n")
    return shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"Inline \( \alpha \) here.", ["Inline α here."]),
        ("\\[\nx = 1 \\\\\ny = 2\n\\]", ["  x = 1", "  y = 2"]),
        ("Thus\n\\[ a\n+ b\n- c \\]\nas said", ["Thus", "  a + b - c", "as said"]),
        ("$$\n\\frac{1}{2}\n$$", ["  1/2"]),
        ("\\begin{align}\na &= b \\\\\n&= c\n\\end{align}", ["  a = b", "    = c"]),
        ("1. so\n   \\[\n   x = 2\n   \\]\n2. then", ["so", "  x = 2", "then"]),
        ("> \\[ x^2 \\]", ["  x²"]),
        (r"**so $x_1$** and $$y^2$$", ["so x₁ and y²"]),
        (r"\[ \boxed{5} \].", ["  [ 5 ]."]),
        ("it costs $5 and $6, or $7-$8", ["it costs $5 and $6, or $7-$8"]),
        ("$PATH=$HOME/bin, $5/month to 10$", ["$PATH=$HOME/bin, $5/month to 10$"]),
        (r"\$5 is \*not\* \_much\_", ["$5 is *not* _much_"]),
        (r"C:\Users\me, \\server\share", [r"C:\Users\me, \\server\share"]),
        (r"x = 1 \\ y = 2, \{a\}", [r"x = 1 \\ y = 2, \{a\}"]),
        ("\\[\nx = 1 \\\\\ny", ["\\[", r"x = 1 \\", "y"]),
        ("`\\(x\\)` and `$x$`", ["\\(x\\) and $x$"]),
        ("Roses are red,\nviolets *are\nblue*.", ["Roses are red,", "violets are", "blue."]),
        ("- [ ] to do\n- [x] done", ["☐ to do", "☑ done"]),
    ],
)
def test_formulas_and_lines_in_markdown(text: str, shown: list[str]) -> None:
    assert lines(text) == shown


def test_code_is_not_touched() -> None:
    (code,) = (token for token in parser().parse("```tex\n\\[ x \\\\ \\]\n$y$\n```") if token.type == "fence")
    assert code.content == "\\[ x \\\\ \\]\n$y$\n"
