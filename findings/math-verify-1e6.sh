#!/bin/sh
# math-verify 0.9.0: a number in scientific notation loses its exponent. parse("1e6") gives 1, so that an answer of 1e6 is
# taken for equal to 1 and for different from 1000000.
#
# Seen with: math-verify 0.9.0, Python 3.11.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'math-verify==0.9.0' 'latex2sympy2_extended==1.11.0'
"$folder/venv/bin/python" - <<'P'
import sys
from math_verify import parse, verify

scientific, one, million = parse("1e6"), parse("1"), parse("1000000")
print("parse('1e6'):", scientific)
print("equal to 1:", verify(one, scientific), " equal to 1000000:", verify(million, scientific))
sys.exit(not (verify(one, scientific) and not verify(million, scientific)))
P
