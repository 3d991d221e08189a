"""Where a value comes from: flag, environment, config file, default, in this order.

The table of settings is the lines of ``config`` and those of ``ProgramConfig`` here: a new line is a new setting. Its
name is the key in ``config.toml``; in capitals behind ``TRIATTN_`` it is the environment variable. A value that cannot
be taken is refused with the name of the place that it came from, also when it is found wrong only later, by ``config``.

Knows nothing of Typer, and of what the values mean.
"""

from __future__ import annotations

import difflib
import functools
import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import platformdirs

from .config import ANSWER, CACHE, ROPE_SCALINGS, EvictionConfig, RuntimeConfig, SamplingConfig, ThinkingConfig
from .errors import UsageError
from .support.paths import decode, expanded
from .support.setting import KEYS, NUMBER, PATH, TEXT, TEXTS, WHOLE, WORD, Setting, lines, one_of, setting

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


SERVER, LOOKS = "Server", "Looks"
"""headings of flags in ``--help``"""


@dataclass(frozen=True)
class ProgramConfig:
    """The settings that belong to the program, and to no context."""

    models: Path = setting(_WhenUsed(default_models_dir), PATH, "Folder that holds the models.")
    stats: Path | None = setting(None, PATH, "Sidecar with the model's statistics, if not inside it.", CACHE, "SIDECAR")
    rope_scaling: str | None = setting(
        None,
        WORD,
        f"RoPE for contexts beyond the trained one: {one_of(ROPE_SCALINGS)}; if not given, as the file has it.",
        CACHE,
        "KIND",
    )

    preset: str | None = setting(
        None, WORD, "Settings of answers that config.toml has under [presets.NAME].", ANSWER, "NAME"
    )
    system: str | None = setting(None, TEXT, "System prompt.", ANSWER, "TEXT")
    max_tokens: int | None = setting(
        None,
        WHOLE,
        "Most tokens to generate; no limit if not given.",
        ANSWER,
        "TOKENS",
        spelled=("-n", "--max-tokens"),
    )
    stop: tuple[str, ...] = setting(
        (), TEXTS, "Text that ends the answer, and is not part of it; may be given several times.", ANSWER, "TEXT"
    )

    pin: float = setting(0.5, NUMBER, "Part of the budget that a prompt may take with keep = auto.")

    sessions: Path = setting(_WhenUsed(default_sessions_dir), PATH, "Folder of the chat's sessions and snapshots.")
    snapshot_memory: int = setting(1024, WHOLE, "MiB of memory for snapshots of the chat's cache.")
    snapshot_disk: int = setting(4096, WHOLE, "MiB of disk for snapshots of the chat's cache.")
    host: str = setting(
        "127.0.0.1", WORD, "Address to listen on; another than this machine's needs a key.", SERVER, "ADDRESS"
    )
    port: int = setting(8080, WHOLE, "Port to listen on, 0 for any free one.", SERVER, "N")
    api_key: str | None = setting(None, WORD, "Key that clients must give.", SERVER, "KEY")
    alias: str | None = setting(None, WORD, "Name of the model for clients; its file's if not given.", SERVER, "NAME")
    slots: int = setting(1, WHOLE, "Requests answered at the same time, each with a budget of its own.", SERVER, "N")
    cache_ram: int = setting(
        8192, WHOLE, "MiB of memory for states that prompts go on from, 0 for none, -1 for no limit.", SERVER, "MIB"
    )
    idle_unload: int | None = setting(
        None, WHOLE, "Seconds without a request after which the model leaves the memory.", SERVER, "SECONDS"
    )
    start_timeout: int = setting(600, WHOLE, "Seconds until it must answer, else it is given up.", SERVER, "SECONDS")
    restarts: int = setting(3, WHOLE, "Crashes within ten minutes after which it is started again.", SERVER, "N")

    theme: str | None = setting(None, WORD, "Colours of the chat; the chat lists them under Theme.", LOOKS, "NAME")
    keys: Mapping[str, str] = setting(dict, KEYS, "Keys of the chat, by the names that its help shows.")


CONFIGS = (RuntimeConfig, EvictionConfig, ProgramConfig, ThinkingConfig, SamplingConfig)
"""the classes whose lines make the table, in its order"""


@functools.cache
def table() -> dict[str, Setting]:
    """Setting -> its line. One that two configs have (``seed``) stands where it has its text."""
    return {line.name: line for config in CONFIGS for line in lines(config) if line.help}


