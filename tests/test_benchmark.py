"""What bench measures is what it says it measures, and what cannot be measured is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triattn_local.benchmark import BenchReport, Job, measure, parse_depths, run_bench, summary
from triattn_local.benchmark.contestant import Contestant
from triattn_local.benchmark.fill import UnknownLayoutError, repeat_cells
from triattn_local.benchmark.report import markdown, ratio_cells, speed_cells
from triattn_local.benchmark.synthetic import geometry_file
from triattn_local.config import EvictionConfig, RuntimeConfig
from triattn_local.engine import native
from triattn_local.engine.contexts import Context, Model
from triattn_local.engine.devices import devices
from triattn_local.errors import DoesNotFitError, UsageError
from triattn_local.geometry import GEOMETRIES, Geometry, find_geometry, write_geometry

EVICTION = EvictionConfig(budget_tokens=96, window=16, n_keep=4)
CONFIG = RuntimeConfig(n_batch=64, n_ubatch=64)


@pytest.fixture(scope="module")
def small() -> Geometry:
    """Two layers of a shape that there is, with hardly any width."""
    return Geometry(
        name="small",
        title="Small",
        arch="llama",
        n_layer=2,
        n_embd=256,
        n_ff=256,
        n_head=4,
        n_head_kv=2,
        head_dim=64,
        n_vocab=512,
        n_ctx_train=1024,
        rope_freq_base=1e4,
        rms_eps=1e-5,
    )


@pytest.fixture(scope="module")
def model_file(small: Geometry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_geometry(small, tmp_path_factory.mktemp("small") / "small.gguf")


@pytest.fixture
def report(model_file: Path) -> BenchReport:
    parts: list[int] = []
    job = Job(depths=(256, 512), n_blocks=2, n_seq=2)
    report = run_bench(model_file, CONFIG, EVICTION, job, on_row=lambda part: parts.append(len(part.rows)))
    assert parts == [1, 2]
    return report


# ------------------------------------------------- depth without reading


def rows_of(context: Context, n: int) -> list[np.ndarray]:
    """K and V rows of the first cells, by layer and KV head."""
    cells = np.arange(n, dtype=np.int32)
    return [
        native.get_rows(context.handle, il, head, cells, is_v=is_v)
        for il in (0, 1)
        for head in (0, 1)
        for is_v in (False, True)
    ]


@pytest.mark.parametrize(("cache", "flash_attn"), [("f16", True), ("q8_0", True), ("f16", False)])
def test_repeated_cells_are_the_rows_that_were_read(model_file: Path, cache: str, flash_attn: bool) -> None:
    config = RuntimeConfig(n_batch=48, cache_type_k=cache, cache_type_v=cache, flash_attn=flash_attn)
    tokens = list(range(3, 403))
    # rows can be read of an evicting cache only: one that is too large ever to evict
    roomy = EvictionConfig(budget_tokens=900, window=16)
    with Model(model_file, config) as model:
        with model.context(None, 512) as source:
            source.prefill(tokens[:48])
            short = source.state()
            long = repeat_cells(short, 400)
        with model.context(None, 512) as target:
            target.set_state(long, tokens)
            assert target.n_past == 400
            assert np.array_equal(target.state(), long), "llama.cpp writes what it was given"
            logits = target.decode([7], n_logits=1)
            assert np.isfinite(logits).all()
        with model.context(roomy, 1024) as looked_at:
            looked_at.prefill(tokens[:48])
            read = rows_of(looked_at, 48)
    # the rows stand in the state as they lie in the cache: find each layer's keys there
    n_found = sum(row[5].tobytes() in long.tobytes() for row in read)
    assert n_found >= len(read) // 2, "keys; values too, unless they lie transposed"


@pytest.mark.parametrize("n_seq", [1, 3])
def test_full_attention_gets_to_its_depth_in_two_batches(model_file: Path, n_seq: int) -> None:
    """One read, repeated, and the last one."""
    n_read = []
    with Model(model_file, CONFIG) as model, Contestant(model, None, 512, n_seq, 16, devices()[0]) as contestant:
        decode = contestant.context._decode
        contestant.context._decode = lambda rows, behind: (n_read.append(len(rows)), decode(rows, behind))  # type: ignore
        contestant.fill([3 + i % 400 for i in range(600)], lambda *_: None)
        assert n_read == [64, 64]
        assert contestant.context.n_past == 512
        assert contestant.prefill_tps > 0
        contestant.warm_up([5, 6, 7])
        assert n_read[2:] == [n_seq] * 3
        assert contestant.context.n_past == 512


def test_a_state_of_another_kind_is_refused(model_file: Path) -> None:
    with Model(model_file, CONFIG) as model, model.context(None, 256) as context:
        context.prefill(list(range(3, 35)))
        state = context.state()
    for broken in (state[:-1], np.append(state, np.uint8(0)), state[:40], state[:0]):
        with pytest.raises(UnknownLayoutError):
            repeat_cells(broken, 100)
    with pytest.raises(UnknownLayoutError):
        repeat_cells(state, 31)


# ----------------------------------------------------- several sequences


# without the cold tier: rows come back to a sequence's own cells, and those that it shares are not
@pytest.mark.parametrize("eviction", [None, replace(EVICTION, cold="off")], ids=["full", "evicting"])
def test_sequences_decode_side_by_side_as_one_does_alone(model_file: Path, eviction: EvictionConfig | None) -> None:
    tokens = [3 + i * 37 % 400 for i in range(300)]
    with Model(model_file, CONFIG) as model:
        with model.context(eviction, 512) as one:
            one.prefill(tokens[:200])
            wanted = [one.decode([token], n_logits=1)[0].copy() for token in tokens[200:]]
            rounds_of_one = one.stats().n_rounds
        with model.context(eviction, 512, n_seq=3) as three:
            three.prefill(tokens[:200])
            before = three.stats().n_rounds
            three.copy_to_all()
            for token, logits in zip(tokens[200:], wanted, strict=True):
                got = three.decode_each(token)
                assert got.shape == (3, 512)
                for row in got:
                    assert np.abs(row - logits).max() < 2e-2 * np.abs(logits).max()
            assert three.stats().n_rounds - before == 3 * (rounds_of_one - before)
            if eviction is None:
                three.rewind(200)
                assert three.n_past == 200
                again = three.decode_each(tokens[200])
                assert np.abs(again[2] - wanted[0]).max() < 2e-2 * np.abs(wanted[0]).max()


# ------------------------------------------------------------ the report


def test_each_block_holds_one_round_of_each_sequence(report: BenchReport) -> None:
    assert [row.depth for row in report.rows] == [256, 512]
    for row in report.rows:
        assert row.in_turns
        assert row.full is not None
        assert (row.limit.depth, row.full.depth, row.evicting.depth) == (96, row.depth, row.depth)
        assert (row.limit.n_seq, row.full.n_seq, row.evicting.n_seq) == (2, 2, 2)
        assert row.n_rounds == report.n_blocks * 2
        assert 0 < row.round_share < 1
        assert row.round_ms > 0
        for point in (row.limit, row.full, row.evicting):
            assert 0 < point.decode_tps_min <= point.decode_tps <= point.decode_tps_max
            assert point.prefill_tps > 0
        # cells are counted in steps of 256, of each sequence
        assert row.evicting.n_cells == 2 * 256
        assert row.full.n_cells == 2 * (-(-(row.depth + 16) // 256) * 256)
        # 2 layers, 2 KV heads of 64 dimensions, K and V in 2 bytes each
        assert row.evicting.kv_bytes == row.evicting.n_cells * 2 * 2 * 64 * 2 * 2
        assert row.full.kv_bytes == row.full.n_cells * 2 * 2 * 64 * 2 * 2
        assert row.kv_bytes_full == row.full.kv_bytes // 2
        assert row.kv_ratio == pytest.approx(row.kv_bytes_full / (row.evicting.kv_bytes / 2), abs=0.01)


def test_tables_and_picture_show_every_row(report: BenchReport) -> None:
    from triattn_local.benchmark.plots import picture

    assert len(speed_cells(report)) == 1 + 2 * 2
    assert [line[0] for line in ratio_cells(report)] == ["256", "512"]
    assert picture([report, report]).png().startswith(b"\x89PNG")
    again = json.loads(json.dumps(summary([report])))
    assert again["runs"][0]["rows"][1]["full"]["depth"] == 512
    assert again["date"].endswith("+00:00")


def test_what_does_not_fit_is_measured_alone_or_not_at_all(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for two evicting sequences of 256 cells, or one of full attention at depth 256, none at 512."""
    from triattn_local.benchmark.plots import picture

    cell = 2 * 2 * 64 * 2 * 2
    monkeypatch.setattr(measure, "free_memory", lambda: measure._SPARE + 600 * cell)
    monkeypatch.setattr(measure.Measuring, "_open", _counting_room(measure.Measuring._open))
    report = run_bench(model_file, CONFIG, EVICTION, Job(depths=(256, 512), n_blocks=1, n_seq=2))
    first, second = report.rows
    assert not first.in_turns
    assert first.evicting.n_seq == second.evicting.n_seq == 2
    assert first.full is not None
    assert first.full.n_seq == 1
    # one sequence of full attention against two that evict
    assert first.speedup is not None
    assert second.full is None
    assert second.speedup is None
    assert "does not fit" in {cell for line in speed_cells(report) for cell in line}
    assert "| 512 × 2 | does not fit |" in markdown(report)
    assert "(× 1)" in markdown(report)
    assert picture([report]).png().startswith(b"\x89PNG")

    monkeypatch.setattr(measure, "free_memory", lambda: measure._SPARE)
    with pytest.raises(DoesNotFitError, match="no room for one sequence"):
        run_bench(model_file, CONFIG, EVICTION, Job(depths=(256,), n_blocks=1))


