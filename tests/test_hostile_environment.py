"""Every command in places that no one wishes for: it ends with an exit code of ours, and a word that helps.

No traceback, no "this is a bug", no signal, and no wait without an end. What each place does is in support/hostile.py.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hostile
import pytest
from hostile import Place, close, config, feed, forbid, gone, limit, onto, set_
from packed import stats_for
from tiny_models import write_tiny

from triattn_local import errors
from triattn_local.cli import app
from triattn_local.model.metadata import write_with_stats

pytestmark = pytest.mark.skipif(os.name != "posix", reason="of POSIX systems")

CODES = {0, 130} | {
    error.exit_code for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Exception)
}
NEVER = re.compile(r"Traceback|this is a bug|Exception ignored|Error in sys\.excepthook|core dumped|Fatal Python error")

QUICK: dict[str, list[str | bytes]] = {
    "ls": ["ls"],
    "rm": ["rm", "none", "--yes"],
    "inspect": ["inspect", "s", "--json"],
    "plan": ["plan", "m"],
    "run": ["run", "s", "Grüße \N{GRINNING FACE}", "-n", "2", "--ctx", "256", "--threads", "1"],
    "run, from stdin": ["run", "m", "--no-evict", "--raw", "-n", "2", "--ctx", "256", "--threads", "1", "--json"],
    "chat": ["chat"],  # which wants a terminal
    "serve": ["serve", "m"],  # which has no statistics
    "openclaw-config": ["openclaw-config", "http://127.0.0.1:9/v1"],
    "bench": ["bench", "none"],
    "eval": ["eval", "none"],
    "pull": ["pull", "nobody/nothing"],
}
"""what is called everywhere"""

WRONG: dict[str, list[str | bytes]] = {
    "a question in the place of the model": ["run", "Tell me a long story about the sea and the wind. " * 12],
    "nobody's home": ["run", "~nobody-of-that-name/m.gguf", "hi"],
    "a name that is no text": ["run", b"gr\xfc\xdfe", "hi"],
    "a prompt that is no text": ["run", "s", b"gr\xfc\xdfe"],
    "a system prompt that is no text": ["run", "s", "hi", "--system", b"gr\xfc\xdfe"],
    "a prompt that does not fit": ["run", "m", "x" * 5000, "--raw", "--no-evict", "-n", "1", "--ctx", "256"],
    "a file of a name too long": ["run", "s", "-f", "f" * 300],
    "a folder of a name too long": ["bench", "s", "--depths", "512", "--budget", "256", "--out", "o" * 300],
    "a model of a name too long": ["pull", "n" * 300],
    "a folder as a model": ["inspect", "."],
    "a sidecar of a name too long": ["inspect", "s", "--stats", "n" * 300],
    "a page of a name too long": ["inspect", "s", "--html", "h" * 300],
    "an output of a name too long": ["convert", "m", "-o", "c" * 300],
    "an output that is no text": ["export-stats", "s", "-o", b"gr\xfc\xdfe.pt", "--force"],
    "an output without a folder": ["convert", "m", "-o", "none/m.gguf"],
    "a text that is not there": ["convert", "m", "--corpus", "n" * 300],
    "statistics that are a folder": ["import-stats", ".", "m"],
    "problems that are a folder": ["eval", "s", "--tasks", "reasoning", "--problems", "."],
    "a list of models in ASCII": ["ls", "--json"],
}
"""what is wrong everywhere"""

SLOW: dict[str, list[str | bytes]] = {
    "doctor": ["doctor", "s"],
    "convert": [
        "convert",
        "m",
        "--sidecar",
        "--tokens",
        "512",
        "--engine",
        "torch",
        "-o",
        "made.gguf",
        "--force",
        "--threads",
        "1",
    ],
    "import-stats": ["import-stats", "none.pt", "m"],
    "export-stats": ["export-stats", "s", "-o", "made.pt", "--force"],
    "pull": ["pull", "demo"],
    "bench": ["bench", "s", "--depths", "512", "--budget", "256", "--blocks", "1", "--threads", "1", "--out", "bench"],
    "eval": [
        "eval",
        "s",
        "--tokens",
        "256",
        "--cases",
        "1",
        "--kept",
        "0.75",
        "--texts",
        "c",
        "--methods",
        "modes",
        "--window",
        "32",
        "--threads",
        "1",
    ],
    "inspect": ["inspect", "s", "--html", "made.html"],
    "plan": ["plan", "qwen3-8b", "--vram", "24GiB"],
}
"""those that take seconds: in some of the places"""

HOSTILE: dict[str, list[Callable[[Place], None]]] = {
    "no HOME, and a user without a name": [hostile.nameless],
    "the same, and no folder named": [hostile.nameless, set_(TRIATTN_MODELS=None, TRIATTN_SESSIONS=None)],
    "HOME is no folder": [set_(HOME="/dev/null", TRIATTN_MODELS=None, TRIATTN_SESSIONS=None)],
    "HOME may not be entered": [forbid("home"), set_(TRIATTN_MODELS=None, TRIATTN_SESSIONS=None)],
    "models may not be entered": [forbid("models")],
    "models may not be read": [forbid("models", mode=0o311)],
    "models may not be written": [forbid("models", mode=0o555)],
    "models is a file": [set_(TRIATTN_MODELS="/etc/hostname")],
    "foreign files among the models": [hostile.foreign_files],
    "a foreign database of sessions": [hostile.foreign_sessions],
    "a full disk": [limit(resource.RLIMIT_FSIZE, 1024)],
    "nowhere for temporary files": [set_(TMPDIR="/nonexistent", TMP="/nonexistent", TEMP="/nonexistent")],
    "a working folder that was removed": [hostile.removed_folder],
    "a working folder that may not be written": [forbid(".", mode=0o555)],
    "few open files": [limit(resource.RLIMIT_NOFILE, 24)],
    "stdout is full": [onto("stdout", "/dev/full")],
    "stderr is full": [onto("stderr", "/dev/full")],
    "stdout is closed": [close(1)],
    "stderr is closed": [close(2)],
    "all is closed": [close(0, 1, 2)],
    "nobody reads stdout": [gone("stdout")],
    "nobody reads stderr": [gone("stderr")],
    "nobody reads anything": [gone("stdout"), gone("stderr")],
    "ASCII": [set_(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii:strict")],
    "Latin-1": [set_(PYTHONIOENCODING="latin-1")],
    "a dumb terminal": [set_(TERM="dumb", COLUMNS="1", LINES="0")],
    "stdin is no text": [feed(b"\xff\xfe\0\x80" * 99)],
    "stdin begins with a byte order mark": [feed(b"\xef\xbb\xbfHello there")],
    "a config of an editor's": [config(b"\xef\xbb\xbfbudget = 300\r\n")],
    "a config that is no text": [config(b"\xff\xfe\0b")],
    "a config that is a folder": [set_(TRIATTN_CONFIG="/")],
    "a config with nothing behind its names": [config(b'models = "\\u0000"\nsessions = "~nobody-of-that-name"\n')],
    "variables that are no text": [set_(TRIATTN_MODE=os.fsdecode(b"\xff"), LANG=os.fsdecode(b"\xff"))],
}

EVERYTHING = (
    "no HOME, and a user without a name",
    "HOME may not be entered",
    "foreign files among the models",
    "a full disk",
    "all is closed",
    "ASCII",
)
"""where the slow commands run too"""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of some bytes that llama.cpp really runs: m without statistics, s with them."""
    folder = tmp_path_factory.mktemp("originals")
    plain = write_tiny(folder / "m.gguf")
    write_with_stats(plain, folder / "s.gguf", stats_for(plain))
    return folder


