"""The Typer app, and the one place that catches errors and prints them: each error knows its exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import from_system
from ..support import console
from ..version import __version__
from .flags import switch

EXIT_INTERRUPTED = 130

_EPILOG = (
    "Flags come before the environment (TRIATTN_BUDGET for --budget, and so on), the environment before config.toml. "
    "Exit codes: 0 ok, 1 failure, 2 usage, 3 model missing, 4 does not fit, 5 backend missing, "
    "6 statistics missing or not this model's, 130 interrupted."
)


class _InOrder(TyperGroup):
    """Commands in the order of a first use, not of the alphabet."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  # click's name
        return list(self.commands)


app = typer.Typer(
    name="triattn-local",
    cls=_InOrder,
    help="Long reasoning on one desktop GPU: llama.cpp with a KV cache that keeps what later queries will want.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run_app(args))


def run_app(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    console.prepare()
    try:
        code = app(args=args, prog_name="triattn-local", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        # Typer knows which command the flag was meant for, but keeps it to itself in some versions
        command = getattr(getattr(error, "ctx", None), "command_path", "triattn-local")
        text = error.format_message()
        return _fail(error, f"{text.rstrip('.')}; see {command} --help" if text else "", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except SystemExit as end:  # Typer's own answer to a closed pipe
        return end.code if isinstance(end.code, int) else 1
    except BrokenPipeError:
        return 1  # whoever read our stdout has gone: nothing left to say
    except Exception as error:
        told = from_system(error)
        if told is not None:
            return _fail(error, str(told), told.exit_code)
        text = f"{type(error).__name__}: {error}; this is a bug, TRIATTN_DEBUG=1 shows where"
        return _fail(error, text, 1)
    finally:
        console.drop_unwritten()


def _fail(error: BaseException, text: str, code: int) -> int:
    if os.environ.get("TRIATTN_DEBUG", "0") not in ("", "0"):
        with contextlib.suppress(OSError):
            traceback.print_exception(error)
    if text:
        console.say_error(text)
    return code


def _version(value: bool) -> None:
    if value:
        print(f"triattn-local {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, switch("--version", "Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    del version
