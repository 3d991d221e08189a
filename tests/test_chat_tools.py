"""Tools in the chat: a server of ours over stdio, the user's word, and what bad servers do."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_driver import Driver, Open
from scripted_runtime import ScriptedRuntime
from textual.widgets import OptionList

from triattn_local.errors import UsageError
from triattn_local.sessions import from_json, from_markdown, to_json, to_markdown
from triattn_local.settings import Settings
from triattn_local.tools.host import Result, Tool, ToolHost
from triattn_local.tools.permissions import Permissions
from triattn_local.tools.servers import Server, from_tables, from_words
from triattn_local.tui.screens.allow import AllowScreen
from triattn_local.tui.screens.tools import ToolsScreen
from triattn_local.tui.toolbox import Toolbox, spelled
from triattn_local.tui.widgets.tool import Calling, ToolMessage

pytest.importorskip("mcp", reason="pip install '.[tools]'")
pytestmark = pytest.mark.timeout(300)

SERVER = Path(__file__).parent / "support" / "tool_server.py"
COMMAND = f"{sys.executable} {SERVER}"


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def results(t: Driver) -> list[str]:
    return [m.content for m in t.app.session.path if m.role == "tool"]


def roles(t: Driver) -> list[str]:
    return [m.role for m in t.app.session.path]


async def asked(t: Driver, word: str) -> None:
    """The next call is asked for: choose by the option's id."""
    await t.until(lambda: isinstance(t.app.screen, AllowScreen))
    options = t.app.screen.query_one(OptionList)
    options.highlighted = options.get_option_index(word)
    await t.press("enter")


def always(t: Driver) -> None:
    for tool in t.app.toolbox.host.tools():
        t.app.toolbox.permissions.say(tool, "always")


async def ready(t: Driver) -> None:
    await t.until(lambda: not t.app.toolbox.host.is_starting)
    assert [at.state for at in t.app.toolbox.host.states()] == ["ready"]


# in the chat


@pytest.mark.asyncio
async def test_a_call_is_asked_for_made_shown_and_answered(open_chat: Open) -> None:
    ScriptedRuntime.script = [f"I add. {call('add', a=2, b=3)}", "It is 5."]
    async with open_chat(start={"mcp": (COMMAND,)}) as t:
        await t.ask("What is 2 and 3?", wait=False)
        await t.until(lambda: isinstance(t.app.screen, AllowScreen))
        text = t.screen_text()
        assert '"a": 2' in text
        assert "Add two numbers." in text
        assert "tool_server.py" in text
        await asked(t, "once")
        await t.settled()
        assert t.contents == ["What is 2 and 3?", "I add. ", "5", "It is 5."]
        assert roles(t) == ["user", "assistant", "tool", "assistant"]
        first, second = t.rt.prompts
        assert '"name": "add"' in first  # it was told of the tool
        assert "<tool_response>\n5\n</tool_response>" in second
        assert call("add", a=2, b=3) in second
        (widget,) = t.chat.query(ToolMessage)
        assert "▸ ⚒ add(a=2, b=3) · tool_server · 1 line" in t.screen_text()
        widget.focus()
        await t.press("t")
        assert '"b": 3' in t.screen_text()
        assert "tool_call" not in t.screen_text()
        # once is once
        t.chat.prompt.focus()
        ScriptedRuntime.script = [call("add", a=1, b=1), "2."]
        t.rt.n_answers = 0
        await t.ask("And 1 and 1?", wait=False)
        await asked(t, "once")
        await t.settled()
        assert results(t) == ["5", "2"]


@pytest.mark.asyncio
async def test_always_and_never_are_remembered(open_chat: Open) -> None:
    ScriptedRuntime.script = [
        call("add", a=2, b=3),
        call("add", a=5, b=5),
        "Ten.",
        call("count_lines", text="x"),
        "No.",
    ]
    async with open_chat(start={"mcp": (COMMAND,)}) as t:
        await t.ask("Go", wait=False)
        await asked(t, "always")
        await t.settled()
        assert results(t) == ["5", "10"]
        await t.ask("Count", wait=False)
        await asked(t, "never")
        await t.settled()
        assert results(t)[-1] == "The user does not allow it."
        assert "count_lines" not in t.rt.prompts[-1].partition("<tools>")[2].partition("</tools>")[0]
    ScriptedRuntime.script = [call("add", a=1, b=1) + call("count_lines", text="y"), "Done."]
    async with open_chat(start={"mcp": (COMMAND,)}) as t:
        await t.ask("Again")
        assert results(t) == ["2", "The user does not allow it."]
        t.app.action_tools()
        await t.until(lambda: isinstance(t.app.screen, ToolsScreen))
        await t.until(lambda: "ready" in t.screen_text())
        text = t.screen_text()
        assert "always  add" in text
        assert "never   count_lines" in text
        await t.press("enter")  # add: always -> never
        assert "never   add" in t.screen_text()


