"""Conversations that outlive the program: stored as they come, found again, moved elsewhere, and their caches."""

from .exchange import from_json, from_markdown, import_file, to_json, to_markdown
from .model import Attachment, Draft, Hit, Message, Session, State
from .shelf import Shelf, Shelved
from .store import SessionStore

__all__ = [
    "Attachment",
    "Draft",
    "Hit",
    "Message",
    "Session",
    "SessionStore",
    "Shelf",
    "Shelved",
    "State",
    "from_json",
    "from_markdown",
    "import_file",
    "to_json",
    "to_markdown",
]