@pytest.fixture
def place(originals: Path, tmp_path: Path) -> Place:
    for name in ("models", "home"):
        (tmp_path / name).mkdir()
    for model in originals.iterdir():
        (tmp_path / "models" / model.name).write_bytes(model.read_bytes())
    return Place(tmp_path)


def judge(words: list[str | bytes], code: int, out: str, err: str, place: Place) -> str | None:
    """What is wrong with how a command ended."""
    told = " ".join(str(word)[:40] for word in words)
    text = out + err
    if code not in CODES:
        return f"{told}: ended with {code}: {text[-300:]}"
    if NEVER.search(text):
        return f"{told}: {text[-600:]}"
    if code not in (0, 130) and place.heard and not re.search(r"^error: \S", err, re.MULTILINE) and "fail" not in out:
        return f"{told}: ended with {code} and no word: {text[-300:]}"
    return None


def wrong_ends(place: Place, commands: list[list[str | bytes]]) -> list[str]:
    def look(words: list[str | bytes]) -> str | None:
        try:
            return judge(words, *place.run(words), place)
        except subprocess.TimeoutExpired:
            return f"{words}: does not end"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [said for said in pool.map(look, commands) if said]


def test_every_command_is_tried() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    assert commands == {words[0] for words in (*QUICK.values(), *SLOW.values())}
    assert set(EVERYTHING) <= HOSTILE.keys()


