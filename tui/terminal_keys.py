"""Keys as terminals send them: more ways of writing the same key than Textual reads.

Alt+Enter is ESC CR wherever no protocol says more, xterm and tmux write modified keys as
``CSI 27 ; modifiers ; code ~`` (modifyOtherKeys), rxvt and PuTTY write Alt+arrow with two ESC. Textual reads the first
as Enter, which sends half a message, and the last as Esc, which stops an answer. What is no UTF-8 becomes U+FFFD, and
does not end the chat. What goes to the terminal has no characters that turn its direction.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Iterable

from textual import events
from textual._xterm_parser import XTermParser
from textual.drivers import linux_driver
from textual.keys import Keys
from textual.message import Message

_ALT_ARROW = re.compile("\x1b\x1b[\\[O]([A-D])")
_OTHER_KEY = re.compile(r"\x1b\[27;(\d+);(\d+)~")
"""of modifyOtherKeys: modifiers, code"""
_CSI_U = re.compile(r"\x1b\[(\d+);(\d+)u")
"""code, modifiers, without the text that the kitty protocol gives beside them"""
_SHIFT, _ALT, _CTRL = 1, 2, 4
_CODES = {8: 127}
"""BS is what some terminals call the key that others call DEL"""
_SAME = {"shift+backspace": "backspace", "shift+escape": "escape"}
"""terminals without a protocol do not tell them apart, and nobody means another thing"""


class KeyParser(XTermParser):
    """Textual's, and what it does not know."""

    def feed(self, data: str) -> Iterable[Message]:
        return super().feed(_ALT_ARROW.sub("\x1b[1;3\\1", data))

    def _sequence_to_key_events(self, sequence: str, alt: bool = False) -> Iterable[events.Key]:
        if sequence == "\x1b\r" or (alt and sequence == "\r"):
            return [events.Key("alt+enter", None)]
        try:
            if (match := _OTHER_KEY.fullmatch(sequence)) is not None:
                return self._modified(int(match[2]), int(match[1]))
            if (match := _CSI_U.fullmatch(sequence)) is not None:
                return self._modified(int(match[1]), int(match[2]))
            return list(super()._sequence_to_key_events(sequence, alt))
        except (ValueError, OverflowError):  # the code of no character
            return [events.Key(Keys.Ignore, sequence)]

    def _modified(self, code: int, modifiers: int) -> list[events.Key]:
        """A key that is written as its character and what is held down with it."""
        code, held = _CODES.get(code, code), max(0, modifiers - 1) & 0xF
        character = chr(code)
        if character.isprintable() and held in (0, _SHIFT):
            return list(super()._sequence_to_key_events(character))
        if character.isprintable() and held in (_ALT, _ALT | _SHIFT):
            plain = list(super()._sequence_to_key_events(f"\x1b{character}"))
            return plain or list(super()._sequence_to_key_events(character, alt=True))
        if held & _CTRL and character.isupper():  # Caps Lock, or Shift: which of the two, the modifiers say
            code = ord(character.lower()) if len(character.lower()) == 1 else code
        found = self._parse_extended_key(f"\x1b[{code};{held + 1}u") or []
        return [events.Key(_SAME.get(key.key, key.key), key.character) for key in found]


_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""turn the direction of what follows, other people's words and the frame of the screen too; no cell is theirs"""


class ChatDriver(linux_driver.LinuxDriver):
    """Asks terminals without the kitty protocol to tell Shift+Enter from Enter; who does not know that ignores it."""

    def write(self, data: str) -> None:
        super().write(data if data.isascii() else _BIDI.sub("", data))

    def start_application_mode(self) -> None:
        super().start_application_mode()  # type: ignore[no-untyped-call]
        self.write("\x1b[>4;1m")
        self.flush()

    def stop_application_mode(self) -> None:
        self.write("\x1b[>4;0m")
        super().stop_application_mode()


def _decoder(encoding: str) -> functools.partial[codecs.IncrementalDecoder]:
    return functools.partial(codecs.getincrementaldecoder(encoding), errors="replace")


# the driver makes both in the middle of its thread, where nothing else can be given to it
linux_driver.XTermParser = KeyParser  # type: ignore[attr-defined]
linux_driver.getincrementaldecoder = _decoder  # type: ignore[assignment, attr-defined]