def _counting_room(open_side: Any) -> Any:
    """What stands open takes its room: the test's memory is a number that does not go down by itself."""
    taken = [0]

    def counted(self: Any, evicts: bool, depth: int, n_seq: int) -> Any:
        if taken[0]:
            raise DoesNotFitError("another side is open")
        contestant = open_side(self, evicts, depth, n_seq)
        taken[0] += 1
        close = contestant.close

        def closed() -> None:
            taken[0] -= 1
            close()

        contestant.close = closed
        return contestant

    return counted


def test_depths_beyond_training_are_left_out_of_real_models(model_file: Path) -> None:
    report = run_bench(model_file, CONFIG, EVICTION, Job(depths=(256, 2048), n_blocks=1))
    assert [row.depth for row in report.rows] == [256]
    assert report.left_out == (2048,)
    job = Job(depths=(256, 2048), n_blocks=1, beyond_training=True)
    assert [row.depth for row in run_bench(model_file, CONFIG, EVICTION, job).rows] == [256, 2048]


# ------------------------------------------------------------- bad input


@pytest.mark.parametrize("text", ["", "2k,", "-1", "1e3", "2kk", "٣"])
def test_depths_that_are_no_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="no number of tokens"):
        parse_depths(text)


@pytest.mark.parametrize(
    "settings",
    [{"depths": (8, 4)}, {"depths": ()}, {"depths": (0,)}, {"depths": (2**30,)}, {"n_blocks": 0}, {"n_seq": 0}],
    ids=str,
)
def test_jobs_that_cannot_be_done(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Job(**settings)


def test_depths_are_read_in_thousands() -> None:
    assert parse_depths("2k, 4096,131072") == (2048, 4096, 131072)


def test_a_depth_within_the_budget_is_refused(model_file: Path) -> None:
    with pytest.raises(UsageError, match="not beyond budget"):
        run_bench(model_file, CONFIG, EVICTION, Job(depths=(100,)))


def test_memory_of_a_cpu_is_not_held(model_file: Path) -> None:
    with pytest.raises(UsageError, match="is no GPU"):
        run_bench(model_file, RuntimeConfig(n_gpu_layers=0), EVICTION, Job(depths=(256,), vram_bytes=1 << 30))


# ------------------------------------------------------- the command line


@pytest.fixture
def in_small_world(small: Geometry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A geometry `small`, and a cache folder of its own."""
    monkeypatch.setitem(GEOMETRIES, "small", small)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda app: tmp_path / "cache" / app)
    return tmp_path


_SMALL = ["--depths", "256", "--blocks", "1", "--budget", "96", "--window", "16", "--batch", "64"]


def test_a_geometry_is_written_once_and_measured(
    in_small_world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from triattn_local.cli import run_app

    out = in_small_world / "out"
    assert run_app(["bench", "--geometry", "small", *_SMALL, "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "speed-up" in told.out
    assert "{" not in told.out, "JSON is for programs: --json, and the file"
    runs = json.loads((out / "bench.json").read_text())["runs"]
    page = (out / "bench.md").read_text()
    assert "| 256 |" in page
    assert f"1/{runs[0]['rows'][0]['kv_ratio']:.1f}" in page
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")
    [written] = (in_small_world / "cache").rglob("*.gguf")
    before = written.stat().st_mtime_ns
    assert run_app(["bench", "--geometry", "SMALL", "--layers", "2", *_SMALL, "--json"]) == 0
    assert written.stat().st_mtime_ns == before
    (line,) = capsys.readouterr().out.splitlines()
    assert len(json.loads(line)["runs"]) == 1


def test_what_the_command_cannot_do(
    in_small_world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from triattn_local.cli import run_app

    for arguments, code, text in (
        (["bench"], 2, "no model given"),
        (["bench", "--geometry", "qwen3-32"], 2, "did you mean 'qwen3-32b'"),
        (["bench", "--geometry", "small", *_SMALL, "--layers", "0"], 2, "0 layers"),
        (["bench", "--geometry", "small", *_SMALL, "--vram", "lots"], 2, "is not a size"),
        (["bench", "--geometry", "small", *_SMALL, "--gpu-layers", "0", "--vram", "1GiB"], 2, "is no GPU"),
        (["bench", "--geometry", "small", *_SMALL, "--parallel", "100000"], 2, "--parallel"),
        (["bench", "--geometry", "small", *_SMALL, "--depths", "99999k"], 2, "--depths"),
        (["bench", "nowhere"], 3, "nowhere"),
    ):
        assert run_app(arguments) == code, arguments
        told = capsys.readouterr().err
        assert text in told
        assert told.count("error:") == 1
    assert not list(in_small_world.rglob("*.gguf")), "refused before anything is written"


def test_a_disk_that_is_too_small(in_small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"total": 10**9, "used": 10**9, "free": 1000})()
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(DoesNotFitError):
        geometry_file(find_geometry("qwen3-32b"), lambda done, total: None)
    assert not list((in_small_world / "cache").rglob("*.gguf"))
