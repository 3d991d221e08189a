"""Serve a model until a signal comes: the parts of this package put together."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from .api import Api
from .child import Line, ServerProcess, Supervisor
from .choose import check_port
from .command import ServerConfig, command, environment, executable
from .handed_on import unheeded

_CHATTER = re.compile(
    r"cmn |que |warning: (?:one possible|consult)|"
    r"srv +(?:save|restore|llama_server: initializing|log_server_r)|"
    r"slot +(?:get_availabl|launch_slot_|release|print_timing.*(?:total time|graphs reused))"
)
"""what llama-server says of every start and every request; the times of a request are kept"""


def serve(
    config: ServerConfig,
    ready: Callable[[int], None],
    log: Callable[[Line], None],
    *,
    max_restarts: int = 3,
) -> int | None:
    """Start llama-server, keep it running, stop it on SIGINT, SIGTERM or SIGHUP. For the main thread.

    Parameters
    ----------
    ready : callable
        Called with llama-server's pid each time that it begins to answer.
    log : callable
        Takes each line of the log, from another thread.

    Returns
    -------
    int or None
        The signal that ended it; None if llama-server ended by itself, without an error.

    Raises
    ------
    UsageError
        The port is taken.
    DoesNotFitError
        The memory is too small.
    BackendMissingError
        There is no llama-server.
    TriattnError
        It does not start, does not answer in time, or crashes too often.
    """
    line = command(config, executable())
    variables = environment(config, os.environ)
    for name, instead in unheeded(os.environ).items():
        log(Line("warn", f"environment {name} is not heeded; {instead}"))
    api = Api(config.base_url, config.api_key, is_near=True)
    check_port(config)
    supervisor = Supervisor(
        lambda: ServerProcess(line, variables, log), api.is_healthy, log, max_restarts, start_s=config.start_timeout_s
    )
    return supervisor.run(ready)


def is_chatter(line: Line) -> bool:
    """Whether a line is one of those that every request has."""
    return line.level in ("info", "debug") and _CHATTER.match(line.text) is not None
