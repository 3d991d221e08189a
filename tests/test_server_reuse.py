"""Prompts go on from saved states: what is read again, what comes out, what it costs in memory.

TRIATTN_TEST_FULL=1 asks as often as the promise says.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import agent_trace
import pytest
from served import Served, rss_bytes
from texts import prose

pytestmark = pytest.mark.slow

FULL = bool(os.environ.get("TRIATTN_TEST_FULL"))
FLAGS = ("--budget", "256", "--window", "64", "--batch", "128")


def test_an_agent_reads_only_what_is_new(smollm2_triattn: Path, tmp_path: Path) -> None:
    with Served(smollm2_triattn, tmp_path / "log", *FLAGS, "--ctx", "8192") as server:
        turns = agent_trace.run(server, 1200, 4)
    assert turns[0].n_prompt > 1100
    for turn in turns[1:]:
        assert turn.n_common > 1100
        assert turn.share >= 0.95, turns


def test_another_conversation_starts_behind_system_prompt_and_tools(smollm2_triattn: Path, tmp_path: Path) -> None:
    with Served(smollm2_triattn, tmp_path / "log", *FLAGS, "--ctx", "8192") as server:
        one = agent_trace.Agent(server, 1200, seed=1)
        other = agent_trace.Agent(server, 1200, seed=2)
        one.messages[-1]["content"] += prose(300)  # far beyond what a rewind could take back
        server.post("/v1/chat/completions", one.body(4))
        details = server.post("/v1/chat/completions", other.body(4))["usage"]["prompt_tokens_details"]
        shared = zip(one.tokens(one.messages), other.tokens(other.messages), strict=False)
        n_shared = next(i for i, (a, b) in enumerate(shared) if a != b)
        assert n_shared > 1100
        assert details["cached_tokens"] >= 0.95 * n_shared
        assert server.metric("triattn_restored_total") == 1


MERGED = """
{%- if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}{% set rest = messages[1:] %}
{%- else %}{% set first = '' %}{% set rest = messages %}{% endif %}
{%- for m in rest -%}
<|im_start|>{{ m.role }}\n{{ first if loop.first else '' }}{{ m.content }}<|im_end|>\n
{%- endfor -%}
<|im_start|>assistant\n"""
"""a template that knows no system prompt, and puts it into the first message, as Gemma's and Mistral's do"""


@pytest.mark.parametrize(
    "before",
    [[], [""], ["", "You are an agent."], ["You are an agent.", "Speak like a pirate.", ""]],
    ids=["alone", "none", "the beginning of it", "others"],
)
def test_a_system_prompt_inside_the_first_message_is_found(
    before: list[str], smollm2_triattn: Path, tmp_path: Path
) -> None:
    """Whatever was asked before: the prefixes of other conversations begin this prompt too, and are not its own."""
    template = tmp_path / "merged.jinja"
    template.write_text(MERGED)
    system = f"You are an agent. {prose(250)}"
    more = ["--ctx", "4096", "--", "--chat-template-file", str(template)]
    with Served(smollm2_triattn, tmp_path / "log", *FLAGS, *more) as server:

        def cached(system: str, seed: int) -> int:
            turns = [{"role": "user", "content": prose(130, seed=seed)}]
            reply = server.chat([{"role": "system", "content": system}, *turns] if system else turns, 2)
            return int(reply["usage"]["prompt_tokens_details"]["cached_tokens"])

        for i, other in enumerate(before):
            cached(other, 10 + i)
        n_system = len(server.post("/tokenize", {"content": system})["tokens"])
        cached(system, 1)
        assert cached(system, 2) >= 0.95 * n_system
        cached("", 3)
        assert cached(system, 4) >= 0.95 * n_system


@pytest.mark.parametrize("model", ["smollm2_triattn", "gemma3_triattn"])
def test_a_client_that_drops_the_thinking_reads_only_what_is_new(
    model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The answer goes past the window, and comes back shorter: where it began is the state to go on from.

    Also with layers of a sliding window beside those that evict.
    """
    with Served(request.getfixturevalue(model), tmp_path / "log", *FLAGS, "--ctx", "4096") as server:
        messages = [{"role": "user", "content": prose(400)}]
        n_prompt = server.chat(messages, 200, ignore_eos=True)["usage"]["prompt_tokens"]
        messages += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Go on."}]
        details = server.chat(messages, 4)["usage"]["prompt_tokens_details"]
        assert details["cached_tokens"] >= n_prompt - 1


