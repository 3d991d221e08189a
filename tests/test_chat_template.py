"""Chat templates as files really have them: none, blank, broken, and such that leave the question out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from retouched import retouched

from triattn_local.config import RuntimeConfig
from triattn_local.engine.runtime import Runtime
from triattn_local.engine.vocabulary import template_syntax_fault
from triattn_local.errors import ModelNotFoundError, UsageError
from triattn_local.server.choose import template_words

BROKEN = "{% for m in messages %}{{ m.content }"
ASKED = [{"role": "user", "content": "The sea is"}]

WithTemplate = Callable[[str | None], Path]


@pytest.fixture(scope="module")
def with_template(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> WithTemplate:
    def make(template: str | None) -> Path:
        return retouched(smollm2, tmp_path_factory.mktemp("t") / "m.gguf", {"tokenizer.chat_template": template})

    return make


def load(model: Path) -> Runtime:
    return Runtime.load(model, RuntimeConfig(n_ctx=128, n_batch=64, n_threads=1))


@pytest.mark.parametrize("template", [None, "", "  \n\t"])
def test_a_blank_template_is_none(with_template: WithTemplate, template: str | None) -> None:
    with load(with_template(template)) as rt:
        assert rt.vocabulary.chat_template is None
        assert rt.apply_chat_template(ASKED) == "The sea is"
        assert "".join(event.text for event in rt.chat(ASKED, max_tokens=2) if hasattr(event, "text"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (BROKEN, "template is broken"),
        ("{{ messages | no_such_filter }}", "template is broken"),
        ("{# nothing #}", "leaves out"),
        ("{{ bos_token }}", "leaves out"),
    ],
)
def test_a_broken_template_is_the_templates_fault(with_template: WithTemplate, template: str, said: str) -> None:
    with load(with_template(template)) as rt:
        with pytest.raises(ModelNotFoundError, match=said) as caught:
            rt.apply_chat_template(ASKED)
        assert "--raw" in str(caught.value)
        assert rt.tokenize("The sea is")  # what needs no template goes on


def test_a_template_may_refuse_what_is_asked(with_template: WithTemplate) -> None:
    model = with_template("{{ raise_exception('no system role') }}")
    with load(model) as rt, pytest.raises(UsageError, match="refuses the conversation: no system role"):
        rt.apply_chat_template(ASKED)


def test_run_raw_needs_no_template(with_template: WithTemplate) -> None:
    model = with_template(BROKEN)
    program = Path(sys.executable).parent / "triattn-local"
    command = [str(program), "run", str(model), "The sea is", "--no-evict", "-q"]
    command += ["--ctx", "128", "--batch", "64", "--threads", "1", "-n", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    assert "template is broken" in done.stderr
    raw = subprocess.run([*command, "--raw"], capture_output=True, text=True, timeout=120)
    assert (raw.returncode, raw.stdout.strip() != "") == (0, True)


def test_the_server_is_told(with_template: WithTemplate, smollm2: Path) -> None:
    assert template_words(smollm2) == ()
    assert template_words(with_template(None)) == ()
    assert template_words(with_template(" \n")) == ("--chat-template", "chatml")
    broken = with_template(BROKEN)
    with pytest.raises(ModelNotFoundError, match="template is broken"):
        template_words(broken)
    assert template_words(broken, ["--chat-template", "chatml"]) == ()


def test_what_jinja_knows_is_no_fault() -> None:
    assert template_syntax_fault("{% generation %}{{ messages[0].content }}{% endgeneration %}") is None
