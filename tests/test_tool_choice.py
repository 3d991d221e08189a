"""A call that a request insists on: `tool_choice` "required", and a function by its name, held by the grammar."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from served import Served
from tools_of_clients import NOW, THINKING_TEMPLATE, WEATHER

from triattn_local.server.api import Api
from triattn_local.server.round_trip import call_a_tool

pytestmark = pytest.mark.slow

FLAGS = ("--ctx", "2048", "--budget", "512", "--window", "64")
QUESTION = [{"role": "user", "content": "What is the weather in Oslo?"}]


@pytest.fixture(scope="module", params=["knows no tools", "knows tools"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """SmolLM2's template knows no tools; Qwen2.5-Coder's does, and the model talks before it calls, if it may."""
    model: Path = request.getfixturevalue("smollm2_triattn" if request.param == "knows no tools" else "qwen25_triattn")
    with Served(model, tmp_path_factory.mktemp("choice") / "log", *FLAGS) as server:
        yield server


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def calls(served: Served, choice: object, messages: list[dict[str, Any]] | None = None) -> list[tuple[str, Any]]:
    """What is called, and with what; the answer is nothing else."""
    reply = served.chat(messages or QUESTION, 64, tools=[WEATHER, NOW], tool_choice=choice)["choices"][0]
    assert reply["finish_reason"] == "tool_calls"
    assert not reply["message"]["content"]
    called = [call["function"] for call in reply["message"]["tool_calls"]]
    return [(function["name"], json.loads(function["arguments"])) for function in called]


def test_a_call_that_is_required_comes_at_once(served: Served) -> None:
    ((name, arguments), *_) = calls(served, "required")
    assert name in ("get_weather", "now")
    assert arguments in ({"city": "Oslo"}, {"city": "Rome"}) if name == "get_weather" else arguments == {}


@pytest.mark.parametrize(("name", "wanted"), [("now", [{}]), ("get_weather", [{"city": "Oslo"}, {"city": "Rome"}])])
def test_a_function_that_is_named_is_the_one_that_is_called(served: Served, name: str, wanted: list[Any]) -> None:
    called = calls(served, named(name))
    assert {known for known, _ in called} == {name}
    assert all(arguments in wanted for _, arguments in called)


def test_a_stream_of_a_call_is_the_whole_call(served: Served) -> None:
    client = openai.OpenAI(base_url=served.base_url, api_key="none", max_retries=0, timeout=300)
    asked: dict[str, Any] = {"model": "any", "messages": QUESTION, "tools": [WEATHER, NOW], "tool_choice": named("now")}
    chunks = list(client.chat.completions.create(**asked, max_tokens=64, temperature=0, stream=True))
    parts = [part for c in chunks if c.choices for part in c.choices[0].delta.tool_calls or ()]
    assert [part.function.name for part in parts if part.function and part.function.name] == ["now"]
    assert json.loads("".join(part.function.arguments or "" for part in parts if part.function)) == {}
    assert not any(c.choices[0].delta.content for c in chunks if c.choices)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"


def test_the_prompt_tells_of_all_tools_whichever_is_named(served: Served) -> None:
    """So that prompts of one conversation begin alike."""
    n_tokens = {
        str(choice): served.chat(QUESTION, 1, tools=[WEATHER, NOW], tool_choice=choice)["usage"]["prompt_tokens"]
        for choice in ("required", named("now"), named("get_weather"))
    }
    assert len(set(n_tokens.values())) == 1
    assert n_tokens["required"] > served.chat(QUESTION, 1)["usage"]["prompt_tokens"] + 50


def test_a_round_there_and_back(served: Served) -> None:
    """Earlier calls and their results are in the conversation; `doctor --server` asks the same."""
    api = Api(served.base_url)
    assert call_a_tool(api, api.model().name) > 0


def test_a_choice_that_cannot_be(served: Served) -> None:
    for choice, words in (
        (named("fly"), 'the function \\"fly\\", which is not among the tools'),
        ({"type": "mcp"}, "tool_choice must be"),
        ({"type": "function", "function": {}}, "tool_choice must be"),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            served.chat(QUESTION, 1, tools=[WEATHER, NOW], tool_choice=choice)
        assert caught.value.code == 400
        assert words in caught.value.read().decode()


def test_what_is_not_insisted_on_is_as_ever(served: Served) -> None:
    """ "auto" and "none" are llama-server's own."""
    plain = served.chat(QUESTION, 8)["choices"][0]["message"]["content"]
    none = served.chat(QUESTION, 8, tools=[WEATHER, NOW], tool_choice="none")["choices"][0]
    assert none["message"]["content"]
    assert "tool_calls" not in none["message"]
    if "SmolLM2" in served.get("/props")["model_path"]:
        assert none["message"]["content"] == plain


def test_a_model_may_think_before_its_call(smollm2_triattn: Path, tmp_path: Path) -> None:
    template = tmp_path / "thinking.jinja"
    template.write_text(THINKING_TEMPLATE)
    flags = [*FLAGS, "--think-budget", "6", "--", "--chat-template-file", str(template)]
    with Served(smollm2_triattn, tmp_path / "log", *flags) as server:
        reply = server.chat(QUESTION, 80, tools=[WEATHER, NOW], tool_choice=named("now"))["choices"][0]
    assert reply["message"]["reasoning_content"]
    assert [call["function"]["name"] for call in reply["message"]["tool_calls"]] == ["now"]
    assert not reply["message"]["content"]