@pytest.mark.parametrize(("cold", "share"), [("off", 0.8), ("auto", 0.7)])
def test_a_draft_model_goes_the_same_way(cold: str, share: float, smollm2_triattn: Path, tmp_path: Path) -> None:
    """A state is that of both models; drafts that a model makes for itself are taken.

    With the cold tier some of them are not: draft and target read other batches, and recall a few tokens apart.
    """
    draft = ["--cold", cold, "--", "--model-draft", str(smollm2_triattn), "--spec-type", "draft-simple"]
    with Served(smollm2_triattn, tmp_path / "log", *FLAGS, "--ctx", "4096", *draft) as server:
        messages = [{"role": "user", "content": prose(400)}]
        reply = server.chat(messages, 100, ignore_eos=True)
        assert reply["timings"]["draft_n_accepted"] > share * reply["timings"]["draft_n"] > 40
        server.chat([{"role": "user", "content": prose(200, seed=1)}], 2)  # takes the slot
        messages += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Go on."}]
        details = server.chat(messages, 8, ignore_eos=True)["usage"]["prompt_tokens_details"]
        assert details["cached_tokens"] >= reply["usage"]["prompt_tokens"] - 1
        n_restored = server.metric("triattn_restored_total")
        assert n_restored == 1 if cold == "off" else n_restored >= 1
        assert server.metric("triattn_rounds_total") > 0


def test_a_draft_model_without_statistics_keeps_its_first_and_last_tokens(
    smollm2: Path, smollm2_triattn: Path, tmp_path: Path
) -> None:
    draft = ["--", "--model-draft", str(smollm2), "--spec-type", "draft-simple"]
    with Served(smollm2_triattn, tmp_path / "log", *FLAGS, "--ctx", "4096", *draft) as server:
        reply = server.chat([{"role": "user", "content": prose(400)}], 60, ignore_eos=True)
        assert reply["timings"]["draft_n_accepted"] > 0
        assert server.metric("triattn_rounds_total") > 0
        assert "policy streaming" in server.text()


def test_no_rewind_to_where_the_draft_model_cannot_go(smollm2_triattn: Path, tmp_path: Path) -> None:
    """Drafts fill its cache sooner, so that its rounds come first: in between, the model alone can still be rewound."""
    flags = ["--budget", "128", "--window", "32", "--batch", "128", "--ctx", "2048", "--cache-ram", "0"]
    draft = ["--model-draft", str(smollm2_triattn), "--spec-type", "draft-simple", "--spec-draft-n-max", "32"]
    with Served(smollm2_triattn, tmp_path / "log", *flags, "--", *draft) as server:
        child = server.child
        for n in (49, 52, 55):
            messages = [{"role": "user", "content": prose(150)}]
            server.chat(messages, n, ignore_eos=True)
            messages += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Go on."}]
            server.chat(messages, 2)
        assert server.child == child, server.text()[-2000:]


def test_the_memory_for_states_is_bounded(smollm2_triattn: Path, tmp_path: Path) -> None:
    with Served(smollm2_triattn, tmp_path / "log", *FLAGS, "--ctx", "4096", "--cache-ram", "32") as server:
        for i in range(8):
            server.chat([{"role": "user", "content": prose(300, seed=i)}], 2)
        assert 0 < server.metric("triattn_state_bytes") <= 32 << 20
        assert server.metric("triattn_states") < 8