@pytest.mark.asyncio
async def test_not_this_time_goes_on_and_escape_stops(open_chat: Open) -> None:
    ScriptedRuntime.script = [call("add", a=2, b=3), "Then not.", call("add", a=2, b=3), "never said", "Fine."]
    async with open_chat(start={"mcp": (COMMAND,)}) as t:
        await t.ask("Go", wait=False)
        await asked(t, "not")
        await t.settled()
        assert t.contents[-2:] == ["The user does not allow it.", "Then not."]
        await t.ask("Go", wait=False)
        await t.until(lambda: isinstance(t.app.screen, AllowScreen))
        await t.press("escape")
        await t.settled()
        assert roles(t)[-1] == "tool"
        assert "the user stopped" in t.contents[-1]
        t.rt.n_answers += 1
        await t.ask("Go on")  # the conversation is whole
        assert t.contents[-1] == "Fine."


@pytest.mark.asyncio
async def test_escape_leaves_a_tool_that_hangs(open_chat: Open) -> None:
    ScriptedRuntime.script = [call("hang"), "never said"]
    async with open_chat(start={"mcp": (COMMAND,)}) as t:
        await ready(t)
        always(t)
        await t.ask("Go", wait=False)
        await t.until(lambda: bool(t.chat.query(Calling)))
        begin_s = time.monotonic()
        await t.press("escape")
        await t.settled()
        assert time.monotonic() - begin_s < 5
        assert "stopped by the user" in results(t)[0]
        assert not t.chat.query(Calling)
        ScriptedRuntime.script = [call("add", a=1, b=2), "3."]
        t.rt.n_answers = 0
        await t.ask("And now?")  # its server is there again
        assert results(t)[-1] == "3"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (call("die"), "its server ended amid the call"),
        (call("endless"), "a line that does not end"),
        (call("chatter"), "more than 20,000 lines"),
        (call("refuse"), "refuse"),
        (call("add", a="x"), "valid integer"),
        (call("nothing_of_the_kind"), "There is no tool 'nothing_of_the_kind'."),
        (call("beg"), "files: "),
    ],
)
async def test_a_bad_tool_is_told_to_the_model_and_the_chat_goes_on(open_chat: Open, wanted: str, words: str) -> None:
    ScriptedRuntime.script = [wanted, "I see.", call("add", a=1, b=2), "3."]
    async with open_chat(start={"mcp": (COMMAND,)}) as t:
        await ready(t)
        always(t)
        await t.ask("Go")
        assert words in results(t)[0]
        assert "given" not in results(t)[0]
        assert t.contents[-1] == "I see."
        await t.ask("And?")
        assert results(t)[1] == "3"
        assert "Traceback" not in t.screen_text()


@pytest.mark.asyncio
async def test_a_flood_is_cut_to_what_the_context_has_room_for(open_chat: Open) -> None:
    ScriptedRuntime.script = [call("flood", n_chars=3_000_000), "Long."]
    async with open_chat(start={"mcp": (COMMAND,)}, ctx=2048) as t:
        await ready(t)
        always(t)
        await t.ask("Go")
        (text,) = results(t)
        assert "[cut: the result has 3,000,000 characters" in text or "[cut: the result has 200," in text
        assert len(text) < 210_000
        assert t.contents[-1] == "Long."


@pytest.mark.asyncio
async def test_a_model_that_calls_for_ever_is_halted(open_chat: Open) -> None:
    ScriptedRuntime.script = [call("add", a=1, b=1)]
    async with open_chat(start={"mcp": (COMMAND,)}, ctx=16384) as t:
        await ready(t)
        always(t)
        await t.ask("Go", wait=False)
        await t.until(lambda: "in a row" in t.notices, 120)
        assert len(results(t)) == 25


@pytest.mark.asyncio
async def test_a_server_that_is_not_there_is_said_and_stops_nobody(open_chat: Open) -> None:
    ScriptedRuntime.script = ["Hello."]
    async with open_chat(
        start={"mcp": ("no-such-program --stdio", f"{sys.executable} -c 'exit(\"broken on purpose\")'")}
    ) as t:
        await t.ask("Go")
        assert t.contents[-1] == "Hello."
        t.app.action_tools()
        await t.until(lambda: "broken on purpose" in t.screen_text())
        assert "there is no program 'no-such-program'" in t.screen_text()


