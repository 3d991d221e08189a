"""Keys as terminals send them, from the bytes to what the chat does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from chat_process import ChatProcess

from triattn_local.sessions import SessionStore
from triattn_local.tui.terminal_keys import KeyParser

MODIFIED = {
    "\x1b\r": "alt+enter",
    "\x1b\x1b[D": "alt+left",
    "\x1b\x1bOC": "alt+right",
    "\x1b[1;3D": "alt+left",
    "\x1b[Z": "shift+tab",
    "\r": "enter",
    "\n": "ctrl+j",
    "\x7f": "backspace",
}
"""without any protocol"""
BOTH = {
    (13, 2): "shift+enter",
    (13, 3): "alt+enter",
    (13, 5): "ctrl+enter",
    (9, 2): "shift+tab",
    (27, 2): "escape",
    (127, 2): "backspace",
    (8, 2): "backspace",
    (8, 3): "alt+backspace",
    (127, 5): "ctrl+backspace",
    **{(ord(letter), 5): f"ctrl+{letter}" for letter in "jnorytxcqpgsbl"},
    (ord("J"), 5): "ctrl+j",
    (ord("N"), 6): "ctrl+shift+n",
    (ord("A"), 2): "A",
    (ord("Ä"), 2): "Ä",
    (ord(" "), 2): "space",
    (ord("{"), 2): "left_curly_bracket",
    (ord("b"), 3): "ctrl+left",
    (ord("q"), 3): "alt+q",
    (0x110000, 5): None,
}
"""(code, modifiers) as modifyOtherKeys and CSI u write them"""
SEQUENCES = {
    **MODIFIED,
    **{f"\x1b[27;{held};{code}~": key for (code, held), key in BOTH.items()},
    **{f"\x1b[{code};{held}u": key for (code, held), key in BOTH.items()},
    "\x1b[1114112u": None,
}


def keys(data: str) -> list[tuple[str, str | None]]:
    return [(event.key, event.character) for event in KeyParser().feed(data)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("sequence", "key"), SEQUENCES.items(), ids=lambda text: repr(text))
def test_a_key_has_the_same_name_however_it_is_sent(sequence: str, key: str | None) -> None:
    if key is None:
        assert keys(f"{sequence}a") == [("a", "a")], "what is no key is passed over, and the next one is not"
        return
    found = keys(sequence)
    assert [name for name, _ in found] == [key]
    if key in ("A", "Ä", "space"):
        assert found[0][1] == {"space": " "}.get(key, key), "it writes"


def test_a_new_line_in_terminals_without_a_protocol(tmp_path: Path) -> None:
    chat = ChatProcess(tmp_path, script=["Both."], env={"TERM": "xterm"})
    try:
        chat.wait_for("Ask anything")
        for key in ("\x1b\r", "\x1b[27;2;13~", "\x1b[13;2u", "\n"):
            chat.write(f"a line{key}")
            chat.drain(0.5)
        assert b"Both." not in chat.seen, "nothing is sent"
        chat.write("the last\r")
        chat.wait_for("Both.")
        chat.write("\x11")
        assert chat.wait_for_end(60) == 0
    finally:
        chat.close()
    store = SessionStore(tmp_path / "sessions")
    question, _ = store.messages(store.sessions()[0].id)
    store.close()
    assert question.content == "a line\n" * 4 + "the last"


def test_xterm_is_asked_to_tell_the_keys_apart_and_asked_no_more_in_the_end(tmp_path: Path) -> None:
    chat = ChatProcess(tmp_path)
    try:
        chat.wait_for("Ask anything")
        assert b"\x1b[>4;1m" in chat.seen
        chat.write("\x11")
        assert chat.wait_for_end(60) == 0
        chat.drain(0.5)
        assert b"\x1b[>4;0m" in chat.seen
    finally:
        chat.close()


def test_a_byte_that_is_no_utf8_is_a_character_and_ends_nothing(tmp_path: Path) -> None:
    chat = ChatProcess(tmp_path, script=["Fine."])
    try:
        chat.wait_for("Ask anything")
        os.write(chat.master, b"caf\xe9 ")
        chat.write("au lait\r")
        chat.wait_for("Fine.")
        chat.write("\x11")
        assert chat.wait_for_end(60) == 0
    finally:
        chat.close()


def test_nothing_turns_the_direction_of_the_terminal(tmp_path: Path) -> None:
    turns = "\u202e\u202a\u2066\u2069\u200f\u061c"
    chat = ChatProcess(tmp_path, script=[f"{turns}It is fine.{turns}"])
    try:
        chat.wait_for("Ask anything")
        chat.write(f"a{turns}b\r")
        chat.wait_for("It is fine.")
        chat.drain(0.5)
        shown = chat.seen.decode("utf-8", "replace")
        assert not set(turns) & set(shown)
        assert "ab" in shown
    finally:
        chat.close()