class Settings(ProgramConfig):
    """All settings of one command, each with the place it came from in ``origins``."""

    origins: Mapping[str, str]
    """setting -> "--budget", "environment TRIATTN_BUDGET", "budget in <config.toml>", "auto" or "default" """
    presets: Mapping[str, Mapping[str, Any]]
    """name -> settings of answers, of the config file"""
    mcp: tuple[Mapping[str, Any], str]
    """tables of the config file that name servers of tools, and the file's name; ``tools.servers`` reads them"""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # the settings that configs have

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # it has tables

    def __init__(
        self,
        *,
        origins: Mapping[str, str] | None = None,
        presets: Mapping[str, Mapping[str, Any]] | None = None,
        mcp: tuple[Mapping[str, Any], str] = ({}, ""),
        **values: Any,
    ) -> None:
        of_configs = table().keys() - {entry.name for entry in fields(ProgramConfig)}
        super().__init__(**{name: value for name, value in values.items() if name not in of_configs})
        vars(self).update({name: value for name, value in values.items() if name in of_configs})
        vars(self).update(origins=origins or {}, presets=presets or {}, mcp=mcp)

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
        path, written = _read_config(environ, config_path)

        known = table()
        presets = _presets(written.pop(PRESETS, {}), path)
        mcp: Any = written.pop(MCP, {})
        _check_keys(written, known, str(path))
        named = flags.get("preset") or environ.get(f"{ENV_PREFIX}PRESET", "").strip() or written.get("preset")
        preset = _preset(named, presets, path) if named else {}

        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for name, line in known.items():
            variable = ENV_PREFIX + name.upper()
            # a flag that may come several times, and did not come, is an empty list
            if flags.get(name) not in (None, [], ()):
                origins[name], raw = line.flag or f"--{name}", flags[name]
            elif environ.get(variable, "").strip():
                origins[name], raw = f"environment {variable}", environ[variable]
            elif name in preset:
                origins[name], raw = f"{name} in [presets.{named}] of {path}", preset[name]
            elif name in written:
                origins[name], raw = f"{name} in {path}", written[name]
            else:
                origins[name] = "default"
                if defaults and name in defaults:
                    values[name] = defaults[name]
                continue
            if line.planned and isinstance(raw, str) and raw.strip().lower() == AUTO:
                origins[name] = AUTO
                continue
            try:
                values[name] = line.kind.read(raw)
            except ValueError as error:
                wanted = f"{error} or {AUTO}" if line.planned else str(error)
                raise UsageError(f"{raw!r} is not {wanted}", where=origins[name]) from None
        return cls(**values, origins=origins, presets=presets, mcp=(mcp, str(path)))

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
        if self.budget is None:
            return None
        is_auto = self.keep == AUTO
        return self._made(EvictionConfig, n_keep=self.n_keep, pin=self.pin if is_auto else 0.0)

    @property
    def n_keep(self) -> int:
        """First tokens that are never evicted, whether the prompt is pinned or not."""
        return EvictionConfig.n_keep if self.keep == AUTO else self.keep

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
        return self._made(RuntimeConfig, n_batch=batch, n_ubatch=min(batch, RuntimeConfig.n_ubatch), verbose=verbose)

    def sampling(self, suggested: Mapping[str, float] | None = None) -> SamplingConfig:
        """How tokens are drawn. Raises UsageError that names where a bad value came from.

        Parameters
        ----------
        suggested : mapping, optional
            Fields of SamplingConfig that the model's file has values for: they count where nobody gave the setting.
        """
        given = {name for name, called in SAMPLING.items() if self.is_given(called)}
        return self._made(
            SamplingConfig, **{name: value for name, value in (suggested or {}).items() if name not in given}
        )

    def thinking(self) -> ThinkingConfig:
        """How much the model thinks. Raises UsageError that names where a bad value came from."""
        return self._made(ThinkingConfig)

    def n_predict(self) -> int | None:
        """Most tokens to generate, None for no limit but the context's."""
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"must be at least 1, not {self.max_tokens}", where=self.origins.get("max_tokens", "-n"))
        return self.max_tokens

    def _made(self, config: type[T], **other: Any) -> T:
        """``config`` speaks of flags; say instead where the value was really written."""
        values = {line.field: getattr(self, line.name) for line in lines(config) if line.name}
        try:
            return config(**{**values, **other})
        except UsageError as error:
            written = [self.origins[name] for name in _behind(error.where) if self.is_given(name)]
            raise UsageError(error.what, where=", ".join(written) or error.where, fix=error.fix) from None


for _line in table().values():
    if _line.name not in ProgramConfig.__dataclass_fields__:
        setattr(Settings, _line.name, _line.default)

SAMPLING = {line.field: line.name for line in lines(SamplingConfig) if line.name}
"""field of SamplingConfig -> its setting"""

PRESETS, MCP = "presets", "mcp"
"""tables of the config file"""

ANSWERS = tuple(name for name, line in table().items() if line.panel == ANSWER and name != "preset")
"""settings of answers: what a preset may have"""

_BEHIND: dict[str | None, tuple[str, ...]] = {
    "--budget": ("budget", "window", "keep"),
    "--cache-type-v": ("cache_type_v", "flash_attn"),
    "n_ubatch": ("batch",),
}
"""what ``config`` calls a value -> the settings that may have made it wrong, if it is not one alone"""


def _behind(where: str | None) -> tuple[str, ...]:
    return _BEHIND.get(where) or tuple(name for name, line in table().items() if line.where == where)


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """Variables that begin like ours and are none of ours: most likely typing errors."""
    environ = os.environ if environ is None else environ
    known = {ENV_PREFIX + name.upper() for name in table()} | OTHER_VARIABLES.keys()
    return sorted(name for name in environ if name.startswith(ENV_PREFIX) and name not in known)


def _check_keys(keys: Mapping[str, object], known: Collection[str], where: str, kind: str = "setting") -> None:
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise UsageError(
                f"{key!r} is not a {kind}",
                where=where,
                fix=f"did you mean {near[0]!r}?" if near else f"the settings are {', '.join(known)}",
            )


def _presets(written: object, path: Path) -> dict[str, dict[str, Any]]:
    """All presets, each of them checked: a mistake is told before it is the one that is needed."""
    if not isinstance(written, dict) or not all(isinstance(given, dict) for given in written.values()):
        raise UsageError(f"are tables, such as [{PRESETS}.coder]", where=f"{PRESETS} in {path}")
    presets: dict[str, dict[str, Any]] = {}
    for name, given in written.items():
        where = f"[{PRESETS}.{name}] of {path}"
        _check_keys(given, ANSWERS, where, "setting of answers")
        presets[name] = {}
        for key, raw in given.items():
            try:
                presets[name][key] = table()[key].kind.read(raw)
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