@pytest.mark.asyncio
async def test_a_turn_with_calls_is_answered_anew_left_out_and_exported_whole(open_chat: Open) -> None:
    ScriptedRuntime.script = [call("add", a=2, b=3), "It is 5.", "No tools this time."]
    async with open_chat(start={"mcp": (COMMAND,)}) as t:
        await ready(t)
        always(t)
        await t.ask("What is it?")
        session, messages = t.app.session.session, t.app.session.messages
        assert session is not None
        for draft in (from_json(to_json(session, messages)), from_markdown(to_markdown(session, messages))):
            assert [m.role for m in draft.messages] == ["user", "assistant", "tool", "assistant"]
            assert [(m.content, list(m.calls)) for m in draft.messages] == [
                (m.content, list(m.calls)) for m in messages
            ]
            assert draft.messages[2].report["call"] == messages[1].calls[0]["id"]
        (widget,) = t.chat.query(ToolMessage)
        widget.focus()
        await t.press("d")
        assert [m.left_out for m in t.app.session.path] == [True] * 4
        await t.press("d")
        await t.press("r")
        await t.settled()
        assert t.contents == ["What is it?", "No tools this time."]


# without a chat


@pytest.fixture
def host() -> Iterator[Callable[..., ToolHost]]:
    hosts: list[ToolHost] = []

    def make(*servers: Server) -> ToolHost:
        hosts.append(ToolHost(servers))
        hosts[-1].start()
        return hosts[-1]

    yield make
    for each in hosts:
        each.close()


def of(host: ToolHost, name: str) -> Tool:
    return next(tool for tool in host.offered() if tool.name == name)


def test_a_tool_that_does_not_answer_in_time_is_ended(host: Callable[..., ToolHost]) -> None:
    there = host(Server("t", (sys.executable, str(SERVER)), timeout_s=1))
    begin_s = time.monotonic()
    result = there.call(of(there, "hang"), {}).result(30)
    assert result.failed
    assert result.text == "The tool did not answer within 1 s; its server was ended."
    assert time.monotonic() - begin_s < 15
    assert there.call(of(there, "add"), {"a": 1, "b": 2}).result(60).text == "3"


def test_a_server_gets_no_variables_but_its_own(host: Callable[..., ToolHost], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    there = host(Server("t", (sys.executable, str(SERVER)), env={"MINE": "1"}))
    names = there.call(of(there, "environment"), {}).result(60).text.split()
    assert "MINE" in names
    assert "SECRET_TOKEN" not in names


def test_two_servers_with_the_same_tools_have_names_of_their_own(host: Callable[..., ToolHost]) -> None:
    there = host(*(Server(name, (sys.executable, str(SERVER))) for name in ("one", "two")))
    names = {tool.name for tool in there.offered()}
    assert {"one_add", "two_add"} <= names
    assert there.call(of(there, "two_add"), {"a": 1, "b": 2}).result(60).text == "3"


def test_over_http(host: Callable[..., ToolHost]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(SERVER), str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        there = host(Server("t", url=f"http://127.0.0.1:{port}/mcp"))
        assert there.call(of(there, "add"), {"a": 1, "b": 2}).result(60).text == "3"
    finally:
        process.kill()
        process.wait()
    result = there.call(of(there, "add"), {"a": 1, "b": 2}).result(60)
    assert result.failed  # it is gone


def test_what_was_allowed_holds_for_the_tool_as_it_was() -> None:
    said: dict[str, Any] = {}

    def write(new: Any) -> None:
        said.clear()
        said.update(json.loads(json.dumps(new)))

    permissions = Permissions(lambda: said, write)
    tool = Tool("read", "files", "read", "Reads a file", {"type": "object"}, "npx files /home/me/notes")
    permissions.say(tool, "always")
    assert permissions.of(tool) == "always"
    for other in (
        Tool("read", "files", "read", "Reads a file, and sends it away", {"type": "object"}, tool.place),
        Tool("read", "files", "read", tool.description, {"type": "object"}, "npx files /"),
        Tool("read", "other", "read", tool.description, {"type": "object"}, tool.place),
    ):
        assert permissions.of(other) == "ask"
    permissions.say(tool, "ask")
    assert said == {}


def test_servers_of_the_config_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        '[mcp.files]\ncommand = "npx"\nargs = ["-y", "server-filesystem", "~/notes"]\nenv = {A = "b"}\ntimeout = 5\n'
        '[mcp.web]\nurl = "http://127.0.0.1:1/mcp"\nheaders = {Authorization = "Bearer x"}\n'
    )
    files, web = from_tables(*Settings.load(config_path=path).mcp)
    assert files.command == ("npx", "-y", "server-filesystem", str(Path("~/notes").expanduser()))
    assert (files.env, files.timeout_s) == ({"A": "b"}, 5.0)
    assert (web.url, web.headers) == ("http://127.0.0.1:1/mcp", {"Authorization": "Bearer x"})


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"a": 1}, "are tables"),
        ({"a": {}}, "either a command or a url"),
        ({"a": {"command": "x", "url": "http://x"}}, "either a command or a url"),
        ({"a": {"comand": "x"}}, "'comand' is no key of a server"),
        ({"a": {"command": 3}}, "no list of texts"),
        ({"a": {"command": ""}}, "is empty"),
        ({"a": {"command": "x", "args": "y"}}, "no list of texts"),
        ({"a": {"url": "ftp://x"}}, "no address"),
        ({"a": {"command": "x", "timeout": 0}}, "number of seconds"),
        ({"a": {"command": "x", "env": {"A": 1}}}, "no table of texts"),
        ({"a": {"command": "x", "cwd": 1}}, "no folder"),
    ],
)
def test_a_table_that_cannot_be_taken_is_named(table: Any, words: str) -> None:
    with pytest.raises(UsageError, match=r"config\.toml") as found:
        from_tables(table, "config.toml")
    assert words in str(found.value)


