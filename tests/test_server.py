"""`serve`: how llama-server is started, watched, started again and stopped."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from served import Served
from texts import prose

from triattn_local.config import EvictionConfig, RuntimeConfig
from triattn_local.errors import DoesNotFitError, TriattnError, UsageError
from triattn_local.server.api import Api
from triattn_local.server.child import Line, ServerProcess, Supervisor, why_it_ended
from triattn_local.server.choose import check_port, choose, free_port
from triattn_local.server.command import ServerConfig, command, environment, executable, is_loopback
from triattn_local.server.handed_on import NEUTRAL, check_flags, flags_of, unheeded
from triattn_local.server.openclaw import provider_block, remark
from triattn_local.settings import Settings

PROGRAM = Path(sys.executable).parent / "triattn-local"


def config(**values: object) -> ServerConfig:
    given = {"model": Path("/m/org/Model-Q4.triattn.gguf"), "runtime": RuntimeConfig(n_ctx=32768), "eviction": None}
    return ServerConfig(**{**given, **values})  # type: ignore[arg-type]


# ---- the command line


def value_of(line: list[str], flag: str) -> str:
    return line[line.index(flag) + 1]


def test_each_slot_has_the_context_that_was_asked_for() -> None:
    line = command(config(n_slots=4), Path("llama-server"))
    assert value_of(line, "--ctx-size") == str(4 * 32768)
    assert value_of(line, "--parallel") == "4"
    assert "--no-kv-unified" in line
    assert value_of(line, "--cors-origins") == "localhost"
    assert int(value_of(line, "--sse-ping-interval")) <= 10


def test_eviction_is_on_the_command_line_and_not_in_the_environment() -> None:
    evicting = config(eviction=EvictionConfig(budget_tokens=1024, mode="per-head"), stats_path=Path("/s.gguf"))
    overrides = value_of(command(evicting, Path("x")), "--override-kv").split(",")
    assert "triattention.budget=int:1024" in overrides
    assert "triattention.mode=str:per-head" in overrides
    assert "triattention.weight_r=bool:true" in overrides
    assert "triattention.weight_v=float:0.5" in overrides
    variables = environment(evicting, {"TRIATTN_BUDGET": "7", "PATH": "/bin"})
    assert variables == {"PATH": "/bin", "TRIATTN_STATS": "/s.gguf"}
    assert value_of(command(config(), Path("x")), "--override-kv") == "triattention.budget=str:off"


def test_the_key_is_not_on_the_command_line() -> None:
    secret = config(api_key="sesame")
    assert not any("sesame" in word for word in command(secret, Path("x")))
    assert environment(secret, {})["LLAMA_API_KEY"] == "sesame"
    with pytest.raises(UsageError, match="environment LLAMA_API_KEY"):
        environment(config(), {"LLAMA_API_KEY": "sesame"})


def test_own_flags_come_last() -> None:
    assert command(config(extra=("--slot-save-path", "/x")), Path("x"))[-2:] == ["--slot-save-path", "/x"]


@functools.cache
def told() -> str:
    """llama-server's own help."""
    return subprocess.run([executable(), "--help"], capture_output=True, text=True, timeout=60, check=False).stdout


def known_names() -> list[list[str]]:
    """The names of each flag of llama-server, as its own help has them."""
    heads = [re.split(r" {2,}(?=[a-z(])", line)[0] for line in told().splitlines() if line.startswith("-")]
    return [re.findall(r"(?:^|(?<=[ ,]))--?[A-Za-z][\w.-]*", line) for line in heads]


@pytest.mark.parametrize(
    "words",
    [
        ["--port", "1"],
        ["--port=1"],
        ["--host", "::"],
        ["--api-prefix", "/llm"],
        ["--api_prefix", "/llm"],
        ["--ssl-key-file=k"],
        ["-c", "5"],
        ["--ctx-size=5"],
        ["-m", "x.gguf"],
        ["-hf", "org/name"],
        ["--models-dir", "x"],
        ["-a", "name"],
        ["--slot-save-path", "x", "-np", "4"],
        ["-no-kvu"],
        ["--no-log-jsonl"],
        ["--fim-qwen-7b-default"],
        ["--help"],
        ["--version"],
        ["--override-kv", "a=int:1,triattention.budget=int:5"],
        ["--api-key", "secret"],
    ],
)
def test_what_serve_sets_is_not_set_behind_its_back(words: list[str]) -> None:
    with pytest.raises(UsageError, match="sets what serve sets itself"):
        config(extra=tuple(words))


