"""What agents rely on, asked of a served model with the real client of OpenAI's protocol, and with raw SSE."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from machine import slowness
from served import START_S, Served
from texts import prose
from tools_of_clients import NOW, THINKING_TEMPLATE, TOOLS_IN_TEMPLATE, WEATHER

from triattn_local.server.api import Api
from triattn_local.server.choose import free_port
from triattn_local.server.round_trip import assemble, call_a_tool

pytestmark = pytest.mark.slow

PROGRAM = Path(sys.executable).parent / "triattn-local"
CTX, KEY = 2048, "sesame"


@pytest.fixture(scope="module")
def served(smollm2_triattn: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("served") / "log"
    flags = ["--ctx", str(CTX), "--budget", "256", "--window", "64", "--alias", "small/model", *TOOLS_IN_TEMPLATE]
    with Served(smollm2_triattn, log, *flags) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.base_url, api_key="none", max_retries=0, timeout=300)


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def calling(served: Served) -> dict[str, Any]:
    """What makes this small model call once: where the grammar lets it, it ends its turn, or else begins a call."""
    text = "<issue_start><|im_end|>"
    begin, end = served.post("/tokenize", {"content": text, "parse_special": True})["tokens"]
    return {"tool_choice": "required", "temperature": 0, "logit_bias": {str(begin): 100, str(end): 200}}


def test_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="any", messages=ask("Hello!"), max_tokens=16, temperature=0)
    assert reply.choices[0].message.content
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_stream_is_what_the_whole_answer_is(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "any",
        "messages": ask("Tell me about the sea."),
        "max_tokens": 40,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    finished = [choice.finish_reason for c in chunks for choice in c.choices if choice.finish_reason]
    assert finished == [whole.choices[0].finish_reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens_details is not None
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_raw_stream_ends_with_done(served: Served) -> None:
    events = list(served.events({"messages": ask("Hi"), "max_tokens": 4, "stream_options": {"include_usage": True}}))
    assert events[-1] == "[DONE]"
    last = json.loads(events[-2])
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] <= 4
    assert json.loads(events[-3])["choices"][0]["finish_reason"] in ("length", "stop")


def test_tool_call(client: openai.OpenAI, calling: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"model": "any", "messages": ask("The weather in Oslo?"), "tools": [WEATHER], **calling}
    usage = {"include_usage": True}
    chunks = list(client.chat.completions.create(**asked, max_tokens=100, stream=True, stream_options=usage))
    parts = [part for c in chunks for choice in c.choices for part in choice.delta.tool_calls or []]
    assert parts[0].index == 0
    assert parts[0].id
    assert parts[0].type == "function"
    assert parts[0].function is not None
    assert parts[0].function.name == "get_weather"
    assert all(part.id is None and (part.function is None or part.function.name is None) for part in parts[1:])
    message = assemble([c.model_dump() for c in chunks])
    assert message["finish_reason"] == "tool_calls"
    assert isinstance(json.loads(message["tool_calls"][0]["function"]["arguments"])["city"], str)
    assert message["usage"]["completion_tokens"] > 0


def test_tool_without_arguments(served: Served, calling: dict[str, Any]) -> None:
    body = {"messages": ask("What time is it?"), "tools": [NOW], "max_tokens": 100, **calling}
    chunks = [json.loads(data) for data in served.events(body) if data != "[DONE]"]
    call = assemble(chunks)["tool_calls"][0]
    assert call["function"]["name"] == "now"
    assert json.loads(call["function"]["arguments"]) == {}


def test_length_inside_a_call(served: Served, calling: dict[str, Any]) -> None:
    body = {"messages": ask("Weather in Oslo?"), "tools": [WEATHER], "max_tokens": 14, **calling}
    chunks = [json.loads(data) for data in served.events(body) if data != "[DONE]"]
    message = assemble(chunks)
    assert message["finish_reason"] == "length"
    assert message["tool_calls"]
    assert message["content"] == ""


def test_a_tool_result_is_taken_up(served: Served) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        *ask("Weather in Oslo?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "clear, -3 degrees"},
    ]
    reply = served.chat(messages, 16, tools=[WEATHER], tool_choice="auto")
    assert reply["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls")


def test_typed_content_and_unknown_fields(served: Served) -> None:
    parts = [{"type": "text", "text": "Say"}, {"type": "text", "text": "hello."}]
    body = {"messages": [{"role": "user", "content": parts}], "store": True, "reasoning_effort": "low", "x_unknown": {}}
    assert served.post("/v1/chat/completions", {**body, "max_tokens": 4})["choices"]


def test_models_and_props_say_the_logical_context(client: openai.OpenAI, served: Served) -> None:
    model = client.models.list().data[0]
    assert model.id == "small-model"
    assert served.get("/v1/models")["data"][0]["meta"]["n_ctx"] == CTX
    props = served.get("/props")
    assert props["default_generation_settings"]["n_ctx"] == CTX
    assert props["chat_template_caps"]
    assert served.said["n_ctx"] == CTX


def test_overflow_before(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="any", messages=ask(prose(CTX)), max_tokens=4, stream=True)
    assert error.value.status_code == 400
    told: Any = error.value.body
    assert told["type"] == "exceed_context_size_error"
    assert told["n_ctx"] == CTX
    assert told["n_prompt_tokens"] > CTX
    assert "exceeds the available context size" in told["message"]


def test_overflow_during(served: Served) -> None:
    """The answer stops at the end of the context, and says so."""
    tokens = served.post("/tokenize", {"content": prose(CTX)})["tokens"]
    nearly_all = served.post("/detokenize", {"tokens": tokens[: CTX - 100]})["content"]
    reply = served.chat(ask(nearly_all), CTX, ignore_eos=True)
    assert reply["choices"][0]["finish_reason"] == "length"
    assert CTX - 1 <= reply["usage"]["total_tokens"] <= CTX + 1


def test_requests_queue(served: Served) -> None:
    """One slot, three at once: all are answered."""
    replies: list[dict[str, Any]] = []

    def ask_once(i: int) -> None:
        replies.append(served.chat(ask(f"Count to {i}."), 8))

    threads = [threading.Thread(target=ask_once, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(replies) == 3


def test_a_stream_that_waits_for_a_slot_is_not_silent(served: Served) -> None:
    """Headers and comments come before its turn; a prompt that is too long is refused as if nobody were before it."""
    long = {"messages": ask("Count."), "max_tokens": 2000, "ignore_eos": True, "stream": True}
    before, _ = stream(served, long)
    try:
        body = {"messages": ask("Hi"), "max_tokens": 4, "stream": True, "sse_ping_interval": 1}
        start = time.monotonic()
        waiting, answer = stream(served, body)
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.readline() == b":\n"
        assert time.monotonic() - start < 5 * slowness()
        assert served.metric("requests_deferred") == 1
        too_long = json.dumps({**body, "messages": ask(prose(CTX))}).encode()
        assert served.status("POST", "/v1/chat/completions", too_long) == 400
        assert served.metric("requests_deferred") == 1
    finally:
        before.close()
    lines = [line.decode().rstrip() for line in answer]
    waiting.close()
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert {line for line in lines if not line.startswith("data: ")} <= {"", ":"}
    assert events[-1] == "[DONE]"
    assert assemble([json.loads(event) for event in events[:-1]])["finish_reason"] in ("length", "stop")


def test_a_long_prompt_is_not_silent(served: Served) -> None:
    body = {"messages": ask(prose(1000, seed=77)), "max_tokens": 2, "stream": True, "sse_ping_interval": 1}
    start = time.monotonic()
    connection, answer = stream(served, body)
    n_comments = 0
    while not (line := answer.readline()).startswith(b"data:"):
        n_comments += line == b":\n"
    assert n_comments >= int(time.monotonic() - start) - 1
    assert b"[DONE]" in answer.read()
    connection.close()


def stream(served: Served, body: dict[str, Any]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A chat's stream, raw, once its headers are there."""
    connection = http.client.HTTPConnection(urlsplit(served.root).netloc, timeout=300)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection, connection.getresponse()


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_client_that_leaves_frees_its_slot(served: Served, phase: str) -> None:
    words = 1200 if phase == "prefill" else 5
    body = {"messages": ask(prose(words, seed=len(phase))), "max_tokens": 2000, "stream": True, "ignore_eos": True}
    connection = http.client.HTTPConnection(urlsplit(served.root).netloc, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    if phase == "decode":
        answer = connection.getresponse()
        assert b"data:" in answer.readline() + answer.readline() + answer.readline()
    else:
        deadline = time.monotonic() + 30
        while not any(slot["is_processing"] for slot in served.get("/slots")):
            assert time.monotonic() < deadline
    connection.close()
    assert served.idle() < 1.0 * slowness()


def test_slots_and_metrics_tell_of_eviction(served: Served) -> None:
    before = served.metric("triattn_rounds_total")
    served.chat(ask(prose(600, seed=9)), 4)
    slot = served.get("/slots")[0]["triattention"]
    assert slot["budget"] == served.metric("triattn_budget") == 256
    assert 0 < slot["n_cells_used"] <= slot["n_cells"]
    assert slot["pos_whole"] > 0
    assert slot["n_rounds"] > before
    assert served.metric("triattn_rounds_total") == slot["n_rounds"]
    assert served.metric("triattn_tokens_evicted_total") == slot["n_tokens_evicted"] > 0
    assert served.metric("triattn_kv_bytes") < served.metric("triattn_kv_bytes_full")


def test_a_tool_call_there_and_back(served: Served, calling: dict[str, Any]) -> None:
    """What `doctor --server` does."""
    assert call_a_tool(Api(served.base_url), "any", **calling) > 0
    command = [PROGRAM, "doctor", "--server", served.base_url, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["server"]["status"] == "ok"
    # without help this model does not call, and doctor says so
    assert checks["tool call"]["status"] == "ok" or "was to call a tool, and says" in checks["tool call"]["found"]


def test_reasoning_is_told_apart(smollm2_triattn: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(THINKING_TEMPLATE)
    flags = ["--ctx", "2048", "--budget", "256", "--window", "64", "--", "--chat-template-file", str(template)]
    with Served(smollm2_triattn, tmp_path / "log", *flags) as server:
        body = {"messages": ask("Why?"), "max_tokens": 60, "grammar": 'root ::= "Because.</think>" "So."'}
        chunks = [json.loads(data) for data in server.events({**body, "temperature": 0}) if data != "[DONE]"]
        message = assemble(chunks)
        assert message["reasoning_content"].strip() == "Because."
        assert message["content"].strip() == "So."
        kinds = [kind for c in chunks for choice in c["choices"] for kind in choice["delta"] if choice["delta"][kind]]
        assert kinds.index("reasoning_content") < kinds.index("content")


def test_key_loading_and_stop(smollm2_triattn: Path, tmp_path: Path) -> None:
    port = free_port("127.0.0.1")
    flags = ["--ctx", "2048", "--budget", "256", "--port", str(port), "--api-key", KEY]
    server = Served(smollm2_triattn, tmp_path / "log", *flags, wait=False)
    seen: set[int] = set()
    deadline = time.monotonic() + START_S
    while 200 not in seen:
        assert time.monotonic() < deadline
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                seen.add(answer.status)
        except urllib.error.HTTPError as error:
            seen.add(error.code)
        except (OSError, http.client.HTTPException):
            time.sleep(0.001)
    assert seen == {503, 200}
    server.announced()
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.base_url, api_key="wrong", max_retries=0).chat.completions.create(
            model="any", messages=ask("Hi"), max_tokens=2
        )
    good = openai.OpenAI(base_url=server.base_url, api_key=KEY, max_retries=0)
    assert good.chat.completions.create(model="any", messages=ask("Hi"), max_tokens=2).choices
    assert KEY not in Path(f"/proc/{server.child}/cmdline").read_text()
    assert server.close() == 0
