"""The chat as a process at a terminal: killed amid an answer and resumed, without colours, and its command line."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_process import ChatProcess
from texts import prose

from triattn_local.cli import run_app
from triattn_local.sessions import SessionStore

LONG = " ".join(f"word{i}" for i in range(2000))


@pytest.mark.parametrize("first_turn_done", [False, True])
def test_kill_9_while_streaming_then_resume(tmp_path: Path, first_turn_done: bool) -> None:
    chat = ChatProcess(tmp_path, script=["Yes.", LONG] if first_turn_done else [LONG], tokens_per_s=100)
    try:
        chat.wait_for("Ask anything")
        if first_turn_done:
            chat.write("is it?\r")
            chat.wait_for("Yes.")
            chat.drain(1.0)
        chat.write("count\r")
        chat.wait_for("word50")
        chat.drain(1.0)
        seen = chat.seen
    finally:
        os.kill(chat.process.pid, signal.SIGKILL)
        chat.close()
    shown = max(i for i in range(2000) if f"word{i} ".encode() in seen)
    assert shown >= 50

    chat = ChatProcess(tmp_path, script=["Resumed."], start={"newest": True})
    try:
        chat.wait_for("cut off when the program ended")
        chat.drain(1.0)
        chat.write("and on\r")
        # the answer that was cut off is read anew; what had a snapshot on disk is restored, and either is said
        chat.wait_for("cache restored from disk, " if first_turn_done else "earlier tokens read again")
        chat.wait_for("Resumed.")
        chat.write("\x11")
        assert chat.wait_for_end(60) == 0
    finally:
        chat.close()
    store = SessionStore(tmp_path / "sessions")
    (session,) = store.sessions()
    messages = store.messages(session.id)
    store.close()
    answer = messages[-3]
    assert answer.state == "interrupted"
    words = answer.content.split()
    assert words == [f"word{i}" for i in range(len(words))]
    assert len(words) >= shown, "what was on the screen was stored before"
    assert messages[-1].content == "Resumed."


def words_of(text: str) -> list[str]:
    return re.findall("[a-z]+", text.lower())


@pytest.mark.slow
@pytest.mark.parametrize("n_words", [0, 500], ids=["nothing-on-disk", "a-snapshot-on-disk"])
def test_kill_9_while_a_real_model_streams_then_resume(smollm2_triattn: Path, tmp_path: Path, n_words: int) -> None:
    flags = ["--budget", "512", "--ctx", "8192", "--batch", "128", "--temp", "0.8", "--repeat-penalty", "1.1"]
    chat = ChatProcess(tmp_path, size=(80, 24), arguments=["chat", str(smollm2_triattn), *flags])
    try:
        chat.wait_until_shown("Ask anything")
        chat.wait_until_shown("○ ready")
        if n_words:
            chat.write(f"\x1b[200~{prose(n_words)}\x1b[201~")
            chat.wait_until_shown("tokens Ctrl+X removes the last")
        chat.write("Tell a long story about the sea.\r")
        store = SessionStore(tmp_path / "sessions")
        end_s = time.monotonic() + 180
        while not (sessions := store.sessions()) or len(store.messages(sessions[0].id)[-1].content.split()) < 60:
            assert time.monotonic() < end_s
            chat.read(0.2)
        chat.drain(1.0)
        lines = chat.screen()
    finally:
        os.kill(chat.process.pid, signal.SIGKILL)
        chat.close()
    _, answer = store.messages(sessions[0].id)
    store.close()
    assert answer.state == "streaming"
    prompt = next(i for i, line in enumerate(lines) if line.lstrip().startswith("╭"))
    stored = words_of(answer.content)
    shown = words_of(" ".join(lines[1:prompt]))[-16:-1]  # the last word may have been longer already
    assert len(shown) == 15
    assert any(stored[i : i + 15] == shown for i in range(len(stored))), f"{shown} was on the screen, not in {stored}"

    chat = ChatProcess(tmp_path, size=(80, 24), arguments=["chat", "--continue", *flags])
    try:
        chat.wait_until_shown("cut off when the program ended")
        chat.wait_until_shown("○ ready")
        chat.write("What happened then?\r")
        chat.wait_until_shown("cache restored from disk, " if n_words else "earlier tokens read again (no snapshot of")
        chat.write("\x1b")
        chat.wait_until_shown("○ ready")
        chat.write("\x11")
        assert chat.wait_for_end(30) == 0
    finally:
        chat.close()
    store = SessionStore(tmp_path / "sessions")
    messages = store.messages(sessions[0].id)
    store.close()
    assert [message.state for message in messages[1::2]] == ["interrupted", messages[3].state]
    assert messages[1].content == answer.content
    report = messages[3].report
    if n_words:
        assert report["n_cached"] > 500, "the snapshot had the question"
        assert report["n_again"] < report["n_prompt"] - 500
    else:
        assert report["n_cached"] == 0


def test_without_colours_and_in_a_plain_terminal(tmp_path: Path) -> None:
    chat = ChatProcess(tmp_path, size=(80, 24), env={"NO_COLOR": "1", "TERM": "xterm", "COLORTERM": ""})
    try:
        chat.wait_for("Ask anything")
        chat.write("how is it?\r")
        chat.wait_for("The sea is wide.")
        chat.drain(0.5)
        assert b"\x1b[38;2;127;167;201" not in chat.seen, "no blue"
    finally:
        chat.close()


def test_without_truecolor(tmp_path: Path) -> None:
    chat = ChatProcess(tmp_path, size=(80, 24), env={"TERM": "xterm-256color", "COLORTERM": ""})
    try:
        chat.wait_for("Ask anything")
        chat.drain(0.5)
        assert b"38;5;" in chat.seen
        assert b"38;2;" not in chat.seen
    finally:
        chat.close()


def test_leaving_gives_the_terminal_back(tmp_path: Path) -> None:
    chat = ChatProcess(tmp_path)
    try:
        chat.wait_for("Ask anything")
        chat.write("\x11")
        assert chat.wait_for_end(15) == 0
        chat.drain(0.5)
        assert b"\x1b[?1049l" in chat.seen, "the other screen is left"
        assert b"\x1b[?25h" in chat.seen, "the cursor is back"
    finally:
        chat.close()


def test_without_a_terminal_the_command_says_what_to_use(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_app(["chat"]) == 2
    assert "triattn-local run" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["none"], 3, "none"),
        (["--resume", "ffff"], 2, "no session"),
        (["--continue", "--resume", "ffff"], 2, "leave one of the two out"),
        (["--budget", "5"], 2, "budget"),
        (["--theme", "mauve"], 2, "not a theme"),
    ],
)
def test_bad_flags_are_told_before_the_screen_opens(
    tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TRIATTN_SESSIONS": str(tmp_path / "s"), "TRIATTN_MODELS": str(tmp_path)}
    program = Path(sys.executable).parent / "triattn-local"
    done = subprocess.run(
        [program, "chat", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        timeout=60,
        check=False,
    )
    said = os.read(master, 1 << 16).decode()
    os.close(slave)
    os.close(master)
    assert done.returncode == code
    assert words in said
    assert "\x1b[?1049h" not in said