def test_servers_of_the_command_line() -> None:
    servers = from_words(
        ["npx -y @modelcontextprotocol/server-filesystem", "python3 a/files.py", "http://localhost:3000/mcp"]
    )
    assert [server.name for server in servers] == ["filesystem", "files", "localhost"]
    for bad in ("", "'open"):
        with pytest.raises(UsageError, match="--mcp"):
            from_words([bad])


def test_a_result_is_cut_by_tokens_and_a_call_by_width() -> None:
    box = Toolbox(ToolHost([]), Permissions(dict, lambda said: None), lambda text: len(text.split()))
    text = box.cut(Result("word " * 1000), 400)
    assert text.startswith("word " * 90)
    assert "5,000 characters, 1,000 tokens; these are the first 500 characters" in text
    assert box.cut(Result(""), 400) == "(nothing)"
    assert spelled("f", {"text": "a\nb" * 50}).startswith("f(text='a\\nb")
    assert len(spelled("f", {"text": "x" * 500})) < 70


# a real model, and the reference servers


@pytest.mark.asyncio
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ours", "filesystem", "everything"])
async def test_a_real_model_that_is_made_to_call(
    smollm2_triattn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from forced_calls import force

    from triattn_local.tui.app import ChatApp, Start

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "sea.txt").write_text("The sea is wide.\n")
    name, arguments, answer, command = "add", {"a": 2, "b": 3}, "5", COMMAND
    if kind != "ours":
        command = reference(kind, str(tmp_path / "notes") if kind == "filesystem" else "")
        name, arguments, answer = "echo", {"message": "hello"}, "Echo: hello"
        if kind == "filesystem":
            path = str(tmp_path / "notes" / "sea.txt")
            name, arguments, answer = "read_text_file", {"path": path}, "The sea is wide.\n"
    force(monkeypatch, name, arguments)
    monkeypatch.setenv("TRIATTN_SESSIONS", str(tmp_path / "sessions"))
    settings = Settings.load({"budget": 512, "batch": 128, "max_tokens": 120, "temp": 0.7, "ctx": 8192})
    app = ChatApp(settings, Start(smollm2_triattn, mcp=(command,)))
    try:
        async with app.run_test(size=(120, 40)) as pilot:
            t = Driver(app, pilot)
            await t.until(lambda: not app.loading and app.model is not None, 300)
            await t.write("Use a tool.")
            await t.press("enter")
            await t.until(lambda: isinstance(app.screen, AllowScreen), 300)
            await asked(t, "once")
            await t.until(lambda: roles(t)[-1] == "assistant" and len(roles(t)) == 4 and not t.chat.busy, 300)
            assert results(t) == [answer]
            assert t.app.session.path[-1].state in ("complete", "length")
    finally:
        app.shut_down()


def reference(kind: str, *arguments: str) -> str:
    """The command of a reference server, if node can have it."""
    npx = shutil.which("npx")
    if npx is None:
        pytest.skip("node is missing")
    package = f"@modelcontextprotocol/server-{kind}"
    found = subprocess.run(
        [npx, "-y", "-p", package, "true"], capture_output=True, timeout=240, stdin=subprocess.DEVNULL
    )
    if found.returncode:
        pytest.skip(f"npm has no {package} here")
    return " ".join(["npx", "-y", package, *arguments]).strip()
