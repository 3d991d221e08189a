"""Start the chat and end it: the one entrance for the command line."""

from __future__ import annotations

from triattn_local.errors import TriattnError
from triattn_local.settings import Settings

from . import garbage
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
    garbage.begin()
    log = settings.sessions / "chat.log"
    try:
        with own_terminal(log):
            app.run()
    finally:
        app.shut_down()
    if app.return_code:
        raise TriattnError("the chat ended by an error; your sessions are stored", where=str(log), fix="this is a bug")
