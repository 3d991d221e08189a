"""How llama-server is started: our settings in its words.

Knows llama-server's flags, and nothing of processes.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..config import EvictionConfig, RuntimeConfig, ThinkingConfig, kv_overrides
from ..engine.context_options import ContextOptions
from ..errors import BackendMissingError, UsageError
from .handed_on import NEUTRAL, check_flags, flags_of, overrides_in, unheeded


@dataclass(frozen=True)
class ServerConfig:
    """What is served, to whom, and with how much memory."""

    model: Path
    runtime: RuntimeConfig
    """n_ctx is that of each slot"""
    eviction: EvictionConfig | None
    """None: full attention"""
    stats_path: Path | None = None
    """sidecar with the statistics; None: the model's own"""
    host: str = "127.0.0.1"
    port: int = 8080
    """never 0 here: a restarted server must be found where it was"""
    api_key: str | None = None
    alias: str | None = None
    """name of the model for clients; None: the file's"""
    n_slots: int = 1
    """requests that are answered at the same time, each with a budget of its own"""
    cache_ram_mib: int = 8192
    """MiB of memory for states of sequences to go back to; 0 for none, -1 for no limit"""
    idle_unload_s: int | None = None
    """seconds without a request after which the model leaves the memory; the next one loads it again"""
    start_timeout_s: int = 600
    """seconds until it must answer"""
    thinking: ThinkingConfig = field(default_factory=ThinkingConfig)
    """how requests that say nothing of it are thought about"""
    extra: Sequence[str] = ()
    """flags for llama-server itself; they come last, and win, but must not set what is set here"""
    why: str | None = None
    """what was chosen and why, on one line; None where a person fixed everything"""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise UsageError(f"{self.port} is not a port", where="--port", fix="give 1 to 65535, or 0 for any free one")
        if self.n_slots < 1:
            raise UsageError(f"must be at least 1, not {self.n_slots}", where="--slots")
        if self.cache_ram_mib < -1:
            raise UsageError(f"must not be negative, not {self.cache_ram_mib}", where="--cache-ram")
        if self.idle_unload_s is not None and self.idle_unload_s < 1:
            raise UsageError(f"must be at least 1 second, not {self.idle_unload_s}", where="--idle-unload")
        if self.start_timeout_s < 1:
            raise UsageError(f"must be at least 1 second, not {self.start_timeout_s}", where="--start-timeout")
        if self.api_key is not None and not _KEY.fullmatch(self.api_key):
            raise UsageError(
                "an API key is letters, digits and signs of ASCII, without space, comma and quotation mark",
                where="--api-key",
            )
        if self.alias is not None and not _plain(self.alias):
            raise UsageError("is no name", where="--alias")
        check_flags(self.extra)
        if self.api_key is None and not is_loopback(self.host):
            raise UsageError(
                f"{self.host} can be reached from other machines, and anybody there could use the model",
                where="--host",
                fix="give an --api-key too, or --host 127.0.0.1",
            )

    @property
    def name(self) -> str:
        """The model's name for clients, as llama-server will say it.

        Without a slash, which some clients take for a provider's, without a comma, at which llama-server takes names
        apart, and in UTF-8.
        """
        return _plain(self.alias or "") or _plain(self.model.stem.removesuffix(".triattn")) or "model"

    @property
    def address(self) -> str:
        """Where this machine reaches it, without a path."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  # binds nothing
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What the clients of OpenAI's protocol call the base URL."""
        return f"{self.address}/v1"


_KEY = re.compile(r"[!#-+\--~]+")


def _plain(name: str) -> str:
    """A name that comes out of llama-server's own taking apart as it went in; "" if nothing is left of it."""
    text = name.encode("utf-8", "replace").decode()
    return re.sub(r"[/,\x00-\x1f\x7f]", "-", text).strip()


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def executable() -> Path:
    """llama-server beside the library that Python loads.

    Raises
    ------
    BackendMissingError
        There is none.
    """
    spec = importlib.util.find_spec("llama_cpp")
    path = Path(spec.origin).parent / "bin" / "llama-server" if spec and spec.origin else None
    if path is None or not os.access(path, os.X_OK):
        raise BackendMissingError("llama-server of the patched build is not there", fix="pip install ./native")
    return path


