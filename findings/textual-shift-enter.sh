#!/bin/sh
# Textual 8.2.8: CSI 27;2;13~, the form in which xterm, tmux and others tell Shift+Enter once modifyOtherKeys is on, arrives as
# the key "shift+\r". No binding and no documentation names that key; the kitty form of the same, CSI 13;2u, is "shift+enter".
#
# Seen with: textual 8.2.8, Python 3.11.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'textual==8.2.8'
"$folder/venv/bin/python" - <<'P'
import sys
from textual._xterm_parser import XTermParser

def keys(data):
    return [getattr(event, "key", repr(event)) for event in XTermParser(False).feed(data)]

xterm, kitty = keys("\x1b[27;2;13~"), keys("\x1b[13;2u")
print("CSI 27;2;13~:", xterm, " CSI 13;2u:", kitty)
sys.exit(not (xterm == ["shift+\r"] and kitty == ["shift+enter"]))
P
