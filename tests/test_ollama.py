"""Ollama's routes of a served model, asked with Ollama's own client, and with raw requests."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import ollama
import pytest
from served import Served
from texts import prose
from tools_of_clients import NOW, TOOLS_IN_TEMPLATE

pytestmark = pytest.mark.slow

CTX, NAME = 2048, "small"
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{{ '<think>\n' if enable_thinking is not defined or enable_thinking else '<think>\n\n</think>\n\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def served(smollm2_triattn: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("ollama") / "log"
    flags = ["--ctx", str(CTX), "--budget", "256", "--window", "64", "--alias", NAME, *TOOLS_IN_TEMPLATE]
    with Served(smollm2_triattn, log, *flags) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> ollama.Client:
    return ollama.Client(served.root)


def ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def raw(served: Served, path: str, body: object) -> tuple[int, Any]:
    """The status and the JSON of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(served.root + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_what_is_served(client: ollama.Client, served: Served) -> None:
    assert tuple(int(part) for part in served.get("/api/version")["version"].split(".")) >= (0, 6, 4)
    (model,) = client.list().models
    assert model.model == NAME
    assert model.size == served.get("/v1/models")["data"][0]["meta"]["size"]
    assert model.digest is not None
    assert len(model.digest) == 64
    assert model.modified_at is not None
    assert model.modified_at > datetime(2020, 1, 1, tzinfo=timezone.utc)
    assert model.details is not None
    assert (model.details.family, model.details.parameter_size) == ("llama", "134.52M")
    assert model.details.quantization_level

    shown = client.show(NAME)
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == CTX  # the served one, by which clients cut
    assert shown.modelinfo["llama.block_count"] == 30
    assert shown.template == served.get("/props")["chat_template"]
    assert shown.capabilities == ["completion", "tools"]


def test_a_chat_is_that_of_the_other_route(client: ollama.Client, served: Served) -> None:
    options = {"temperature": 0, "num_predict": 24}
    wanted = served.chat(ask("Tell me about the sea."), 24)
    whole = client.chat(NAME, ask("Tell me about the sea."), options=options)
    assert whole.message.content == wanted["choices"][0]["message"]["content"]
    assert whole.done
    assert whole.done_reason == "length"
    assert whole.eval_count == 24
    assert whole.prompt_eval_count == wanted["usage"]["prompt_tokens"]
    assert whole.eval_duration is not None
    assert whole.total_duration is not None
    assert 0 < whole.eval_duration < whole.total_duration

    parts = list(client.chat(NAME, ask("Tell me about the sea."), options=options, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert len(parts) > 5
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].done_reason == "length"
    assert parts[-1].eval_count == 24
    told = datetime.fromisoformat((parts[0].created_at or "").replace("Z", "+00:00"))
    assert abs(datetime.now(timezone.utc) - told) < timedelta(minutes=5)


def test_a_stream_is_told_as_it_comes(served: Served) -> None:
    data = json.dumps(
        {"model": NAME, "messages": ask("Tell me about the sea."), "options": {"num_predict": 40}}
    ).encode()
    with urllib.request.urlopen(urllib.request.Request(served.root + "/api/chat", data), timeout=300) as answer:
        assert answer.headers["Content-Type"].startswith("application/x-ndjson")
        times = []
        for line in answer:
            assert json.loads(line)["model"] == NAME
            times.append(time.monotonic())
    assert times[-1] - times[0] > (times[-1] - times[len(times) // 2]) > 0


def test_options_are_heeded(client: ollama.Client, served: Served) -> None:
    greedy = client.chat(NAME, ask("Count."), options={"temperature": 0, "num_predict": 12}).message.content or ""
    word = greedy.split()[3]
    cut = client.chat(NAME, ask("Count."), options={"temperature": 0, "num_predict": 12, "stop": [word]})
    assert cut.message.content == greedy[: greedy.index(word)]
    assert cut.done_reason == "stop"
    warm = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "seed": 5, "num_predict": 12}
    texts = [
        client.chat(NAME, ask("Count."), options={**warm, **more}).message.content for more in ({}, {}, {"seed": 6})
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    narrow = client.chat(NAME, ask("Count."), options={**warm, "top_p": 1e-6}).message.content
    assert narrow == greedy


def test_a_context_that_is_not_served_is_told(client: ollama.Client, served: Served) -> None:
    client.chat(NAME, ask("Hello"), options={"num_ctx": CTX, "num_predict": 1})
    assert "num_ctx" not in served.text()
    client.chat(NAME, ask("Hello"), options={"num_ctx": 65536, "num_predict": 1})
    assert f"num_ctx 65536, and the context is of {CTX} tokens: serve with --ctx 65536" in served.text()
    status, said = raw(served, "/api/chat", {"messages": ask(prose(20_000)), "stream": False})
    assert status == 400
    assert "exceeds the available context size" in said["error"]


def test_generate(client: ollama.Client, served: Served) -> None:
    options = {"temperature": 0, "num_predict": 16}
    told = [{"role": "system", "content": "You are a pirate."}, *ask("Who are you?")]
    wanted = served.chat(told, 16)["choices"][0]["message"]["content"]
    whole = client.generate(NAME, "Who are you?", system="You are a pirate.", options=options)
    assert whole.response == wanted
    assert whole.eval_count == 16
    parts = list(client.generate(NAME, "Who are you?", system="You are a pirate.", options=options, stream=True))
    assert "".join(part.response or "" for part in parts) == wanted
    assert parts[-1].done_reason == "length"

    plain = served.post("/v1/completions", {"prompt": "The sea is", "max_tokens": 8, "temperature": 0})
    untouched = client.generate(NAME, "The sea is", raw=True, options={**options, "num_predict": 8})
    assert untouched.response == plain["choices"][0]["text"]
    assert untouched.prompt_eval_count == plain["usage"]["prompt_tokens"]


def test_nothing_asked_is_a_model_loaded(client: ollama.Client) -> None:
    assert client.generate(NAME).done_reason == "load"
    assert client.chat(NAME, []).done_reason == "load"


def test_a_format_is_kept_to(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    reply = client.chat(NAME, ask("A number!"), format=schema, options={"num_predict": 60, "temperature": 0})
    assert json.loads(reply.message.content or "") == {"n": 7}


def test_tools_and_what_came_of_a_call(client: ollama.Client, served: Served) -> None:
    prompt = served.post("/apply-template", {"messages": ask("What time is it?"), "tools": [NOW]})["prompt"]
    assert "now" in prompt
    reply = client.chat(NAME, ask("What time is it?"), tools=[NOW], options={"num_predict": 8, "temperature": 0})
    tokens = served.post("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"]
    assert reply.prompt_eval_count == len(tokens)

    # a call and its result go back in Ollama's form
    turn = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "now", "arguments": {}}}]}
    told = [*ask("What time is it?"), turn, {"role": "tool", "tool_name": "now", "content": "half past nine"}]
    called = {"id": "call_0", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    other = [
        *ask("What time is it?"),
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_0", "content": "half past nine"},
    ]
    back = client.chat(NAME, told, tools=[NOW], options={"num_predict": 8, "temperature": 0})
    wanted = served.chat(other, 8, tools=[NOW])
    assert back.prompt_eval_count == wanted["usage"]["prompt_tokens"]
    assert back.message.content == wanted["choices"][0]["message"]["content"]


def test_a_model_that_calls(smollm2_triattn: Path, served: Served, tmp_path: Path) -> None:
    (begin,) = served.post("/tokenize", {"content": "<issue_start>", "parse_special": True})["tokens"]
    flags = ["--ctx", "512", "--budget", "256", "--window", "64", *TOOLS_IN_TEMPLATE, "--logit-bias", f"{begin}+100"]
    with Served(smollm2_triattn, tmp_path / "log", *flags) as server:
        client = ollama.Client(server.root)
        options = {"num_predict": 60, "temperature": 0}
        whole = client.chat(NAME, ask("What time is it?"), tools=[NOW], options=options)
        parts = list(client.chat(NAME, ask("What time is it?"), tools=[NOW], options=options, stream=True))
        cut = client.chat(NAME, ask("What time is it?"), tools=[NOW], options={**options, "num_predict": 3})
    for calls in (whole.message.tool_calls, [call for part in parts for call in part.message.tool_calls or ()]):
        assert calls
        assert all((call.function.name, call.function.arguments) == ("now", {}) for call in calls)
    assert parts[-1].done
    assert (cut.message.tool_calls, cut.done_reason) == (None, "length")


def test_thinking_is_told_apart_and_turned_off(smollm2_triattn: Path, tmp_path: Path) -> None:
    template = tmp_path / "thinking.jinja"
    template.write_text(THINKING)
    flags = ["--ctx", "512", "--budget", "256", "--window", "64", "--think-budget", "6"]
    with Served(smollm2_triattn, tmp_path / "log", *flags, "--", "--chat-template-file", str(template)) as server:
        client = ollama.Client(server.root)
        options = {"num_predict": 24, "temperature": 0}
        whole = client.chat(NAME, ask("Hello!"), think=True, options=options)
        parts = list(client.chat(NAME, ask("Hello!"), think=True, options=options, stream=True))
        off = client.chat(NAME, ask("Hello!"), think=False, options=options)
        generated = client.generate(NAME, "Hello!", think=True, options=options)
        assert client.show(NAME).capabilities == ["completion", "thinking"]
    assert whole.message.thinking
    assert whole.message.content
    assert "".join(part.message.thinking or "" for part in parts) == whole.message.thinking
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert not off.message.thinking
    assert off.message.content
    assert (generated.thinking, generated.response) == (whole.message.thinking, whole.message.content)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "?", "images": ["aGk="]}]}, "images cannot be taken"),
        ("/api/generate", {"prompt": "?", "images": ["aGk="]}, "images cannot be taken"),
        ("/api/generate", {"prompt": "?", "template": "{{ .Prompt }}"}, "template cannot be taken"),
        ("/api/generate", {"prompt": "def f(", "suffix": "return 1"}, "Infill is not supported by this model"),
        ("/api/chat", {"messages": "hello"}, "messages must be an array"),
        ("/api/chat", {"messages": ["hello"]}, "each message must be an object"),
        ("/api/chat", {"messages": ask("?"), "options": 3}, "options must be an object"),
        ("/api/chat", {"messages": ask("?"), "options": {"num_predict": "many"}}, "number"),
        ("/api/chat", {"messages": ask("?"), "format": "yaml"}, "format must be"),
        ("/api/chat", {"messages": ask("?"), "think": 3}, "think must be"),
        ("/api/chat", [], "the request must be a JSON object"),
        ("/api/chat", b"{", "parse error"),
        ("/api/show", b"", "parse error"),
    ],
)
def test_what_cannot_be_done_is_said(served: Served, path: str, body: object, words: str) -> None:
    status, said = raw(served, path, body)
    assert 400 <= status <= 501
    assert isinstance(said["error"], str)  # not an object, as elsewhere: Ollama's clients show it
    assert words in said["error"]


