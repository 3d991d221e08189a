"""Where a value comes from: flag, environment, config file, default, in this order.

Every setting is one field of ``Settings``. Its name is the key in ``config.toml``; in capitals behind ``TRIATTN_`` it
is the environment variable; its flag is written beside it. A value that cannot be taken is refused with the name of
the place that it came from, also when it is found wrong only later, by ``config``.

Knows nothing of Typer, and of what the values mean: their limits are checked in ``config``, their defaults stand there.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from .config import (
    AGGREGATES,
    CACHE_TYPES,
    EFFORTS,
    MODES,
    OFFSETS,
    POLICIES,
    ROPE_SCALINGS,
    TERMS,
    Cold,
    EvictionConfig,
    RuntimeConfig,
    SamplingConfig,
    ThinkingConfig,
)
from .errors import UsageError
from .support.formats import parse_size
from .support.paths import decode, expanded

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

APP = "triattn-local"
ENV_PREFIX = "TRIATTN_"
OTHER_VARIABLES = {
    "TRIATTN_CONFIG": "config.toml to read instead of the one in the user's config folder",
    "TRIATTN_DEBUG": "any value but 0: errors come with their traceback",
    "TRIATTN_NATIVE_CACHE": "folder in which `pip install ./native` keeps its sources and builds",
    "TRIATTN_TEST_MODELS": "folder in which the tests keep their models",
}
"""variables of ours that are no settings"""

AUTO = "auto"
"""value of a setting that a plan chooses: it may choose, whatever places further down say"""

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")

T = TypeVar("T")


def default_models_dir() -> Path:
    """Raises UsageError: this user has no home folder."""
    return _own(platformdirs.user_data_path, "models", "TRIATTN_MODELS")


def default_sessions_dir() -> Path:
    """Raises UsageError: this user has no home folder."""
    return _own(platformdirs.user_data_path, "sessions", "TRIATTN_SESSIONS")


def default_config_path() -> Path:
    """Raises UsageError: this user has no home folder."""
    return _own(platformdirs.user_config_path, "config.toml", "TRIATTN_CONFIG")


def _own(kind: Callable[[str], Path], name: str, variable: str) -> Path:
    try:
        folder: Path | None = kind(APP)
    except RuntimeError:  # a user without a name and without HOME, as containers run programs
        folder = None
    if folder is None or not folder.is_absolute():
        raise UsageError("this user has no home folder", where=name, fix=f"set HOME, or {variable}")
    return folder / name


class _WhenUsed:
    """A default that is looked for when it is asked for: whoever names a folder of their own needs no home."""

    def __init__(self, find: Callable[[], Path]) -> None:
        self._find = find
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, settings: Any, owner: type | None = None) -> Any:
        if settings is None:
            return self
        value = vars(settings).get(self._name)
        return self._find() if value is None else value

    def __set__(self, settings: Any, value: Any) -> None:
        if value is not self:
            vars(settings)[self._name] = value


def _integer(value: object) -> int:
    # bool is an int in Python, but `budget = true` is a mistake
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("a whole number")
    try:
        return int(value)
    except ValueError:
        raise ValueError("a whole number") from None


def _budget(value: object) -> int | None:
    """The library's own word for no eviction, ``off``, holds here too."""
    if isinstance(value, str) and value.strip().lower() == "off":
        return None
    try:
        return _integer(value)
    except ValueError as error:
        raise ValueError(f"{error}, off") from None


def _cold(value: object) -> Cold:
    """``off``, ``auto``, or bytes with or without a unit."""
    word = value.strip() if isinstance(value, str) else value
    if word == "off" or word == "auto":
        return word
    try:
        return parse_size(str(word), "--cold")
    except UsageError:
        raise ValueError("off, auto or a number of bytes such as 8GiB") from None


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("a number")
    try:
        number = float(value)
    except ValueError:
        raise ValueError("a number") from None
    if number != number or abs(number) == float("inf"):
        raise ValueError("a finite number")
    return number


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise ValueError("true or false (1, 0, yes, no, on, off)")