def test_no_other_name_of_a_flag_gets_through() -> None:
    """llama-server's help is the truth: all names of a flag that serve sets are refused, or may be given instead."""
    assert len(known_names()) > 150
    line = command(config(idle_unload_s=5, runtime=RuntimeConfig(n_threads=1, tensor_split=(1,))), Path("x"))
    mine = set(flags_of(line)) | set(NEUTRAL)
    instead = {"--cors-origins", "--sse-ping-interval", "--threads-http", "--threads-batch", "--tensor-split"}
    switches = {"--jinja", "--metrics", "--slots", "--no-reasoning-preserve", "--override-kv"}
    seen = set()
    for names in known_names():
        ours = mine.intersection(names)
        seen |= ours
        if not ours or ours & (instead | switches):
            continue
        for name in names:
            with pytest.raises(UsageError):
                check_flags([name])
    assert mine - seen == set(), "a flag that llama-server does not know"


def test_variables_of_llama_server_are_heeded_where_they_are_not_ours() -> None:
    inherited = {"LLAMA_ARG_PORT": "1", "LLAMA_ARG_NO_KV_UNIFIED": "1", "LLAMA_ARG_API_PREFIX": "/x"}
    assert unheeded(inherited).keys() == inherited.keys()
    assert environment(config(), {**inherited, "LLAMA_ARG_TOP_K": "3", "PATH": "/"}) == {
        "LLAMA_ARG_TOP_K": "3",
        "PATH": "/",
    }
    variables = set(re.findall(r"\(env: (\w+)\)", told().replace("\n", " ")))
    assert len([name for name in variables if unheeded({name: "1"})]) >= 20


def test_what_may_be_given_is_given_once() -> None:
    words = ("--cors-origins", "*", "--override-kv", "a.b=int:1", "--sse_ping_interval", "9")
    line = command(config(extra=words), Path("x"))
    assert line.count("--cors-origins") == line.count("--override-kv") == 1
    assert "--sse-ping-interval" not in line
    assert value_of(line, "--override-kv") == "triattention.budget=str:off,a.b=int:1"
    assert line[-4:] == ["--cors-origins", "*", "--sse_ping_interval", "9"]
    assert "--no-reasoning-preserve" in line, "thoughts of earlier answers stay out of the prompt"


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("a,b", "a-b"),
        (" a / b ", "a - b"),
        ("x\ny", "x-y"),
        ("caf\udce9", "caf?"),
        (",", "-"),
    ],
)
def test_a_name_survives_llama_server(alias: str, name: str) -> None:
    assert config(alias=alias).name == name


def test_a_file_without_a_name_to_give() -> None:
    assert config(model=Path("/m/ .gguf")).name == "model"
    assert config(model=Path("/m/a,b.triattn.gguf")).name == "a-b"


def test_a_proxy_is_not_asked_for_a_server_on_this_machine(
    described: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port('127.0.0.1')}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert Api(described(5)).model().n_ctx == 5


def test_name_and_url() -> None:
    assert config().name == "Model-Q4"
    assert config(alias="org/name").name == "org-name"
    assert config(port=1).base_url == "http://127.0.0.1:1/v1"
    assert config(host="0.0.0.0", api_key="k", port=1).address == "http://127.0.0.1:1"
    assert config(host="::1", port=1).address == "http://[::1]:1"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"host": "0.0.0.0"}, "--host: 0.0.0.0 can be reached from other machines"),
        ({"host": "example.org"}, "give an --api-key"),
        ({"port": 70000}, "--port: 70000 is not a port"),
        ({"n_slots": 0}, "--slots: must be at least 1"),
        ({"cache_ram_mib": -2}, "--cache-ram"),
        ({"idle_unload_s": 0}, "--idle-unload"),
        ({"api_key": " "}, "--api-key"),
        ({"api_key": "a,b"}, "--api-key"),
        ({"api_key": 'a"b'}, "--api-key"),
        ({"api_key": "a b"}, "--api-key"),
        ({"api_key": "clé"}, "--api-key"),
        ({"alias": " "}, "--alias"),
        ({"start_timeout_s": 0}, "--start-timeout"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as error:
        config(**values)
    assert said in str(error.value)


def test_loopback() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("localhost")
    assert is_loopback("::1")
    assert not is_loopback("192.168.0.1")


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="--port 0"):
            check_port(config(port=taken.getsockname()[1]))
    check_port(config(port=free_port("127.0.0.1")))