def test_a_client_that_leaves_frees_its_slot(client: ollama.Client, served: Served) -> None:
    stream = client.chat(NAME, ask("Tell me all."), options={"num_predict": 1500, "temperature": 0}, stream=True)
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    assert served.idle(within=20.0) < 20.0


def test_waiting_for_a_slot_is_told_in_lines(served: Served) -> None:
    """A comment of SSE would be no line of JSON."""
    first = urllib.request.Request(
        served.root + "/api/chat",
        json.dumps({"messages": ask("Tell me all."), "options": {"num_predict": 1200, "temperature": 0}}).encode(),
    )
    second = urllib.request.Request(
        served.root + "/api/generate", json.dumps({"prompt": "Hello", "options": {"num_predict": 2}}).encode()
    )
    with urllib.request.urlopen(first, timeout=300) as busy:
        busy.readline()
        with urllib.request.urlopen(second, timeout=300) as waiting:
            lines = [json.loads(line) for line in waiting]
    assert lines[-1]["done"]
    assert all(line["model"] == NAME for line in lines)


def test_a_stream_says_that_its_connection_ends(served: Served) -> None:
    """It is closed behind it: a client that asked on it again would be told nothing."""
    connection = http.client.HTTPConnection(served.root.removeprefix("http://"))
    body = json.dumps({"model": NAME, "prompt": "Hello!", "options": {"num_predict": 2}})
    connection.request("POST", "/api/generate", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.getheader("Connection") == "close"
    assert json.loads(response.read().splitlines()[-1])["done"]
    connection.close()