@pytest.mark.parametrize(("n_conversations", "n_slots"), [(2, 1), (4, 4)])
def test_alternating_conversations_answer_as_alone(
    smollm2_triattn: Path, tmp_path: Path, n_conversations: int, n_slots: int
) -> None:
    n_requests = 200 if FULL else 8
    n_turns = n_requests // n_conversations
    flags = [*FLAGS, "--ctx", "8192", "--cache-ram", "256"]
    alone = []
    for i in range(n_conversations):
        with Served(smollm2_triattn, tmp_path / f"alone-{i}", *flags) as server:
            alone.append(Conversation(i).talk(server, n_turns))
    with Served(smollm2_triattn, tmp_path / "together", *flags, "--slots", str(n_slots)) as server:
        conversations = [Conversation(i) for i in range(n_conversations)]
        memory = []  # less what the saved states are known to take
        for turn in range(n_turns):
            for conversation in conversations:
                conversation.turn(server)
            if turn >= n_turns // 2:
                memory.append(rss_bytes(server.child) - server.metric("triattn_state_bytes"))
        assert [conversation.answers for conversation in conversations] == alone
        assert max(memory) - memory[0] < 64 << 20, memory


def test_conversations_at_the_same_time_stay_apart(smollm2_triattn: Path, tmp_path: Path) -> None:
    """Each reads only what is new. Answers need not be those of each alone to the letter: prompts share batches, which
    then end elsewhere, and so do rounds. But sequences that are mixed up would answer nothing as alone."""
    n_turns, flags = 3, [*FLAGS, "--ctx", "8192"]
    with Served(smollm2_triattn, tmp_path / "alone", *flags) as server:
        alone = [Conversation(i) for i in range(4)]
        for conversation in alone:
            conversation.talk(server, n_turns)
    with Served(smollm2_triattn, tmp_path / "together", *flags, "--slots", "4") as server:
        together = [Conversation(i, words.answers) for i, words in enumerate(alone)]
        threads = [threading.Thread(target=conversation.talk, args=(server, n_turns)) for conversation in together]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    pairs = []
    for one, other in zip(alone, together, strict=True):
        pairs += zip(one.answers, other.answers, strict=True)
        assert_reads_only_what_is_new(other)
    assert sum(a == b for a, b in pairs) >= len(pairs) // 3, pairs


@pytest.mark.parametrize("mode", ["per-head", "shared"])
def test_the_other_modes_read_only_what_is_new_and_answer_as_alone(
    mode: str, smollm2_triattn: Path, tmp_path: Path
) -> None:
    flags = [*FLAGS, "--ctx", "4096", "--mode", mode]
    with Served(smollm2_triattn, tmp_path / "alone", *flags) as server:
        alone = Conversation(1).talk(server, 3)
    with Served(smollm2_triattn, tmp_path / "together", *flags) as server:
        one, other = Conversation(1), Conversation(2)
        for _ in range(3):
            one.turn(server)
            other.turn(server)
        assert server.metric("triattn_rounds_total") > 0
    assert one.answers == alone
    assert_reads_only_what_is_new(one)
    assert_reads_only_what_is_new(other)


class Conversation:
    """Questions under a system prompt that others have too; a script has what counts as answered, whatever is."""

    def __init__(self, seed: int, script: Sequence[str] = ()) -> None:
        self.seed = seed
        self.script = script
        self.answers: list[str] = []
        self.usages: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": prose(300)}]

    def turn(self, server: Served) -> None:
        n = len(self.answers)
        self.messages.append({"role": "user", "content": f"{prose(25, seed=100 * self.seed + n)} What happened?"})
        reply = server.chat(self.messages, 12)
        text = reply["choices"][0]["message"]["content"]
        self.usages.append(reply["usage"])
        self.answers.append(text)
        self.messages.append({"role": "assistant", "content": self.script[n] if self.script else text})

    def talk(self, server: Served, n_turns: int) -> Sequence[str]:
        for _ in range(n_turns):
            self.turn(server)
        return self.answers


def assert_reads_only_what_is_new(conversation: Conversation) -> None:
    for before, after in itertools.pairwise(conversation.usages):
        cached = after["prompt_tokens_details"]["cached_tokens"]
        assert cached >= before["prompt_tokens"] - 1 > 300, conversation.usages