def test_what_is_not_given_is_planned(smollm2_triattn: Path) -> None:
    assert choose(Settings.load({}), smollm2_triattn).runtime.n_ctx <= 8192
    assert choose(Settings.load({"ctx": 2048}), smollm2_triattn).runtime.n_ctx == 2048
    assert choose(Settings.load({}), smollm2_triattn, evict=False).eviction is None
    assert choose(Settings.load({"budget": "off"}), smollm2_triattn).eviction is None
    written = {"TRIATTN_BUDGET": "300", "TRIATTN_CTX": "1024"}
    asked = choose(Settings.load({"budget": "auto", "ctx": "auto"}, environ=written), smollm2_triattn)
    chosen = choose(Settings.load({}, environ={}), smollm2_triattn)
    assert (asked.runtime, asked.eviction) == (chosen.runtime, chosen.eviction)
    with pytest.raises(UsageError, match="trained for 8,192 tokens"):
        choose(Settings.load({"ctx": 8193}), smollm2_triattn)


# ---- the child


def test_log_lines() -> None:
    assert Line.read('{"type":"log","time":0,"level":"warn","msg":"hm\\n"}') == Line("warn", "hm")
    assert Line.read("plain\n") == Line("info", "plain")
    assert Line.read("[1]") == Line("info", "[1]")
    assert Line.read('{"level":"odd","msg":"x"}') == Line("info", "x")


def supervisor(
    script: str, tmp_path: Path, *, max_restarts: int = 2, start_s: float = 60
) -> tuple[Supervisor, list[Line]]:
    """Keeps a Python script, which is ready as soon as it wrote a file."""
    log: list[Line] = []
    ready = tmp_path / "ready"

    def start() -> ServerProcess:
        ready.unlink(missing_ok=True)
        line = [sys.executable, "-c", f"import sys, time, os, signal; ready = {str(ready)!r}\n{script}"]
        return ServerProcess(line, os.environ, log.append)

    return Supervisor(start, ready.exists, log.append, max_restarts, start_s=start_s), log


READY = "open(ready, 'w').close()\n"


def test_a_child_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    script = """print('{"level":"error","msg":"the reason"}'); sys.exit(3)"""
    kept, _ = supervisor(script, tmp_path)
    with pytest.raises(TriattnError, match="ended with code 3: the reason"):
        kept.run(lambda pid: None)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_child_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool) -> None:
    monkeypatch.setattr("triattn_local.server.child.GRACE_S", 0.5)
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else ""
    script += """for i in range(9): print(f'{{"level":"info","msg":"line {i}"}}', flush=True)\ntime.sleep(600)"""
    kept, _ = supervisor(script, tmp_path, start_s=1.0)
    start = time.monotonic()
    with pytest.raises(TriattnError, match=r"after 1 s; it said at last: line 4 \| .* \| line 8; --start-timeout"):
        kept.run(lambda pid: None)
    assert time.monotonic() - start < 10


def test_one_that_answers_no_more_after_a_crash_is_given_up(tmp_path: Path) -> None:
    once = tmp_path / "once"
    script = f"first = not os.path.exists({str(once)!r}); open({str(once)!r}, 'w').close()\n"
    script += f"if not first: time.sleep(600)\n{READY}time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)"
    kept, _ = supervisor(script, tmp_path, start_s=2.0)
    with pytest.raises(TriattnError, match="does not answer after 2 s"):
        kept.run(lambda pid: None)