@pytest.mark.parametrize("name", HOSTILE)
def test_every_command_ends_well(name: str, place: Place) -> None:
    commands = [*QUICK.values(), *(SLOW.values() if name in EVERYTHING else ())]
    with hostile.at(place, *HOSTILE[name]):
        wrong = wrong_ends(place, commands)
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("name", ["a friendly place", "a working folder that may not be written", "ASCII"])
def test_what_is_wrong_everywhere_ends_well(name: str, place: Place) -> None:
    with hostile.at(place, *HOSTILE.get(name, [])):
        wrong = wrong_ends(place, list(WRONG.values()))
    assert not wrong, "\n\n".join(wrong)


CHATS: dict[str, tuple[list[Callable[[Place], None]], int, str]] = {
    "a friendly place": ([], 0, ""),
    "no HOME, and a user without a name": ([hostile.nameless], 0, ""),
    "no HOME and no folder for sessions": ([hostile.nameless, set_(TRIATTN_SESSIONS=None)], 2, "no home folder"),
    "a full disk": ([limit(resource.RLIMIT_FSIZE, 8192)], 4, "make room"),
    "a full disk, and sessions from before": ([hostile.sessions, limit(resource.RLIMIT_FSIZE, 8192)], 4, "make room"),
    "a foreign database": ([hostile.foreign_sessions], 1, "move it away"),
    "sessions may not be entered": ([forbid("sessions")], 2, "TRIATTN_SESSIONS"),
    "sessions may not be written": ([hostile.sessions, forbid("sessions", mode=0o555)], 2, "TRIATTN_SESSIONS"),
    "models may not be entered": ([forbid("models")], 3, "Permission denied"),
    "the chat's log is a folder": ([forbid("sessions/chat.log", mode=0o755)], 1, "chat.log"),
    "ASCII": ([set_(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii")], 0, ""),
    "a dumb terminal": ([set_(TERM="dumb")], 0, ""),
    "no terminal's name": ([set_(TERM=None)], 0, ""),
}
"""name -> what is done, how it ends, and in which words; where it opens, Ctrl+Q leaves it"""


@pytest.mark.parametrize("name", CHATS)
def test_the_chat_opens_or_says_why_not(name: str, place: Place) -> None:
    makes, code, said = CHATS[name]
    words: list[str | bytes] = ["chat", "m", "--no-evict", "--ctx", "256", "--threads", "1"]
    with hostile.at(place, *makes):
        ended, screen = place.talk(words)
    assert ended == code, screen[-600:]
    assert said in " ".join(screen.split()), screen[-600:]
    assert not NEVER.search(screen)
