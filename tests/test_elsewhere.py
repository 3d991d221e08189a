"""Models of other programs: found, linked and not copied; and models that are removed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from chat_driver import Open
from gguf_files import write_model
from textual.widgets import OptionList
from typer.testing import CliRunner

from triattn_local import store
from triattn_local.cli.app import app
from triattn_local.errors import ModelNotFoundError, TriattnError
from triattn_local.tui.screens.models import ModelsScreen


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with a model of each program."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("OLLAMA_MODELS", "HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    ollama = tmp_path / ".ollama" / "models"
    (ollama / "blobs").mkdir(parents=True)
    data = write_model(tmp_path / "x.gguf").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    (ollama / "blobs" / f"sha256-{digest}").write_bytes(data)
    for place, tag in (("registry.ollama.ai/library/qwen3", "8b"), ("registry.ollama.ai/me/mine", "latest")):
        folder = ollama / "manifests" / place
        folder.mkdir(parents=True)
        layers = [
            {"mediaType": "application/vnd.ollama.image.license", "digest": f"sha256:{'0' * 64}"},
            {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"},
        ]
        (folder / tag).write_text(json.dumps({"schemaVersion": 2, "layers": layers if tag == "8b" else layers[:1]}))
    (ollama / "manifests" / "registry.ollama.ai" / "library" / "broken").write_text("{")
    studio = tmp_path / ".lmstudio" / "models" / "maker" / "repo"
    studio.mkdir(parents=True)
    write_model(studio / "studio.gguf")
    (studio / "mmproj-studio.gguf").write_bytes(data)
    (studio / "text.gguf").write_text("no model")
    hub = tmp_path / ".cache" / "huggingface" / "hub" / "models--org--Model-GGUF"
    (hub / "blobs").mkdir(parents=True)
    (hub / "snapshots" / "abc").mkdir(parents=True)
    write_model(hub / "blobs" / "f00.gguf").rename(hub / "blobs" / "f00")
    (hub / "snapshots" / "abc" / "Model-Q4_K_M.gguf").symlink_to(hub / "blobs" / "f00")
    cache = tmp_path / ".cache" / "llama.cpp"
    cache.mkdir()
    write_model(cache / "cached.gguf")
    (tmp_path / "x.gguf").unlink()
    return tmp_path


NAMES = {
    "Ollama": "qwen3:8b",
    "LM Studio": "maker/repo/studio",
    "Hugging Face": "org/Model-GGUF/Model-Q4_K_M",
    "llama.cpp": "cached",
}


def test_they_are_found_linked_and_not_found_again(home: Path) -> None:
    models = home / "models"
    found = store.elsewhere(models)
    assert {model.program: model.name for model in found} == NAMES
    for model in found:
        at = store.link(model, models)
        assert at.is_symlink()
        assert at.resolve() == model.path.resolve()
        assert store.link(model, models) == at
        assert store.resolve(at.relative_to(models).with_suffix("").as_posix(), models) == at
    assert store.elsewhere(models) == []
    assert {entry.name for entry in store.entries(models)} == {
        "ollama/qwen3-8b",
        "lm-studio/studio",
        "hugging-face/Model-Q4_K_M",
        "llama.cpp/cached",
    }


def test_a_name_that_is_taken_is_left_alone(home: Path) -> None:
    models = home / "models"
    model = next(model for model in store.elsewhere(models) if model.program == "Ollama")
    (models / "ollama").mkdir(parents=True)
    mine = write_model(models / "ollama" / "qwen3-8b.gguf")
    with pytest.raises(ModelNotFoundError, match="another file"):
        store.link(model, models)
    assert not mine.is_symlink()
    mine.unlink()
    mine.symlink_to(home / "gone")  # of a model that was there once
    assert store.link(model, models).resolve() == model.path.resolve()
    model.path.unlink()
    with pytest.raises(ModelNotFoundError, match="is gone"):
        store.link(model, models)


def test_rm_removes_links_alone_and_nothing_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = home / "models"
    monkeypatch.setenv("TRIATTN_MODELS", str(models))
    for model in store.elsewhere(models):
        store.link(model, models)
    blob = (models / "ollama" / "qwen3-8b.gguf").resolve()
    run = CliRunner()
    result = run.invoke(app, ["rm", "qwen3-8b"])
    assert isinstance(result.exception, TriattnError), "it asks first"
    assert run.invoke(app, ["rm", "qwen3-8b", "--yes"]).exit_code == 0
    assert blob.is_file()
    assert not (models / "ollama").exists()
    with pytest.raises(ModelNotFoundError, match="not in the models folder"):
        store.remove(str(home / ".cache" / "llama.cpp" / "cached.gguf"), models)
    assert (home / ".cache" / "llama.cpp" / "cached.gguf").is_file()
    own = write_model(models / "own.gguf")
    assert store.remove("own", models) == [own]
    assert not own.exists()


@pytest.mark.asyncio
async def test_f3_offers_them(open_chat: Open, home: Path) -> None:
    os.environ.pop("OLLAMA_MODELS", None)
    async with open_chat() as t:
        await t.press("f3")
        await t.until(lambda: isinstance(t.app.screen, ModelsScreen))
        text = t.screen_text()
        for program, name in NAMES.items():
            assert name in text
            assert f"of {program}" in text
        options = t.app.screen.query_one(OptionList)
        place = next(i for i in range(options.option_count) if "qwen3:8b" in str(options.get_option_at_index(i).prompt))
        options.highlighted = place
        await t.press("enter")
        await t.until(lambda: "has no statistics yet" in t.screen_text())
        assert (home / "models" / "ollama" / "qwen3-8b.gguf").is_symlink()
