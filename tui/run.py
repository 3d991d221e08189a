"""Start the chat and end it: the one entrance for the command line."""

from __future__ import annotations

import gc

from triattn_local.errors import TriattnError
from triattn_local.settings import Settings

from .app import ChatApp, Start
from .terminal import own_terminal


def run_chat(settings: Settings, start: Start) -> None:
    """Run the app until the user leaves it.

    Raises
    ------
    TriattnError
        What the command line asks for cannot be opened, or the app itself failed; its log says where.
    """
    app = ChatApp(settings, start)
    _collect_in_small_steps()
    log = settings.sessions / "chat.log"
    try:
        with own_terminal(log):
            app.run()
    finally:
        app.shut_down()
    if app.return_code:
        raise TriattnError("the chat ended by an error; your sessions are stored", where=str(log), fix="this is a bug")


def _collect_in_small_steps() -> None:
    """Look for garbage among young objects only: a search through all takes longer than a key may wait.

    A streaming answer makes objects by the hundred thousand, which Python takes for a reason to search through all of
    them. What is left lying is collected between the turns, when nothing moves.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100_000)
