"""Conversations that outlive the program: stored as they come, found again, moved elsewhere, and their caches."""

from .exchange import from_json, from_markdown, import_file, to_json, to_markdown
from .model import Attachment, Draft, Hit, Message, Session, State
from .snapshot_cache import CachedSnapshot, SnapshotCache
from .store import SessionStore

__all__ = [
    "Attachment",
    "Draft",
    "Hit",
    "Message",
    "Session",
    "SessionStore",
    "SnapshotCache",
    "CachedSnapshot",
    "State",
    "from_json",
    "from_markdown",
    "import_file",
    "to_json",
    "to_markdown",
]
