"""What is served when nobody said otherwise: the one place that looks at the model and the machine.

Flags, environment and config file stand above all of it.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Sequence
from pathlib import Path

from ..devices import free_memory
from ..errors import UsageError
from ..inspection import usable_stats
from ..model_info import ModelInfo, read_model_info
from ..runtime import has_gpu, physical_cores
from ..settings import Settings
from .command import ServerConfig

LONGEST_CTX = 131072
"""tokens; nobody is given a longer context who did not ask for one"""

CPU_BATCH = 128
"""tokens: on a CPU a batch of this size is through within the second in which a client's leaving is to be noticed"""


def choose(settings: Settings, path: Path, *, evict: bool = True, extra: Sequence[str] = ()) -> ServerConfig:
    """What to serve, from the settings, the model and the machine.

    Raises
    ------
    StatsError
        The model has no statistics to evict by.
    UsageError
        A setting that cannot be taken.
    """
    info = read_model_info(path)
    settings = fitted(settings, info)
    if info.n_ctx_train and settings.ctx > info.n_ctx_train:
        raise UsageError(
            f"the model was trained for {info.n_ctx_train:,} tokens, and llama-server goes no further",
            where="--ctx",
            fix=f"give --ctx {info.n_ctx_train} or less",
        )
    eviction = settings.eviction() if evict else None
    if eviction is not None and eviction.policy == "triattention":
        usable_stats(info, settings.stats)
    runtime = settings.runtime()
    return ServerConfig(
        model=path,
        runtime=dataclasses.replace(runtime, n_threads=runtime.n_threads or physical_cores()),
        eviction=eviction,
        stats_path=settings.stats,
        host=settings.host,
        port=settings.port or free_port(settings.host),
        api_key=settings.api_key,
        alias=settings.alias,
        n_slots=settings.slots,
        cache_ram_mib=settings.cache_ram,
        idle_unload_s=settings.idle_unload,
        extra=tuple(extra),
    )


def fitted(settings: Settings, info: ModelInfo) -> Settings:
    """Settings with what nobody gave filled in, for this model on this machine: context, batch, memory for states."""
    values: dict[str, int] = {}
    if settings.origins.get("ctx") == "default":
        # the cache does not grow with the context: agents, which ask for much, may have all that the model knows
        values["ctx"] = min(info.n_ctx_train or settings.ctx, LONGEST_CTX)
    if settings.origins.get("batch") == "default" and not has_gpu():
        values["batch"] = min(settings.batch, CPU_BATCH)
    if settings.origins.get("cache_ram") == "default":
        values["cache_ram"] = min(settings.cache_ram, free_memory() // 4 // 2**20)
    return dataclasses.replace(settings, **values)  # type: ignore[arg-type]  # all of them are int


def free_port(host: str) -> int:
    """A port that nobody listens on now."""
    with _bound(host, 0) as sock:
        return int(sock.getsockname()[1])


def check_port(config: ServerConfig) -> None:
    """Refuse a port that is taken: whoever has it might answer in the server's place.

    Raises
    ------
    UsageError
        It cannot be listened on.
    """
    _bound(config.host, config.port).close()


def _bound(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise UsageError(
            f"port {port} of {host} cannot be listened on: {error.strerror or error}",
            where="--port",
            fix="give --port 0 for a free one",
        ) from None
    return sock