def _word(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a word in quotes")
    return value.strip()


def _path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("a path")
    return expanded(value)


def _keys(value: object) -> Mapping[str, str]:
    """A table in the file; ``send=ctrl+s,stop=f12`` elsewhere, where no key can be a comma or an equals sign."""
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        value = {name.strip(): key.strip() for name, _, key in pairs}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) and key for key in value.values()):
        raise ValueError('a table of keys, such as { stop = "f12" }')
    return dict(value)


def _text(value: object) -> str:
    """Words for the model: what a shell hands over need not be UTF-8."""
    if not isinstance(value, str):
        raise ValueError("a text")
    try:
        return decode(os.fsencode(value))
    except UnicodeError:
        raise ValueError("UTF-8 text") from None


def _texts(value: object) -> tuple[str, ...]:
    """One text stands for a list of it."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)):
        raise ValueError("a list of texts")
    return tuple(_text(text) for text in texts if text)


def _one_of(choices: tuple[str, ...]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


def _setting(
    default: Any, parse: Callable[[object], object], flag: str | None, text: str, *, planned: bool = False
) -> Any:
    metadata = {"parse": parse, "flag": flag, "help": text, "planned": planned}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """All settings of one command, each with the place it came from in ``origins``."""

    models: Path = _setting(_WhenUsed(default_models_dir), _path, None, "Folder that holds the models.")
    stats: Path | None = _setting(None, _path, "--stats", "Sidecar with the model's statistics, if not inside it.")

    ctx: int = _setting(RuntimeConfig.n_ctx, _integer, "--ctx", "Logical context.", planned=True)
    budget: int | None = _setting(
        EvictionConfig.budget_tokens, _budget, "--budget", "Tokens that each head keeps.", planned=True
    )
    window: int = _setting(
        EvictionConfig.window,
        _integer,
        "--window",
        "New tokens between two rounds; as many recent ones are safe.",
    )
    keep: int = _setting(EvictionConfig.n_keep, _integer, "--keep", "First tokens that are never evicted.")
    mode: str = _setting(EvictionConfig.mode, _word, "--mode", f"Who keeps its own set of tokens: {_one_of(MODES)}.")
    policy: str = _setting(EvictionConfig.policy, _word, "--policy", f"How tokens are ranked: {_one_of(POLICIES)}.")
    aggregate: str = _setting(
        EvictionConfig.aggregate, _word, None, f"How shared mode makes one score of all heads: {_one_of(AGGREGATES)}."
    )
    terms: str = _setting(EvictionConfig.terms, _word, None, f"Ablation, terms of the score: {_one_of(TERMS)}.")
    weight_r: bool = _setting(EvictionConfig.weight_r, _truth, None, "Ablation, weigh the norm term by 1 - R.")
    offsets: str = _setting(EvictionConfig.offsets, _word, None, f"Ablation, future distances: {_one_of(OFFSETS)}.")
    offset_max: int = _setting(EvictionConfig.offset_max, _integer, None, "Ablation, largest future distance.")

    weight_v: float = _setting(
        EvictionConfig.weight_v, _number, None, "How much the length of a token's value counts; 0 as in the paper."
    )

    cold: Cold = _setting(
        EvictionConfig.cold,
        _cold,
        "--cold",
        "Memory of this machine for what was evicted, to bring back what is asked for: off, auto or bytes (8GiB).",
    )
    recall: float = _setting(EvictionConfig.recall, _number, None, "Part of the budget that what comes back may take.")
    recall_block: int = _setting(
        EvictionConfig.recall_block, _integer, None, "Tokens that come back together at the end of a prompt."
    )
    recall_queries: int = _setting(
        EvictionConfig.recall_queries, _integer, None, "Last queries of a prompt that its end is compared with."
    )
    recall_period: int = _setting(
        EvictionConfig.recall_period, _integer, None, "Tokens between recalls while text streams; 0: none."
    )

    rope_scaling: str | None = _setting(
        None,
        _word,
        "--rope-scaling",
        f"RoPE for contexts beyond the trained one: {_one_of(ROPE_SCALINGS)}; if not given, as the file has it.",
    )
    cache_type_k: str = _setting(
        RuntimeConfig.cache_type_k,
        _word,
        "--cache-type-k",
        f"Type of the cached keys: {_one_of(CACHE_TYPES)}.",
        planned=True,
    )
    cache_type_v: str = _setting(
        RuntimeConfig.cache_type_v,
        _word,
        "--cache-type-v",
        "Type of the cached values, one of the same; a quantised one needs flash attention.",
        planned=True,
    )
    flash_attn: bool = _setting(RuntimeConfig.flash_attn, _truth, "--flash-attn", "Flash attention.")
    threads: int | None = _setting(None, _integer, "--threads", "CPU threads; one a physical core if not given.")
    yield_cores: bool = _setting(
        RuntimeConfig.yield_cores,
        _truth,
        "--yield-cores",
        "Fewer threads while other programs use the cores, on Linux.",
    )
    gpu_layers: int = _setting(
        RuntimeConfig.n_gpu_layers, _integer, "--gpu-layers", "Layers on the GPU, -1 for all.", planned=True
    )
    batch: int = _setting(
        RuntimeConfig.n_batch,
        _integer,
        "--batch",
        "Tokens of the prompt decoded in one call; the cache has room for them beside the budget.",
    )

    preset: str | None = _setting(
        None, _word, "--preset", "Settings of answers that config.toml has under [presets.NAME]."
    )
    system: str | None = _setting(None, _text, "--system", "System prompt.")
    think: bool | None = _setting(
        None, _truth, "--think", "Whether the model thinks before it answers; if not given, as its template has it."
    )
    effort: str | None = _setting(
        None, _word, "--effort", f"How hard it thinks, for templates that take that: {_one_of(EFFORTS)}."
    )
    think_budget: int | None = _setting(
        None, _integer, "--think-budget", "Tokens of thinking after which it has to answer; no limit if not given."
    )
    max_tokens: int | None = _setting(None, _integer, "-n", "Most tokens to generate; no limit if not given.")
    temp: float = _setting(
        SamplingConfig.temperature,
        _number,
        "--temp",
        "Sampling temperature; 0 always takes the likeliest token. Of sampling, what is not given is what the model's "
        "file says.",
    )
    top_k: int = _setting(SamplingConfig.top_k, _integer, "--top-k", "Draw from so many tokens at most; 0 for any.")
    top_p: float = _setting(
        SamplingConfig.top_p, _number, "--top-p", "Draw from the likeliest tokens that together have this probability."
    )
    min_p: float = _setting(
        SamplingConfig.min_p, _number, "--min-p", "Leave out tokens less likely than this part of the likeliest."
    )
    repeat_penalty: float = _setting(
        SamplingConfig.repeat_penalty, _number, "--repeat-penalty", "Above 1 makes the last 64 tokens less likely."
    )
    presence_penalty: float = _setting(
        SamplingConfig.presence_penalty,
        _number,
        "--presence-penalty",
        "The same by a number that is taken from their logits; 0 for none.",
    )
    stop: tuple[str, ...] = _setting(
        (), _texts, "--stop", "Text that ends the answer, and is not part of it; may be given several times."
    )
    seed: int = _setting(SamplingConfig.seed, _integer, "--seed", "Same seed, same answer; also of the random policy.")

    sessions: Path = _setting(
        _WhenUsed(default_sessions_dir), _path, None, "Folder of the chat's sessions and snapshots."
    )
    snapshot_memory: int = _setting(1024, _integer, None, "MiB of memory for snapshots of the chat's cache.")
    snapshot_disk: int = _setting(4096, _integer, None, "MiB of disk for snapshots of the chat's cache.")
    host: str = _setting("127.0.0.1", _word, "--host", "Address to listen on; another than this machine's needs a key.")
    port: int = _setting(8080, _integer, "--port", "Port to listen on, 0 for any free one.")
    api_key: str | None = _setting(None, _word, "--api-key", "Key that clients must give.")
    alias: str | None = _setting(None, _word, "--alias", "Name of the model for clients; its file's if not given.")
    slots: int = _setting(1, _integer, "--slots", "Requests answered at the same time, each with a budget of its own.")
    cache_ram: int = _setting(
        8192, _integer, "--cache-ram", "MiB of memory for states that prompts go on from, 0 for none, -1 for no limit."
    )
    idle_unload: int | None = _setting(
        None, _integer, "--idle-unload", "Seconds without a request after which the model leaves the memory."
    )
    start_timeout: int = _setting(
        600, _integer, "--start-timeout", "Seconds until it must answer, else it is given up."
    )
    restarts: int = _setting(3, _integer, "--restarts", "Crashes within ten minutes after which it is started again.")

    theme: str | None = _setting(None, _word, "--theme", "Colours of the chat; the chat lists them under Theme.")
    keys: Mapping[str, str] = _setting(dict, _keys, None, "Keys of the chat, by the names that its help shows.")

    origins: Mapping[str, str] = field(default_factory=dict)
    """setting -> "--budget", "environment TRIATTN_BUDGET", "budget in <config.toml>", "auto" or "default" """
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """name -> settings of answers, of the config file"""

    @classmethod
    def load(
        cls,
        flags: Mapping[str, object | None] | None = None,
        *,
        defaults: Mapping[str, object] | None = None,
        environ: Mapping[str, str] | None = None,
        config_path: Path | None = None,
    ) -> Settings:
        """Take each setting from the first place that has it.

        Parameters
        ----------
        flags : mapping, optional
            Setting -> value of its flag; None for a flag that was not given. Other names are passed over.
        defaults : mapping, optional
            Setting -> value that stands in for its default.
        environ : mapping, optional
            The environment; ``os.environ`` if not given.
        config_path : Path, optional
            The config file; else ``TRIATTN_CONFIG``, else the user's. The user's need not exist.

        Raises
        ------
        UsageError
            A value of the wrong type, or a key in the file that is no setting.
        """
        flags = flags or {}
        environ = os.environ if environ is None else environ
        path, table = _read_config(environ, config_path)

        known = fields()
        presets = _presets(table.pop(PRESETS, {}), path)
        _check_keys(table, known, str(path))
        named = flags.get("preset") or environ.get(f"{ENV_PREFIX}PRESET", "").strip() or table.get("preset")
        preset = _preset(named, presets, path) if named else {}

        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for name, entry in known.items():
            variable = ENV_PREFIX + name.upper()
            # a flag that may come several times, and did not come, is an empty list
            if flags.get(name) not in (None, [], ()):
                origins[name], raw = entry.metadata["flag"] or f"--{name}", flags[name]
            elif environ.get(variable, "").strip():
                origins[name], raw = f"environment {variable}", environ[variable]
            elif name in preset:
                origins[name], raw = f"{name} in [presets.{named}] of {path}", preset[name]
            elif name in table:
                origins[name], raw = f"{name} in {path}", table[name]
            else:
                origins[name] = "default"
                if defaults and name in defaults:
                    values[name] = defaults[name]
                continue
            planned = entry.metadata["planned"]
            if planned and isinstance(raw, str) and raw.strip().lower() == AUTO:
                origins[name] = AUTO
                continue
            try:
                values[name] = entry.metadata["parse"](raw)
            except ValueError as error:
                wanted = f"{error} or {AUTO}" if planned else str(error)
                raise UsageError(f"{raw!r} is not {wanted}", where=origins[name]) from None
        return cls(**values, origins=origins, presets=presets)

    def changed(self, origin: str, **values: Any) -> Settings:
        """The same with other values, and where these came from."""
        # not dataclasses.replace, which asks for every folder
        return Settings(**{**vars(self), **values, "origins": {**self.origins, **dict.fromkeys(values, origin)}})

    def is_given(self, name: str) -> bool:
        """Whether somebody wrote a value of this setting somewhere; else it has its default."""
        return self.origins.get(name, "default") not in ("default", AUTO)

    def is_auto(self, name: str) -> bool:
        """Whether somebody left this setting to the plan, in so many words."""
        return self.origins.get(name) == AUTO

    def eviction(self) -> EvictionConfig | None:
        """How the cache forgets, None for full attention. Raises UsageError that names where a bad value came from."""
        budget = self.budget
        if budget is None:
            return None
        return self._checked(
            lambda: EvictionConfig(
                budget_tokens=budget,
                window=self.window,
                n_keep=self.keep,
                mode=self.mode,  # type: ignore[arg-type]  # checked there
                policy=self.policy,  # type: ignore[arg-type]
                aggregate=self.aggregate,  # type: ignore[arg-type]
                terms=self.terms,  # type: ignore[arg-type]
                weight_r=self.weight_r,
                offsets=self.offsets,  # type: ignore[arg-type]
                offset_max=self.offset_max,
                weight_v=self.weight_v,
                seed=self.seed,
                cold=self.cold,
                recall=self.recall,
                recall_block=self.recall_block,
                recall_queries=self.recall_queries,
                recall_period=self.recall_period,
            )
        )

    def runtime(self, *, verbose: bool = False) -> RuntimeConfig:
        """The context to run in. Raises UsageError that names where a bad value came from."""
        batch = self.batch
        if 0 < self.ctx < batch:
            if self.is_given("batch"):
                raise UsageError(
                    f"a batch of {batch} tokens is larger than the context of {self.ctx}",
                    where=self.origins["batch"],
                    fix=f"give --batch {self.ctx} or less, or a larger --ctx",
                )
            batch = self.ctx
        return self._checked(
            lambda: RuntimeConfig(
                n_ctx=self.ctx,
                n_batch=batch,
                n_ubatch=min(batch, RuntimeConfig.n_ubatch),
                cache_type_k=self.cache_type_k,
                cache_type_v=self.cache_type_v,
                flash_attn=self.flash_attn,
                n_threads=self.threads,
                yield_cores=self.yield_cores,
                n_gpu_layers=self.gpu_layers,
                verbose=verbose,
            )
        )

    def sampling(self, suggested: Mapping[str, float] | None = None) -> SamplingConfig:
        """How tokens are drawn. Raises UsageError that names where a bad value came from.

        Parameters
        ----------
        suggested : mapping, optional
            Fields of SamplingConfig that the model's file has values for: they count where nobody gave the setting.
        """
        values = {name: getattr(self, setting) for name, setting in SAMPLING.items()}
        for name, value in (suggested or {}).items():
            if name not in SAMPLING or not self.is_given(SAMPLING[name]):
                values[name] = value
        return self._checked(lambda: SamplingConfig(**values))

    def thinking(self) -> ThinkingConfig:
        """How much the model thinks. Raises UsageError that names where a bad value came from."""
        return self._checked(
            lambda: ThinkingConfig(enabled=self.think, effort=self.effort, budget_tokens=self.think_budget)
        )

    def n_predict(self) -> int | None:
        """Most tokens to generate, None for no limit but the context's."""
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"must be at least 1, not {self.max_tokens}", where=self.origins.get("max_tokens", "-n"))
        return self.max_tokens

    def _checked(self, build: Callable[[], T]) -> T:
        """``config`` speaks of flags; say instead where the value was really written."""
        try:
            return build()
        except UsageError as error:
            written = [self.origins[name] for name in _BEHIND.get(error.where or "", ()) if self.is_given(name)]
            raise UsageError(error.what, where=", ".join(written) or error.where, fix=error.fix) from None