def test_crashes_are_mended_up_to_a_limit(tmp_path: Path) -> None:
    kept, log = supervisor(READY + "time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    pids: list[int] = []
    with pytest.raises(TriattnError, match="crashed 3 times within 10 minutes, at last it was ended by SIGKILL"):
        kept.run(pids.append)
    assert len(set(pids)) == 3
    assert sum("starting it again" in line.text for line in log) == 2


def test_an_end_without_error_is_an_end(tmp_path: Path) -> None:
    kept, _ = supervisor(READY + "time.sleep(0.5)", tmp_path)
    assert kept.run(lambda pid: None) is None


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_the_child(tmp_path: Path, signum: int) -> None:
    kept, _ = supervisor(READY + "time.sleep(600)", tmp_path)
    assert kept.run(lambda pid: os.kill(os.getpid(), signum)) == signum


def test_a_signal_while_it_starts(tmp_path: Path) -> None:
    kept, _ = supervisor("time.sleep(600)", tmp_path)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert kept.run(lambda pid: None) == signal.SIGTERM


def test_a_deaf_child_is_killed_by_the_second_signal(tmp_path: Path) -> None:
    kept, _ = supervisor("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "time.sleep(600)", tmp_path)

    def press_twice(pid: int) -> None:
        for delay in (0.2, 0.6):
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()

    start = time.monotonic()
    assert kept.run(press_twice) == signal.SIGINT
    assert time.monotonic() - start < 9


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 1", UsageError),
        ("cudaMalloc failed: out of memory", DoesNotFitError),
        ("something else", TriattnError),
    ],
)
def test_why_it_ended(said: str, error: type[TriattnError]) -> None:
    child = ServerProcess(
        [sys.executable, "-c", f"print({json.dumps(json.dumps({'level': 'error', 'msg': said}))})"], {}, print
    )
    child.wait()
    assert type(why_it_ended(child, 1)) is error


# ---- the command


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, "serve", *args], capture_output=True, text=True, timeout=120, check=False)


def test_what_cannot_be_served(smollm2: Path, smollm2_triattn: Path) -> None:
    assert run("/no/such.gguf").returncode == 3
    without = run(str(smollm2))
    assert without.returncode == 6
    assert "triattn-local convert" in without.stderr
    open_door = run(str(smollm2_triattn), "--host", "0.0.0.0")
    assert open_door.returncode == 2
    assert "--api-key" in open_door.stderr
    assert run(str(smollm2_triattn), "--budget", "10").returncode == 2
    assert open_door.stdout == without.stdout == ""


@pytest.mark.slow
def test_a_flag_that_llama_server_does_not_know(smollm2_triattn: Path) -> None:
    done = run(str(smollm2_triattn), "--port", "0", "--", "--no-such-flag")
    assert done.returncode == 1
    assert "no-such-flag" in done.stderr
    done = run(str(smollm2_triattn), "--port", "0", "--", "--port=18977")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'--port=18977' sets what serve sets itself; give --port" in done.stderr


@pytest.mark.slow
def test_a_killed_child_comes_back(smollm2_triattn: Path, tmp_path: Path) -> None:
    """Requests in flight get an error, the next ones an answer; saved slots are still on the disk."""
    saves = tmp_path / "slots"
    saves.mkdir()
    flags = ["--ctx", "2048", "--budget", "256", "--window", "64", "--", "--slot-save-path", str(saves)]
    with Served(smollm2_triattn, tmp_path / "log", *flags) as server:
        messages = [{"role": "user", "content": prose(200)}]
        first = server.chat(messages, 8)
        saved = server.post("/slots/0?action=save", {"filename": "one"})
        failed: list[BaseException] = []

        def long_one() -> None:
            try:
                server.chat(messages, 1500, ignore_eos=True)
            except (OSError, urllib.error.URLError) as error:
                failed.append(error)

        thread = threading.Thread(target=long_one)
        thread.start()
        time.sleep(1)
        killed = server.child
        os.kill(killed, signal.SIGKILL)
        thread.join(60)
        assert failed

        deadline = time.monotonic() + 240
        while True:
            try:
                assert server.get("/health")["status"] == "ok"
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert server.child != killed
        again = server.chat(messages, 8)
        assert again["choices"][0]["message"] == first["choices"][0]["message"]
        restored = server.post("/slots/0?action=restore", {"filename": "one"})
        assert restored["n_restored"] == saved["n_saved"]
        assert "was ended by SIGKILL; starting it again" in server.text()


