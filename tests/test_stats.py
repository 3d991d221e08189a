"""What statistics have to be, and what is said of those that are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from packed import Packed, stats_for

from triattn_local.errors import StatsError
from triattn_local.model.model_info import ModelInfo, read_model_info
from triattn_local.model.stats import TriattnStats, band_magnitude, bands, head_dim_of


@pytest.fixture
def info(tmp_path: Path) -> ModelInfo:
    return read_model_info(Packed().write(tmp_path / "m.gguf"))


@pytest.fixture
def sound(info: ModelInfo) -> TriattnStats:
    return stats_for(info.path)


def changed(arrays: tuple[np.ndarray, ...], at: tuple[int, int, int], value: float) -> tuple[np.ndarray, ...]:
    copies = tuple(array.copy() for array in arrays)
    copies[at[0]][at[1:]] = value
    return copies


def test_sound_statistics(sound: TriattnStats, info: ModelInfo) -> None:
    sound.validate(info)
    sound.check_belongs(sound.model)


@pytest.mark.parametrize("name", ["q_mean", "q_abs", "k_mean"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(sound: TriattnStats, info: ModelInfo, name: str, value: float) -> None:
    bad = replace(sound, **{name: changed(getattr(sound, name), (1, 1, 2), value)})
    with pytest.raises(StatsError, match=rf"{name} of layer 1: has values that are not finite"):
        bad.validate(info)


@pytest.mark.parametrize(
    ("name", "shape", "needed"),
    [("q_mean", (3, 8), "4, 8"), ("q_mean", (4, 6), "4, 8"), ("q_abs", (4, 4), "4, 3"), ("k_mean", (4, 8), "2, 8")],
)
def test_arrays_of_another_shape(
    sound: TriattnStats, info: ModelInfo, name: str, shape: tuple[int, int], needed: str
) -> None:
    bad = replace(sound, **{name: (getattr(sound, name)[0], np.ones(shape, np.float32))})
    with pytest.raises(StatsError, match=rf"{name} of layer 1: has shape \[{shape[0]}, {shape[1]}\].*\[{needed}\]"):
        bad.validate(info)


def test_negative_magnitudes(sound: TriattnStats, info: ModelInfo) -> None:
    with pytest.raises(StatsError, match="q_abs of layer 0: has negative magnitudes"):
        replace(sound, q_abs=changed(sound.q_abs, (0, 0, 0), -1e-3)).validate(info)


def test_a_mean_longer_than_the_mean_length(sound: TriattnStats, info: ModelInfo) -> None:
    least = float(band_magnitude(sound.q_mean[1], 6, "norm")[2, 1])
    replace(sound, q_abs=changed(sound.q_abs, (1, 2, 1), least * 0.99999)).validate(info)  # rounding
    bad = replace(sound, q_abs=changed(sound.q_abs, (1, 2, 1), least * 0.99))
    with pytest.raises(StatsError, match=r"smaller than \|E q_f\| in head 2, band 1"):
        bad.validate(info)


def test_a_dead_band_is_sound(sound: TriattnStats, info: ModelInfo) -> None:
    q_mean = changed(changed(sound.q_mean, (0, 0, 2), 0.0), (0, 0, 3), 0.0)
    dead = replace(sound, q_mean=q_mean, q_abs=changed(sound.q_abs, (0, 0, 1), 0.0))
    dead.validate(info)
    assert dead.concentration(info)[0][0, 1] == 0.0


def test_dimensions_in_another_order_are_noticed(sound: TriattnStats, info: ModelInfo) -> None:
    """Bands of nearly one direction, permuted from neighbours to halves: as if they came from Hugging Face's order."""
    tight = replace(sound, q_abs=tuple((band_magnitude(q, 6, "norm") * 1.01).astype(np.float32) for q in sound.q_mean))
    tight.validate(info)
    order = [0, 2, 4, 1, 3, 5, 6, 7]
    with pytest.raises(StatsError, match="another order of dimensions"):
        replace(tight, q_mean=tuple(q[:, order] for q in tight.q_mean)).validate(info)