SAMPLING = {
    "temperature": "temp",
    **{name: name for name in ("top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "seed")},
}
"""field of SamplingConfig -> its setting"""

PRESETS = "presets"
"""table of the config file"""

ANSWERS = ("system", "think", "effort", "think_budget", "max_tokens", *SAMPLING.values(), "stop")
"""settings of answers: what a preset may have"""

_BEHIND: dict[str, tuple[str, ...]] = {
    "--budget": ("budget", "window", "keep"),
    "--cache-type-v": ("cache_type_v", "flash_attn"),
    "--offset-max": ("offset_max",),
    "offset_max": ("offset_max",),
    "weight_v": ("weight_v",),
    "--cold": ("cold",),
    **{name: (name,) for name in ("recall", "recall_block", "recall_queries", "recall_period")},
    "n_ctx": ("ctx",),
    "n_batch": ("batch",),
    "n_ubatch": ("batch",),
}
"""what ``config`` calls a value -> the settings that may have made it wrong"""


def fields() -> dict[str, dataclasses.Field[Any]]:
    """Setting -> its field, with ``flag`` and ``help`` in its metadata."""
    return {entry.name: entry for entry in dataclasses.fields(Settings) if entry.name not in ("origins", PRESETS)}


for _name, _entry in fields().items():
    _BEHIND.setdefault(_entry.metadata["flag"] or f"--{_name}", (_name,))


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """Variables that begin like ours and are none of ours: most likely typing errors."""
    environ = os.environ if environ is None else environ
    known = {ENV_PREFIX + name.upper() for name in fields()} | OTHER_VARIABLES.keys()
    return sorted(name for name in environ if name.startswith(ENV_PREFIX) and name not in known)


def _check_keys(table: Mapping[str, object], known: Collection[str], where: str, kind: str = "setting") -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise UsageError(
                f"{key!r} is not a {kind}",
                where=where,
                fix=f"did you mean {near[0]!r}?" if near else f"the settings are {', '.join(known)}",
            )


def _presets(tables: object, path: Path) -> dict[str, dict[str, Any]]:
    """All presets, each of them checked: a mistake is told before it is the one that is needed."""
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise UsageError(f"are tables, such as [{PRESETS}.coder]", where=f"{PRESETS} in {path}")
    presets: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        where = f"[{PRESETS}.{name}] of {path}"
        _check_keys(table, ANSWERS, where, "setting of answers")
        presets[name] = {}
        for key, raw in table.items():
            try:
                presets[name][key] = fields()[key].metadata["parse"](raw)
            except ValueError as error:
                raise UsageError(f"{raw!r} is not {error}", where=f"{key} in {where}") from None
    return presets


def _preset(name: object, presets: Mapping[str, dict[str, Any]], path: Path) -> dict[str, Any]:
    if name not in presets:
        fix = f"there are {', '.join(presets)}" if presets else f"write a table [{PRESETS}.{name}] into {path}"
        raise UsageError(f"there is no preset {name!r}", where="--preset", fix=fix)
    return presets[str(name)]


def _read_config(environ: Mapping[str, str], config_path: Path | None) -> tuple[Path, dict[str, object]]:
    named = environ.get("TRIATTN_CONFIG", "").strip()
    try:
        path = config_path or (expanded(named) if named else default_config_path())
        if config_path is None and not named:
            path.stat()
    except (UsageError, OSError):  # no home, or one that this user may not enter, such as root's
        return Path("config.toml"), {}
    try:
        return path, tomllib.loads(decode(path.read_bytes()))
    except FileNotFoundError:
        if named and config_path is None:
            raise UsageError(f"no such file: {path}", where="environment TRIATTN_CONFIG") from None
        return path, {}
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"is not TOML: {error}", where=str(path)) from None
    except UnicodeDecodeError:
        raise UsageError("is not UTF-8", where=str(path)) from None
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from None
