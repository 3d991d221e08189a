"""Statistics in GGUF files: what goes in comes out, nothing else changes, and no failure leaves a trace."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from packed import F32, F64, I32, STRING, U16, U32, U64, Packed, array, pair, stats_for

from triattn_local.errors import DoesNotFitError, ModelNotFoundError, StatsError, UsageError
from triattn_local.model import metadata
from triattn_local.model.gguf_file import read_gguf
from triattn_local.model.metadata import hash_tensor_data, read_stats, write_sidecar, write_with_stats
from triattn_local.model.model_info import fingerprint, read_model_info
from triattn_local.model.stats import TriattnStats


def rich() -> Packed:
    """A model with a pair of every type, some of them where ours would stand."""
    packed = Packed()
    for number, kind in enumerate((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12)):
        packed.set(f"type.{kind}", kind, 1)
        packed.set_array(f"types.{kind}", kind, [0, 1] * number)
    packed.set("raw bytes", STRING, b"\xff\x00\xfe").set("triattention", STRING, "not ours: no dot")
    return packed.set_array("tokenizer.ggml.tokens", STRING, ["<s>", "", "Grüße", b"\xe4\xf6"])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return rich().write(tmp_path / "model.gguf")


@pytest.fixture
def stats(model: Path) -> TriattnStats:
    return stats_for(model)


def same(a: TriattnStats | None, b: TriattnStats) -> bool:
    assert a is not None
    for name in ("q_mean", "q_abs", "k_mean"):
        ours, theirs = getattr(a, name), getattr(b, name)
        if len(ours) != len(theirs) or not all(map(np.array_equal, ours, theirs)):
            return False
    scalars = ("layers", "n_tokens", "corpus", "tool", "model", "version")
    return all(getattr(a, name) == getattr(b, name) for name in scalars)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- what goes in comes out


def test_round_trip(model: Path, stats: TriattnStats, tmp_path: Path) -> None:
    assert read_stats(model) is None
    out = tmp_path / "out.gguf"
    write_with_stats(model, out, stats)
    assert same(read_stats(out), stats)
    read_stats(out).validate(read_model_info(out))  # type: ignore[union-attr]


def test_round_trip_through_a_sidecar(model: Path, stats: TriattnStats, tmp_path: Path) -> None:
    out = tmp_path / "stats.gguf"
    write_sidecar(out, stats, read_model_info(model))
    assert same(read_stats(out), stats)
    file = read_gguf(out)
    assert file.tensors == ()
    assert file.text("general.architecture") == "llama"
    assert file.text("general.type") == "triattention"
    with pytest.raises(ModelNotFoundError, match="holds a triattention, not a model"):
        read_model_info(out)


def test_a_file_without_statistics_has_none(tmp_path: Path) -> None:
    assert read_stats(Packed().write(tmp_path / "m.gguf")) is None


@pytest.mark.parametrize("alignment", [8, 32, 64, 4096])
def test_nothing_else_changes(alignment: int, tmp_path: Path) -> None:
    packed = rich()
    packed.alignment = alignment
    packed.set("general.alignment", U32, alignment)
    model, out = packed.write(tmp_path / "m.gguf"), tmp_path / "out.gguf"
    before = model.read_bytes()
    digest = write_with_stats(model, out, stats_for(model))
    assert model.read_bytes() == before
    assert digest == hash_tensor_data(model) == hash_tensor_data(out)

    old, new = read_gguf(model), read_gguf(out)
    ours = [key for key in new.pairs if key not in old.pairs]
    assert [key for key in new.pairs if key in old.pairs] == list(old.pairs)
    assert all(key.startswith("triattention.") for key in ours)
    for key, p in old.pairs.items():
        q = new.pairs[key]
        assert new.head[q.start : q.end] == old.head[p.start : p.end]
    assert new.tensors == old.tensors
    assert new.data_start % alignment == 0
    assert out.read_bytes()[new.data_start :] == before[old.data_start :]
    assert fingerprint(out) == fingerprint(model)


def test_other_readers_read_it(model: Path, stats: TriattnStats, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    packed = Packed()
    packed.write(model)
    write_with_stats(model, out, stats_for(model))
    reader = gguf.GGUFReader(out)
    assert reader.fields["triattention.version"].contents() == 1
    assert reader.fields["triattention.layers"].contents() == [0, 1]
    assert np.allclose(reader.fields["triattention.q_mean.1"].contents(), stats_for(model).q_mean[1].ravel())
    assert [t.name for t in reader.tensors] == list(packed.tensors)
    for tensor, (_, _, data) in zip(reader.tensors, packed.tensors.values(), strict=True):
        assert tensor.data.tobytes() == data
    sidecar = tmp_path / "sidecar.gguf"
    write_sidecar(sidecar, stats_for(model), read_model_info(model))
    assert len(gguf.GGUFReader(sidecar).tensors) == 0


def test_writing_again_replaces(model: Path, stats: TriattnStats, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{i}.gguf" for i in range(3))
    write_with_stats(model, first, stats)
    write_with_stats(first, second, stats_for(model, seed=1))
    assert same(read_stats(second), stats_for(model, seed=1))
    write_with_stats(second, third, stats)
    assert third.read_bytes() == first.read_bytes()


def test_fewer_layers_leave_no_old_keys(model: Path, stats: TriattnStats, tmp_path: Path) -> None:
    first, second = tmp_path / "1.gguf", tmp_path / "2.gguf"
    write_with_stats(model, first, stats)
    one = replace(stats, layers=(0,), q_mean=stats.q_mean[:1], q_abs=stats.q_abs[:1], k_mean=stats.k_mean[:1])
    write_with_stats(first, second, one)
    assert not [key for key in read_gguf(second).pairs if key.startswith("triattention.") and key.endswith(".1")]


def test_the_same_input_gives_the_same_bytes(model: Path, stats: TriattnStats, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf", "d.gguf")]
    write_with_stats(model, outs[0], stats)
    write_with_stats(model, outs[1], stats)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    write_sidecar(outs[2], stats, read_model_info(model))
    write_sidecar(outs[3], stats, read_model_info(model))
    assert outs[2].read_bytes() == outs[3].read_bytes()


def test_the_first_file_of_a_split_model(tmp_path: Path) -> None:
    first = Packed().set("split.no", U16, 0).set("split.count", U16, 2).write(tmp_path / "m-00001-of-00002.gguf")
    second = Packed(tensors={}).set("split.no", U16, 1).set("split.count", U16, 2)
    second_path = second.write(tmp_path / "m-00002-of-00002.gguf")
    out = tmp_path / "out" / first.name
    out.parent.mkdir()
    write_with_stats(first, out, stats_for(first))
    assert read_gguf(out).integer("split.count") == 2
    assert read_stats(out) is not None
    with pytest.raises(ModelNotFoundError, match="only the first one's metadata is read"):
        write_with_stats(second_path, tmp_path / "no.gguf", stats_for(first))


def test_without_help_from_the_kernel(
    model: Path, stats: TriattnStats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, slow = tmp_path / "quick.gguf", tmp_path / "slow.gguf"
    write_with_stats(model, quick, stats)

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EXDEV, "other file system")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    write_with_stats(model, slow, stats)
    assert slow.read_bytes() == quick.read_bytes()


def test_the_copy_is_readable_like_any_new_file(model: Path, stats: TriattnStats, tmp_path: Path) -> None:
    out, plain = tmp_path / "out.gguf", tmp_path / "plain"
    write_with_stats(model, out, stats)
    plain.touch()
    assert out.stat().st_mode == plain.stat().st_mode


def test_progress_comes_to_its_end(model: Path, stats: TriattnStats, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_with_stats(model, tmp_path / "out.gguf", stats, lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]


# ---- what is refused when reading


def with_our_keys(model: Path, stats: TriattnStats, tmp_path: Path) -> Packed:
    """A hand-packed model whose pairs are those of a converted one."""
    out = tmp_path / "converted.gguf"
    write_with_stats(model, out, stats)
    file = read_gguf(out)
    packed = Packed()
    packed.pairs = {key: file.head[p.start : p.end] for key, p in file.pairs.items()}
    return packed


T = "triattention."
BROKEN = {
    "version of the future": (T + "version", pair(T + "version", U32, 2), "version is 2, this program reads 1"),
    "version of no type": (T + "version", pair(T + "version", STRING, "1"), "must be an integer, not string"),
    "no n_tokens": (T + "n_tokens", None, "has no triattention.n_tokens"),
    "n_tokens of no type": (T + "n_tokens", pair(T + "n_tokens", F32, 1.0), "must be an integer, not float32"),
    "no corpus": (T + "corpus", None, "has no triattention.corpus"),
    "corpus of no type": (T + "corpus", pair(T + "corpus", U32, 1), "must be a string, not uint32"),
    "no tool": (T + "tool", None, "has no triattention.tool"),
    "tool of no type": (T + "tool", pair(T + "tool", U64, 1), "must be a string, not uint64"),
    "no model": (T + "model", None, "has no triattention.model"),
    "model of no type": (T + "model", pair(T + "model", U32, 1), "must be a string, not uint32"),
    "model that is none": (T + "model", pair(T + "model", STRING, "x"), "'x' is not the fingerprint"),
    "no layers": (T + "layers", None, "has no triattention.layers"),
    "layers of no type": (T + "layers", array(T + "layers", U32, [0, 1]), r"must be int32\[\], not uint32\[2\]"),
    "layers no array": (T + "layers", pair(T + "layers", I32, 0), r"must be int32\[\], not int32"),
    "layer without arrays": (T + "layers", array(T + "layers", I32, [0, 1, 7]), r"has no triattention\.q_mean\.7"),
    "no q_mean": (T + "q_mean.1", None, r"has no triattention\.q_mean\.1"),
    "q_mean of no type": (T + "q_mean.1", array(T + "q_mean.1", F64, [0] * 32), r"must be float32\[\]"),
    "q_mean of no length": (T + "q_mean.1", array(T + "q_mean.1", F32, [0] * 31), "31 values, not a multiple of head"),
    "q_mean of more heads": (T + "q_mean.0", array(T + "q_mean.0", F32, [0] * 40), "12 values, not a multiple of 5"),
    "q_mean empty": (T + "q_mean.1", array(T + "q_mean.1", F32, []), "0 values"),
    "no q_abs": (T + "q_abs.0", None, r"has no triattention\.q_abs\.0"),
    "q_abs of no type": (T + "q_abs.0", array(T + "q_abs.0", I32, [0] * 12), r"must be float32\[\], not int32\[12\]"),
    "q_abs of no length": (T + "q_abs.0", array(T + "q_abs.0", F32, [0] * 11), "11 values, not a multiple of 4 heads"),
    "no k_mean": (T + "k_mean.0", None, r"has no triattention\.k_mean\.0"),
    "k_mean of no type": (T + "k_mean.0", array(T + "k_mean.0", STRING, ["x"]), r"must be float32\[\]"),
    "k_mean of no length": (T + "k_mean.0", array(T + "k_mean.0", F32, [0] * 15), "15 values"),
}


@pytest.mark.parametrize(("key", "raw", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_keys(
    key: str, raw: bytes | None, reason: str, model: Path, stats: TriattnStats, tmp_path: Path
) -> None:
    packed = with_our_keys(model, stats, tmp_path)
    if raw is None:
        del packed.pairs[key]
    else:
        packed.pairs[key] = raw
    path = packed.write(tmp_path / "broken.gguf")
    with pytest.raises(StatsError, match=reason) as caught:
        read_stats(path)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("key", "items", "reason"),
    [
        ("q_mean.0", [float("nan")] * 32, "not finite"),
        ("q_abs.0", [float("inf")] * 12, "not finite"),
        ("k_mean.1", [float("-inf")] * 16, "not finite"),
        ("q_abs.1", [9.0] * 16, r"has shape \[4, 4\]"),
        ("q_abs.1", [-1.0] * 12, "negative"),
        ("q_abs.1", [0.0] * 12, r"smaller than \|E q_f\|"),
        ("k_mean.1", [0.0] * 32, r"has shape \[4, 8\]"),
    ],
)
def test_values_that_the_model_cannot_have(
    key: str, items: list[float], reason: str, model: Path, stats: TriattnStats, tmp_path: Path
) -> None:
    packed = with_our_keys(model, stats, tmp_path)
    packed.pairs[T + key] = array(T + key, F32, items)
    path = packed.write(tmp_path / "odd.gguf")
    found = read_stats(path)
    assert found is not None
    with pytest.raises(StatsError, match=reason):
        found.validate(read_model_info(path))


def test_damaged_files_are_refused(model: Path, stats: TriattnStats, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    write_with_stats(model, out, stats)
    out.write_bytes(out.read_bytes()[:-100])
    with pytest.raises(ModelNotFoundError, match="truncated"):
        read_stats(out)


# ---- what is refused when writing, and what it leaves behind


def test_never_onto_the_model_itself(model: Path, stats: TriattnStats, tmp_path: Path) -> None:
    before = model.read_bytes()
    link, hard = tmp_path / "link.gguf", tmp_path / "hard.gguf"
    link.symlink_to(model)
    hard.hardlink_to(model)
    for dst in (model, link, hard, tmp_path / "." / "model.gguf"):
        with pytest.raises(UsageError, match="would replace the model itself"):
            write_with_stats(model, dst, stats)
        with pytest.raises(UsageError, match="would replace the model itself"):
            write_sidecar(dst, stats, read_model_info(model))
    assert model.read_bytes() == before
    assert files(tmp_path) == {"model.gguf", "link.gguf", "hard.gguf"}


def test_outputs_that_cannot_be_written(model: Path, stats: TriattnStats, tmp_path: Path) -> None:
    for dst in (tmp_path / "none" / "out.gguf", model / "out.gguf", tmp_path):
        with pytest.raises(UsageError, match=r"cannot be written|is a folder"):
            write_with_stats(model, dst, stats)
    if os.geteuid() != 0:  # root may write anywhere
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        with pytest.raises(UsageError, match="Permission denied"):
            write_with_stats(model, locked / "out.gguf", stats)


@pytest.mark.parametrize("at", ["copy", "compare"])
@pytest.mark.parametrize("what", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_what_was_there(
    at: str, what: type[BaseException], model: Path, stats: TriattnStats, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"what was there")

    def interrupt(done: int, total: int) -> None:
        if at == "copy" or done > total // 2:
            raise what

    with pytest.raises(what):
        write_with_stats(model, out, stats, interrupt)
    assert out.read_bytes() == b"what was there"
    assert files(tmp_path) == {"model.gguf", "out.gguf"}


def test_a_copy_that_differs_is_not_kept(
    model: Path, stats: TriattnStats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = metadata._copy

    def damage(src: object, dst: object, start: int, n_bytes: int) -> Iterator[int]:
        yield from copy(src, dst, start - 1, n_bytes)  # type: ignore[arg-type]

    monkeypatch.setattr(metadata, "_copy", damage)
    with pytest.raises(ModelNotFoundError, match="changed while it was copied"):
        write_with_stats(model, tmp_path / "out.gguf", stats)
    assert files(tmp_path) == {"model.gguf"}


def test_too_little_room_is_noticed_before_writing(
    model: Path, stats: TriattnStats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(DoesNotFitError, match=r"needs 0\.0 MiB, the disk has 0\.0 MiB free") as caught:
        write_with_stats(model, tmp_path / "out.gguf", stats)
    assert caught.value.exit_code == 4
    assert files(tmp_path) == {"model.gguf"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, for who may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kernel_copies", [True, False])
@pytest.mark.parametrize("known_before", [True, False])
def test_a_full_disk(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_before: bool, kernel_copies: bool
) -> None:
    packed = Packed()
    packed.tensors["blk.0.ffn_up.weight"] = (0, (2**19,), bytes(2**21))
    model = packed.write(tmp_path / "model.gguf")
    if not known_before:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 10**9))
    if not kernel_copies:
        monkeypatch.setattr(metadata, "_copy_in_kernel", lambda *_: 0)
    with pytest.raises(DoesNotFitError, match=r"needs 2\.0 MiB, the disk") as caught:
        write_with_stats(model, small_disk / "out.gguf", stats_for(model))
    assert ("is full" in str(caught.value)) != known_before
    assert files(small_disk) == set()

    write_sidecar(small_disk / "stats.gguf", stats_for(model), read_model_info(model))
    assert read_stats(small_disk / "stats.gguf") is not None