HTTP_THREADS = 64
PING_S = 5
"""a streaming client hears something at least this often, also while it waits for a slot: some give up on a silence"""


def command(config: ServerConfig, program: Path) -> list[str]:
    """The command line. The API key is not on it, for all users of a machine can read command lines."""
    runtime = config.runtime
    # each slot has cells of its own: a budget each
    options = ContextOptions.of(runtime, n_seq=config.n_slots)
    overrides, extra = overrides_in(config.extra)
    overrides = [f"{key}={_typed(value)}" for key, value in kv_overrides(config.eviction).items()] + overrides
    words: dict[str, object] = {
        "--model": config.model,
        "--alias": config.name,
        "--host": config.host,
        "--port": config.port,
        **options.server_flags(),
        "--gpu-layers": "all" if runtime.n_gpu_layers < 0 else runtime.n_gpu_layers,
        "--cache-ram": config.cache_ram_mib,
        # a client that sends its request slowly holds one; the pool that grows as needed may let others wait behind it
        "--threads-http": HTTP_THREADS,
        "--sse-ping-interval": PING_S,
        # no page of the web that is open in a browser here may use the model
        "--cors-origins": "localhost",
        # the memory was planned: llama-server is not to shrink the context to what it thinks is free
        "--fit": "off",
        "--override-kv": ",".join(overrides),
        **NEUTRAL,
    }
    if runtime.tensor_split is not None:
        words["--tensor-split"] = ",".join(str(part) for part in runtime.tensor_split)
    if runtime.n_threads is not None:
        words["--threads"] = words["--threads-batch"] = runtime.n_threads
    if config.idle_unload_s is not None:
        words["--sleep-idle-seconds"] = config.idle_unload_s
    words |= _thinking_words(config.thinking)
    words |= dict.fromkeys(("--jinja", "--metrics", "--slots", "--log-jsonl"))
    # thoughts of earlier answers cost tokens in every prompt, and llama-server would have templates keep them
    words["--no-reasoning-preserve"] = None
    given = flags_of(extra)
    pairs = [pair for pair in words.items() if pair[0] not in given]
    return [str(program), *(str(part) for pair in pairs for part in pair if part is not None), *extra]


def _thinking_words(thinking: ThinkingConfig) -> dict[str, object]:
    words: dict[str, object] = {}
    given = thinking.arguments()
    if "enable_thinking" in given:
        words["--reasoning"] = "on" if given["enable_thinking"] else "off"
    if "reasoning_effort" in given:
        words["--reasoning-effort"] = given["reasoning_effort"]
    if thinking.budget_tokens is not None:
        words["--reasoning-budget"] = thinking.budget_tokens
    # the names that llama-server does not give by itself
    others = {name: given[name] for name in ("thinking", "thinking_budget") if name in given}
    if others:
        words["--chat-template-kwargs"] = json.dumps(others)
    return words


def environment(config: ServerConfig, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment: what is set on the command line is set there only.

    Raises
    ------
    UsageError
        It has a key for llama-server that clients would not be told of.
    """
    if inherited.get("LLAMA_API_KEY") and config.api_key is None:
        raise UsageError(
            "llama-server would ask clients for a key that serve knows nothing of",
            where="environment LLAMA_API_KEY",
            fix="set TRIATTN_API_KEY in its place, or unset it",
        )
    not_ours = unheeded(inherited)
    kept = {name: text for name, text in inherited.items() if not name.startswith("TRIATTN_") and name not in not_ours}
    if not config.runtime.yield_cores:
        kept["TRIATTN_YIELD_CORES"] = "0"
    if config.stats_path is not None:
        # a KV override holds 127 characters only
        kept["TRIATTN_STATS"] = str(config.stats_path)
    if config.api_key is not None:
        kept["LLAMA_API_KEY"] = config.api_key
    return kept


def _typed(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return f"bool:{str(value).lower()}"
    kind = "int" if isinstance(value, int) else "float" if isinstance(value, float) else "str"
    return f"{kind}:{value}"
