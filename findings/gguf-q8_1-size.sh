#!/bin/sh
# gguf 0.19.0 (the Python package of the format) takes a block of Q8_1 for 40 bytes. ggml's block_q8_1 is two half-precision
# numbers and 32 bytes of weights, 36 bytes: the table still has the two as single precision. Sizes of tensors of that type,
# and the offsets of what follows, come out a ninth too large.
#
# Seen with: gguf 0.19.0, Python 3.11.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'gguf==0.19.0'
"$folder/venv/bin/python" - <<'P'
import ctypes, sys
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

class BlockQ8_1(ctypes.Structure):  # ggml-common.h: ggml_half d, s; int8_t qs[QK8_1]
    _fields_ = [("d", ctypes.c_uint16), ("s", ctypes.c_uint16), ("qs", ctypes.c_int8 * 32)]

told = GGML_QUANT_SIZES[GGMLQuantizationType.Q8_1]
print("gguf-py (elements, bytes):", told, " the C structure:", ctypes.sizeof(BlockQ8_1))
sys.exit(not (told == (32, 40) and ctypes.sizeof(BlockQ8_1) == 36))
P
