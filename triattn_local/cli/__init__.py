"""The command line: flags in, data on stdout, progress and errors on stderr, an exit code.

Thin on purpose: a command reads its flags, calls one module, and shows what comes back. Heavy modules are imported
by the command that needs them, so that ``--help`` and completion answer at once, and ``doctor`` can say that the
library is missing.
"""

# in the order of a first use, which is that of the help
from . import models, convert, inspect, plan, run, chat, serve, bench, evaluate, doctor  # noqa: F401, I001
from .app import app, main, run_app

__all__ = ["app", "main", "run_app"]