@pytest.mark.slow
def test_a_killed_keeper_leaves_no_model_behind(smollm2_triattn: Path, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("Linux alone tells a child that its parent died")
    with Served(smollm2_triattn, tmp_path / "log", "--ctx", "1024", "--budget", "256") as server:
        child = server.child
        server.process.kill()
        deadline = time.monotonic() + 60
        while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.slow
def test_an_idle_model_leaves_the_memory_and_comes_back(smollm2_triattn: Path, tmp_path: Path) -> None:
    """And goes on where it was: the states outlive the sleep."""
    flags = ["--ctx", "2048", "--budget", "256", "--window", "64", "--idle-unload", "1"]
    with Served(smollm2_triattn, tmp_path / "log", *flags) as server:
        messages = [{"role": "user", "content": prose(300)}]
        first = server.chat(messages, 4)
        deadline = time.monotonic() + 120
        while not server.get("/props")["is_sleeping"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        for _ in range(3):  # as one who watches does
            (slot,) = server.get("/slots")
            assert slot["triattention"]["budget"] == 256
            assert slot["triattention"]["n_states"] > 0
            assert server.metric("triattn_states") > 0
            time.sleep(0.3)
        assert server.get("/props")["is_sleeping"], "looking wakes nobody"
        again = server.chat(messages, 4)
        assert again["choices"][0]["message"] == first["choices"][0]["message"]
        n_prompt = again["usage"]["prompt_tokens"]
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == n_prompt - 1


KEEPING = """
{%- for m in messages -%}
<|im_start|>{{ m.role }}\n
{%- if m.reasoning_content and ((clear_thinking is defined and not clear_thinking)
    or not truncate_history_thinking | default(true) or loop.last) -%}
<think>{{ m.reasoning_content }}</think>
{%- endif -%}
{{ m.content }}<|im_end|>\n
{%- endfor -%}
<|im_start|>assistant\n"""
"""a template that can keep the thoughts of earlier answers, by the words of GLM 4.7 and Nemotron 3"""


@pytest.mark.slow
def test_thoughts_of_earlier_answers_stay_out(smollm2_triattn: Path, tmp_path: Path) -> None:
    template = tmp_path / "keeping.jinja"
    template.write_text(KEEPING)
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "a deep thought"},
        {"role": "user", "content": "Two?"},
    ]
    for flags, is_kept in (([], False), (["--reasoning-preserve"], True)):
        more = [
            "--ctx",
            "512",
            "--budget",
            "256",
            "--window",
            "64",
            "--",
            "--chat-template-file",
            str(template),
            *flags,
        ]
        with Served(smollm2_triattn, tmp_path / "log", *more) as server:
            said = server.post("/apply-template", {"messages": messages})["prompt"]
            assert ("a deep thought" in said) == is_kept
            kwargs = {"chat_template_kwargs": {"preserve_reasoning": True}}
            said = server.post("/apply-template", {"messages": messages, **kwargs})["prompt"]
            assert "a deep thought" in said


@pytest.mark.slow
def test_nothing_in_the_environment_moves_it(smollm2_triattn: Path, tmp_path: Path) -> None:
    """Variables, a proxy and llama.cpp's own config.ini would have it at another place, or asked at another."""
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / "config.ini").write_text("[*]\napi-prefix = /llm\nport = 1\nmodels-preset = /no/such\n")
    variables = {"LLAMA_ARG_API_PREFIX": "/llm", "LLAMA_ARG_PORT": "1", "LLAMA_ARG_ALIAS": "aaa"}
    proxy = {"http_proxy": f"http://127.0.0.1:{free_port('127.0.0.1')}", "no_proxy": ""}
    env = {**variables, **proxy, "XDG_CONFIG_HOME": str(tmp_path), "TRIATTN_CONFIG": os.devnull}
    more = ["--ctx", "512", "--budget", "256", "--window", "64", "--alias", "b,c/d"]
    with Served(smollm2_triattn, tmp_path / "log", *more, env=env) as server:
        told = Api(server.base_url).model()
        assert (told.name, told.n_ctx) == ("b-c-d", 512)
        assert "environment LLAMA_ARG_PORT is not heeded; give --port" in server.text()


