"""Precedence of settings, their types, and that an error names the place that the value came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from triattn_local.config import EvictionConfig, RuntimeConfig, SamplingConfig
from triattn_local.errors import UsageError
from triattn_local.settings import AUTO, OTHER_VARIABLES, Settings, table, unknown_variables


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text("budget = 300\nwindow = 30\nkeep = 3\n")
    return path


def test_without_anything_the_defaults_are_those_of_config(tmp_path: Path) -> None:
    settings = Settings.load(environ={}, config_path=tmp_path / "none.toml")
    assert settings.eviction() == EvictionConfig()
    assert settings.runtime() == RuntimeConfig()
    assert settings.sampling() == SamplingConfig()
    assert settings.n_predict() is None
    assert set(settings.origins.values()) == {"default"}


def test_flag_then_environment_then_file_then_default(config: Path) -> None:
    environ = {"TRIATTN_BUDGET": "200", "TRIATTN_WINDOW": "20"}
    settings = Settings.load({"budget": 150, "window": None}, environ=environ, config_path=config)
    assert (settings.budget, settings.window, settings.keep, settings.ctx) == (150, 20, 3, RuntimeConfig.n_ctx)
    assert settings.origins["budget"] == "--budget"
    assert settings.origins["window"] == "environment TRIATTN_WINDOW"
    assert settings.origins["keep"] == f"keep in {config}"
    assert settings.origins["ctx"] == "default"


def test_a_command_may_bring_other_defaults_but_no_more(config: Path) -> None:
    settings = Settings.load(defaults={"budget": 160, "batch": 64}, environ={}, config_path=config)
    assert (settings.budget, settings.batch) == (300, 64)


def test_a_zero_flag_is_a_value() -> None:
    settings = Settings.load({"keep": 0, "gpu_layers": 0, "temp": 0.0}, environ={"TRIATTN_KEEP": "9"})
    assert (settings.keep, settings.gpu_layers, settings.temp) == (0, 0, 0.0)


def test_an_empty_variable_is_not_set(config: Path) -> None:
    assert Settings.load(environ={"TRIATTN_BUDGET": " "}, config_path=config).budget == 300


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("CTX", "131072", 131072),
        ("WEIGHT_R", "off", False),
        ("FLASH_ATTN", "Yes", True),
        ("TEMP", "0.5", 0.5),
        ("MODE", " shared ", "shared"),
        ("STATS", "~/s.gguf", Path("~/s.gguf").expanduser()),
        ("MODELS", "/m", Path("/m")),
        ("MAX_TOKENS", "7", 7),
    ],
)
def test_variables_are_read_as_their_type(name: str, text: str, value: object) -> None:
    assert getattr(Settings.load(environ={f"TRIATTN_{name}": text}), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("BUDGET", "many", "a whole number, off or auto"),
        ("BUDGET", "1.5", "a whole number, off or auto"),
        ("CTX", "off", "a whole number or auto"),
        ("GPU_LAYERS", "most", "a whole number or auto"),
        ("WINDOW", "auto", "a whole number$"),
        ("TEMP", "nan", "a finite number"),
        ("TEMP", "hot", "a number"),
        ("FLASH_ATTN", "maybe", "true or false"),
    ],
)
def test_a_variable_of_the_wrong_type_is_named(name: str, text: str, wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted) as caught:
        Settings.load(environ={f"TRIATTN_{name}": text})
    assert caught.value.where == f"environment TRIATTN_{name}"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "line", ["budget = true", 'budget = "x"', "budget = 1.5", "mode = 3", "models = 1", "temp = true"]
)
def test_a_key_of_the_wrong_type_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(line)
    with pytest.raises(UsageError) as caught:
        Settings.load(environ={}, config_path=path)
    assert caught.value.where == f"{line.split()[0]} in {path}"


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("bugdet = 300")
    with pytest.raises(UsageError, match="did you mean 'budget'") as caught:
        Settings.load(environ={}, config_path=path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("content", [b"budget = = 3", b"\xff\xfe\x00"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        Settings.load(environ={}, config_path=path)
    assert caught.value.where == str(path)


def test_a_config_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with pytest.raises(UsageError, match="no such file") as caught:
        Settings.load(environ={"TRIATTN_CONFIG": str(path)})
    assert caught.value.where == "environment TRIATTN_CONFIG"


def test_limits_are_told_with_the_place_that_the_value_came_from(config: Path) -> None:
    settings = Settings.load(environ={"TRIATTN_BUDGET": "10"}, config_path=config)
    with pytest.raises(UsageError, match=r"3 \+ 30") as caught:
        settings.eviction()
    assert caught.value.where == f"environment TRIATTN_BUDGET, window in {config}, keep in {config}"


@pytest.mark.parametrize(
    ("flags", "environ", "where"),
    [
        ({}, {"TRIATTN_MODE": "banana"}, "environment TRIATTN_MODE"),
        ({"policy": "banana"}, {}, "--policy"),
        ({"keep": -1}, {}, "--keep"),
        ({}, {"TRIATTN_WINDOW": "0"}, "environment TRIATTN_WINDOW"),
        ({}, {"TRIATTN_OFFSET_MAX": "0"}, "environment TRIATTN_OFFSET_MAX"),
        ({}, {"TRIATTN_CTX": "-5"}, "environment TRIATTN_CTX"),
        ({"batch": 0}, {}, "--batch"),
        ({}, {"TRIATTN_THREADS": "0"}, "environment TRIATTN_THREADS"),
        ({"temp": -1.0}, {}, "--temp"),
        ({"max_tokens": 0}, {}, "-n"),
        ({}, {"TRIATTN_MAX_TOKENS": "-1"}, "environment TRIATTN_MAX_TOKENS"),
        ({"cache_type_k": "q3_k"}, {}, "--cache-type-k"),
        ({"cache_type_v": "q8_0"}, {"TRIATTN_FLASH_ATTN": "0"}, "--cache-type-v, environment TRIATTN_FLASH_ATTN"),
    ],
)
def test_every_limit_names_its_place(flags: dict[str, object], environ: dict[str, str], where: str) -> None:
    settings = Settings.load(flags, environ=environ)
    with pytest.raises(UsageError) as caught:
        (settings.eviction(), settings.runtime(), settings.sampling(), settings.n_predict())
    assert caught.value.where == where


def test_a_batch_is_never_larger_than_the_context() -> None:
    assert Settings.load({"ctx": 200}, environ={}).runtime().n_batch == 200
    with pytest.raises(UsageError, match="larger than the context of 200; give --batch 200 or less") as caught:
        Settings.load({"ctx": 200}, environ={"TRIATTN_BATCH": "256"}).runtime()
    assert caught.value.where == "environment TRIATTN_BATCH"


@pytest.mark.parametrize("word", ["off", "OFF"])
def test_the_librarys_word_for_no_eviction(tmp_path: Path, word: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'budget = "{word}"')
    assert Settings.load(environ={}, config_path=path).eviction() is None
    assert Settings.load(environ={"TRIATTN_BUDGET": word}).eviction() is None
    assert Settings.load({"budget": 200}, environ={"TRIATTN_BUDGET": word}).eviction() is not None


@pytest.mark.parametrize("name", ["ctx", "budget", "cache_type_k", "cache_type_v", "gpu_layers"])
def test_auto_leaves_a_setting_to_the_plan_whatever_stands_further_down(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'{name} = "Auto"')
    below = {"TRIATTN_" + name.upper(): "q8_0" if name.startswith("cache") else "300"}
    default = table()[name].default
    for settings in (
        Settings.load({name: AUTO}, environ=below, defaults={name: 1}),
        Settings.load(environ={"TRIATTN_" + name.upper(): " AUTO "}),
        Settings.load(environ={}, config_path=path),
    ):
        assert getattr(settings, name) == default
        assert settings.is_auto(name)
        assert not settings.is_given(name)
    assert Settings.load({name: None}, environ=below).is_given(name)
    assert not Settings.load(environ={}).is_auto(name)


def test_auto_is_no_place_that_a_bad_value_came_from() -> None:
    settings = Settings.load({"budget": AUTO}, environ={"TRIATTN_WINDOW": "4000"})
    with pytest.raises(UsageError, match="must be larger") as caught:
        settings.eviction()
    assert caught.value.where == "environment TRIATTN_WINDOW"


def test_variables_that_are_none_of_ours_are_found() -> None:
    known = {f"TRIATTN_{name.upper()}": "1" for name in table()} | dict.fromkeys(OTHER_VARIABLES, "1")
    assert unknown_variables({**known, "PATH": "", "TRIATTN_BUGDET": "1"}) == ["TRIATTN_BUGDET"]


def test_a_preset_stands_between_the_environment_and_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('preset = "calm"\ntop_k = 9\nmin_p = 0.1\n[presets.calm]\ntemp = 0.2\ntop_k = 5\nstop = "END"\n')
    settings = Settings.load(environ={"TRIATTN_TEMP": "0.9"}, config_path=path)
    assert (settings.temp, settings.top_k, settings.min_p, settings.stop) == (0.9, 5, 0.1, ("END",))
    assert settings.origins["top_k"] == f"top_k in [presets.calm] of {path}"
    assert settings.presets == {"calm": {"temp": 0.2, "top_k": 5, "stop": ("END",)}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[presets.a]\nbudget = 5\n", "'budget' is not a setting of answers"),
        ("[presets.a]\ntmep = 5\n", "did you mean 'temp'"),
        ("[presets.a]\ntemp = 'warm'\n", "'warm' is not a number"),
        ("presets = 5\n", "are tables, such as"),
        ("[presets]\na = 5\n", "are tables, such as"),
        ("[presets.a]\nstop = 5\n", "5 is not a list of texts"),
        ("preset = 'b'\n[presets.a]\n", "there is no preset 'b'"),
    ],
)
def test_a_preset_that_cannot_be_taken_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        Settings.load(environ={}, config_path=path)
    assert told in str(caught.value)


def test_what_the_file_says_of_sampling_counts_where_nobody_said_otherwise() -> None:
    settings = Settings.load({"top_p": 0.5}, defaults={"temp": 0.7}, environ={})
    sampling = settings.sampling({"temperature": 0.6, "top_p": 0.9, "repeat_last_n": 32})
    assert sampling == SamplingConfig(temperature=0.6, top_p=0.5, repeat_last_n=32)
    assert settings.sampling() == SamplingConfig(temperature=0.7, top_p=0.5)


def test_thinking_that_makes_no_sense_names_its_place() -> None:
    with pytest.raises(UsageError, match="environment TRIATTN_THINK_BUDGET"):
        Settings.load(environ={"TRIATTN_THINK_BUDGET": "-1"}).thinking()
    with pytest.raises(UsageError, match="environment TRIATTN_EFFORT"):
        Settings.load(environ={"TRIATTN_EFFORT": "very"}).thinking()
