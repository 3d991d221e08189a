"""What is served when nobody said otherwise: the one place that looks at the model and the machine.

Flags, environment and config file stand above all of it.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Sequence
from pathlib import Path

from ..config import ThinkingConfig
from ..engine.contexts import physical_cores
from ..engine.devices import free_memory
from ..engine.runtime import has_gpu
from ..engine.vocabulary import template_syntax_fault
from ..errors import ModelNotFoundError, UsageError
from ..model.gguf_file import read_gguf
from ..model.model_info import read_model_info
from ..planning import plan_run
from ..settings import Settings
from .command import ServerConfig
from .handed_on import check_flags

CPU_BATCH = 128
"""tokens: on a CPU a batch of this size is through within the second in which a client's leaving is to be noticed"""


def choose(settings: Settings, path: Path, *, evict: bool = True, extra: Sequence[str] = ()) -> ServerConfig:
    """What to serve, from the settings, the model and the machine.

    Raises
    ------
    DoesNotFitError
        Nothing that was asked for fits the machine.
    StatsError
        The model has no statistics to evict by.
    UsageError
        A setting that cannot be taken.
    ModelNotFoundError
        The chat template is broken.
    """
    check_flags(extra)  # before the plan, which takes seconds
    settings = _fitted(settings)
    plan = plan_run(
        path,
        settings,
        evict=evict,
        n_parallel=max(settings.slots, 1),
        checkpoint_bytes=max(settings.cache_ram, 0) * 2**20,
    )
    info, config = read_model_info(path), plan.config
    if config.rope_scaling is not None and config.n_ctx > info.n_ctx_train:
        # llama-server cuts a slot off where training ended, and knows of YaRN alone that it goes on
        extra = (*extra, "--override-kv", f"{info.arch}.context_length=int:{config.n_ctx}")
    return ServerConfig(
        model=path,
        runtime=dataclasses.replace(plan.config, n_threads=plan.config.n_threads or physical_cores()),
        eviction=plan.eviction,
        stats_path=settings.stats,
        host=settings.host,
        port=settings.port or free_port(settings.host),
        api_key=settings.api_key,
        alias=settings.alias,
        n_slots=settings.slots,
        cache_ram_mib=settings.cache_ram,
        idle_unload_s=settings.idle_unload,
        start_timeout_s=settings.start_timeout,
        thinking=_thinking(settings.thinking(), path),
        extra=(*template_words(path, extra), *extra),
        why=plan.why,
    )


def template_words(model: Path, extra: Sequence[str] = ()) -> tuple[str, ...]:
    """What llama-server is told about the chat template: a blank one is none, and ChatML stands in for it.

    Raises
    ------
    ModelNotFoundError
        The model's own template is broken, and `extra` names no other.
    """
    if any(word.startswith("--chat-template") for word in extra):
        return ()
    template = read_gguf(model).text("tokenizer.chat_template")
    if template is None:
        return ()
    if not template.strip():
        return ("--chat-template", "chatml")
    if (fault := template_syntax_fault(template)) is not None:
        raise ModelNotFoundError(fault, where=str(model), fix="serve it with another one: -- --chat-template-file FILE")
    return ()


def _thinking(asked: ThinkingConfig, model: Path) -> ThinkingConfig:
    """Thinking that is off, and that the template cannot turn off, is ended by a budget instead."""
    if not asked.is_off:
        return asked
    template = read_gguf(model).text("tokenizer.chat_template") or ""
    switches = any(name in template for name in asked.arguments())
    # of one token: llama-server takes what a template writes behind the opening mark, a new line, for thinking, and at
    # a budget of none for the mark that it was to put itself
    return dataclasses.replace(asked, enabled=False, budget_tokens=None if switches else 1)


def _fitted(settings: Settings) -> Settings:
    """Settings with what the plan does not choose filled in where nobody gave it."""
    values: dict[str, int] = {}
    if not settings.is_given("batch") and not has_gpu():
        values["batch"] = min(settings.batch, CPU_BATCH)
    if not settings.is_given("cache_ram"):
        values["cache_ram"] = min(settings.cache_ram, free_memory() // 4 // 2**20)
    return settings.changed("default", **values)


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