def test_layers(sound: TriattnStats, info: ModelInfo) -> None:
    def layers(*keep: int, names: tuple[int, ...] | None = None) -> TriattnStats:
        return replace(
            sound,
            layers=keep if names is None else names,
            q_mean=tuple(sound.q_mean[il] for il in keep),
            q_abs=tuple(sound.q_abs[il] for il in keep),
            k_mean=tuple(sound.k_mean[il] for il in keep),
        )

    with pytest.raises(StatsError, match="no layers"):
        layers().validate(info)
    with pytest.raises(StatsError, match=r"layers \[1\] are missing"):
        layers(0).validate(info)
    with pytest.raises(StatsError, match="not rising numbers"):
        layers(1, 0).validate(info)
    with pytest.raises(StatsError, match="not rising numbers"):
        layers(0, 1, names=(0, 2)).validate(info)
    with pytest.raises(StatsError, match="every array for every layer"):
        replace(sound, k_mean=sound.k_mean[:1]).validate(info)
    windowed = replace(info, full_layers=(1,))
    with pytest.raises(StatsError, match=r"layers \[0\] have no full attention"):
        sound.validate(windowed)
    layers(0).validate(replace(info, full_layers=None))  # the file does not tell: the library will


def test_version_and_tokens(sound: TriattnStats, info: ModelInfo) -> None:
    with pytest.raises(StatsError, match="version 2"):
        replace(sound, version=2).validate(info)
    with pytest.raises(StatsError, match="0 tokens"):
        replace(sound, n_tokens=0).validate(info)


def test_a_model_without_rope(sound: TriattnStats, info: ModelInfo) -> None:
    with pytest.raises(StatsError, match="no RoPE"):
        sound.validate(replace(info, rope_type=None))


def test_another_models_statistics(sound: TriattnStats, tmp_path: Path) -> None:
    with pytest.raises(StatsError, match=r"belong to llama/L2/E32/.*, the model is qwen2/L24"):
        sound.check_belongs("qwen2/L24/E896/H14/K2/D64/crc32:3e6a23a8")


def test_bands_of_both_rope_types() -> None:
    x = np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]])
    assert bands(x, 6, "norm").tolist() == [[1 + 2j, 3 + 4j, 5 + 6j]]
    assert bands(x, 6, "neox").tolist() == [[1 + 4j, 2 + 5j, 3 + 6j]]
    assert np.allclose(band_magnitude(x, 8, "norm")[0, -1], np.hypot(7, 8))


def test_concentration(info: ModelInfo) -> None:
    """R is 1 for queries that are all the same, and falls as they spread."""
    rng = np.random.default_rng(0)
    centre = rng.standard_normal((4, 8))
    r = []
    for spread in (0.0, 0.1, 1.0, 10.0):
        q = centre + spread * rng.standard_normal((4000, 4, 8))
        stats = stats_for(
            info.path,
            q_mean=(q.mean(0).astype(np.float32),) * 2,
            q_abs=(band_magnitude(q, 6, "norm").mean(0).astype(np.float32),) * 2,
        )
        stats.validate(info)
        r.append(stats.concentration(info)[0])
        assert r[-1].shape == (4, 3)
    assert np.allclose(r[0], 1)
    assert (r[1] < r[0]).all()
    assert (r[2] < r[1]).all()
    assert (r[3] < 0.3).all()


def test_a_head_is_judged_by_its_dominant_band(sound: TriattnStats, info: ModelInfo) -> None:
    q_mean = np.zeros((4, 8), np.float32)
    q_mean[:, 0] = 0.9  # band 0, R = 0.9
    q_mean[:, 2] = 5.0  # band 1, R = 0.5, but no key ever has it
    k_mean = np.zeros((2, 8), np.float32)
    k_mean[:, 0] = 1.0
    q_abs = np.array([[1.0, 10.0, 1.0]] * 4, np.float32)
    stats = replace(sound, q_mean=(q_mean,) * 2, q_abs=(q_abs,) * 2, k_mean=(k_mean,) * 2)
    assert np.allclose(np.concatenate(stats.head_concentration(info)), 0.9)


@pytest.mark.parametrize("text", ["", "llama", "llama/L2/E32/H4/K2/D0/crc32:00000000", "a/L2/E32/H4/K2/D8/crc32:00"])
def test_what_is_no_fingerprint(text: str) -> None:
    assert head_dim_of("llama/L2/E32/H4/K2/D8/crc32:00000000") == 8
    with pytest.raises(StatsError, match="not the fingerprint"):
        head_dim_of(text)