# ---- what others are told


@pytest.fixture
def described() -> Iterator[Callable[[int], str]]:
    """A server that says what llama-server says of itself, with any context: the base URL."""
    servers: list[http.server.HTTPServer] = []

    def start(n_ctx: int) -> str:
        answers = {
            "/props": {"default_generation_settings": {"n_ctx": n_ctx}, "total_slots": 1, "chat_template": "<think>"},
            "/v1/models": {"data": [{"id": "name"}]},
        }

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = answers.get(self.path)
                self.send_response(200 if found else 404)
                self.end_headers()
                self.wfile.write(json.dumps(found or {"error": {"message": "no such path"}}).encode())

            def log_message(self, *args: object) -> None:
                del args

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in servers:
        server.shutdown()


def test_openclaw_is_told_what_the_server_says(described: Callable[[int], str]) -> None:
    url = described(65536)
    block = provider_block(Api(url, "key"), "mine", launch="model")
    provider = block["models"]["providers"]["mine"]
    assert provider["baseUrl"] == url
    assert provider["apiKey"] == "key"
    assert provider["models"][0]["contextWindow"] == 65536
    assert provider["models"][0]["reasoning"] is True
    assert provider["localService"]["args"][:2] == ["serve", "model"]
    assert str(provider["localService"]["args"][-1]) in url
    assert provider["localService"]["env"] == {"TRIATTN_API_KEY": "key"}
    assert block["agents"]["defaults"]["model"]["primary"] == "mine/name"


def test_openclaw_wants_a_long_context(described: Callable[[int], str]) -> None:
    """It refuses below 4,000 tokens and warns below 8,000; what it sends takes more."""
    with pytest.raises(UsageError, match="3,999 tokens, OpenClaw refuses fewer than 4,000"):
        provider_block(Api(described(3999)), "mine")
    for n_ctx, said in ((4000, "warns below 8,000"), (8000, "about 18,000 tokens"), (32768, None)):
        api = Api(described(n_ctx))
        assert provider_block(api, "mine")["models"]["providers"]["mine"]["models"][0]["contextWindow"] == n_ctx
        remarked = remark(api.model())
        assert (said is None) == (remarked is None)
        assert said is None or said in str(remarked)
        assert n_ctx != 8000 or "warns" not in str(remarked)


def openclaw(*args: object) -> subprocess.CompletedProcess[str]:
    command = [PROGRAM, "openclaw-config", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_openclaw_config_is_written_whole_or_not_at_all(described: Callable[[int], str], tmp_path: Path) -> None:
    written = tmp_path / "openclaw.json"
    nobody = f"http://127.0.0.1:{free_port('127.0.0.1')}/v1"
    assert openclaw(nobody, "--output", written).returncode == 1
    assert openclaw(described(100), "--output", written).returncode == 2
    assert not list(tmp_path.iterdir())

    url = described(65536)
    done = openclaw(url, "--output", written, "--api-key", "secret")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(written.read_text())["models"]["providers"]["triattn"]["baseUrl"] == url
    assert written.stat().st_mode & 0o077 == 0, "the key is in it"
    assert json.loads(openclaw(url, "--api-key", "secret").stdout) == json.loads(written.read_text())

    before = written.read_bytes()
    assert openclaw(url, "--output", written).returncode == 2
    assert openclaw(nobody, "--output", written, "--force").returncode == 1
    assert openclaw(url, "--output", tmp_path / "no" / "such").returncode == 2
    assert written.read_bytes() == before
    assert openclaw(url, "--output", written, "--force", "--provider", "mine").returncode == 0
    assert "mine" in written.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["openclaw.json"]


def test_questions_to_nobody() -> None:
    nobody = Api(f"http://127.0.0.1:{free_port('127.0.0.1')}/v1")
    assert not nobody.is_healthy()
    with pytest.raises(TriattnError, match="triattn-local serve MODEL"):
        nobody.model()
    with pytest.raises(UsageError, match="no URL"):
        Api("localhost")


def test_the_program_is_there() -> None:
    assert executable().name == "llama-server"
