"""The app: what outlives a screen. Settings, the store, the engine, the model that is loaded, themes and keys."""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.console import RenderableType
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.filter import LineFilter
from textual.screen import Screen

from triattn_local.config import SamplingConfig, ThinkingConfig
from triattn_local.engine.runtime import RuntimeStats
from triattn_local.errors import TriattnError, UsageError
from triattn_local.inspection.describe import glance
from triattn_local.sessions import Message, Session, SessionStore, SnapshotCache
from triattn_local.sessions.conversation import Retained
from triattn_local.settings import SAMPLING, Settings
from triattn_local.support.paths import is_file
from triattn_local.tools.host import ToolHost
from triattn_local.tools.permissions import Permissions
from triattn_local.tools.servers import from_tables, from_words

from .engine import Engine
from .few_colors import ReadableOnLight
from .jobs import Job, JobDone, JobProgress
from .keys import Group, check_keys, group
from .screens.chat import ChatScreen
from .screens.help import HelpScreen
from .screens.map import MapScreen
from .screens.models import ModelsScreen
from .screens.sessions import SessionsScreen
from .screens.settings import SettingsScreen
from .screens.tools import ToolsScreen
from .session import OpenSession
from .terminal_keys import ChatDriver
from .theme import DEFAULT, THEMES
from .toolbox import Toolbox
from .widgets.code_block import CodeBlock
from .widgets.messages import MessageWidget
from .widgets.prompt import Prompt

PURGE_S = 7 * 24 * 3600
"""seconds that a deleted session can still be brought back by hand"""


@dataclass(frozen=True)
class Start:
    """What the command line asks for."""

    model: Path | None = None
    session: str | None = None
    """id of a session to go on with"""
    newest: bool = False
    """go on with the session used last"""
    system: str = ""
    evict: bool = True
    verbose: bool = False
    mcp: tuple[str, ...] = ()
    """servers of tools beside those of the settings: command lines and addresses"""


def key_groups() -> list[Group]:
    """All keys that have a name, in the order of the help."""
    return [
        group("Writing", Prompt),
        group("Anywhere", ChatScreen, ChatApp),
        group("On a message (Shift+Tab from the prompt)", MessageWidget),
        group("On a code block", CodeBlock),
        group("In the list of sessions", SessionsScreen),
        group("In the list of models", ModelsScreen),
    ]


class ChatApp(App[None]):
    """``triattn-local chat``."""

    TITLE = "triattn-local"
    ENABLE_COMMAND_PALETTE = True
    CSS = """
    ToastRack { dock: top; align: right top; margin: 1 0 0 0; }
    Toast { background: $panel; color: $foreground; border-left: outer $primary; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "All keys", id="help", priority=True),
        Binding("ctrl+q", "quit", "Leave", id="quit", priority=True),
    ]

    def __init__(self, settings: Settings, start: Start | None = None) -> None:
        """Open the store and the session; nothing is loaded yet.

        Raises
        ------
        UsageError, StateError
            The store cannot be opened, there is no such session, or a setting cannot be taken.
        """
        super().__init__(driver_class=ChatDriver)
        self.settings = settings
        self.start = start or Start()
        self.sampling: SamplingConfig = settings.sampling()
        self.max_tokens = settings.n_predict()
        self.thinking: ThinkingConfig = settings.thinking()
        settings.runtime()
        settings.eviction()
        servers = [*from_tables(*settings.mcp), *from_words(self.start.mcp)]
        for own in THEMES:
            self.register_theme(own)
        self.store = SessionStore(settings.sessions)
        self.snapshots = SnapshotCache(
            settings.sessions / "snapshots",
            memory_bytes=settings.snapshot_memory << 20,
            disk_bytes=settings.snapshot_disk << 20,
            on_error=self._no_snapshot,
        )
        for gone in self.store.purge(PURGE_S):
            self.snapshots.forget(gone)
        self._remembered: dict[str, Any] = {}
        """preferences as they are, also those that could not be stored"""
        theme = settings.theme or self.store.preference("theme", DEFAULT)
        if theme not in self.available_themes:
            if settings.theme:
                raise UsageError(
                    f"{theme!r} is not a theme",
                    where=settings.origins.get("theme"),
                    fix=f"the themes are {', '.join(sorted(self.available_themes))}",
                )
            theme = DEFAULT
        self.theme = theme
        check_keys(settings.keys, key_groups(), settings.origins.get("keys"))
        self.set_keymap(dict(settings.keys))
        self.session = OpenSession(self.store, self._first_session(), system=self.start.system)
        from_file = settings.is_given("system") and settings.origins["system"] != "--system"
        if self.start.system and self.session.session is not None and not from_file:
            self.session.change(system=self.start.system)
        self.model: Path | None = None
        self.other_models: list[Path] = []
        """named by path, and not in the models folder"""
        self.failed: Path | None = None
        """what could not be loaded with the settings as they are"""
        self.evict = self.start.evict
        """whether the model that is there, or was asked for last, forgets"""
        self.loading = False
        self.loaded: RuntimeStats | None = None
        """what the model was loaded with"""
        self.map_open = False
        self._leaves = False
        self.chat = ChatScreen(settings.keys)
        self.engine = Engine(self.chat.post_message, self.store, self.snapshots)
        self.toolbox = Toolbox(
            ToolHost(servers),
            Permissions(lambda: self.preference("tools", {}), lambda said: self.remember("tools", said)),
            self.engine.count_tokens,
        )
        self.job = Job(self.post_message, settings.models)

    def get_line_filters(self) -> Sequence[LineFilter]:
        few = self.console.color_system in ("standard", "windows") and not self.current_theme.dark
        return [*super().get_line_filters(), ReadableOnLight()] if few else super().get_line_filters()

    def _no_snapshot(self, error: TriattnError) -> None:
        self.call_later(self.notify, f"No snapshot on disk: {error}", severity="warning")

    def _first_session(self) -> Session | None:
        if self.start.session is not None:
            return self.store.open(self.start.session)
        newest = self.store.sessions(1) if self.start.newest else []
        return self.store.open(newest[0].id) if newest else None

    @property
    def model_name(self) -> str:
        return self.model.name.removesuffix(".gguf") if self.model else ""

    def preference(self, name: str, default: Any = None) -> Any:
        """What was remembered."""
        return self._remembered.get(name, self.store.preference(name, default))

    def remember(self, name: str, value: Any) -> None:
        """Keep a preference, for this time at least."""
        self._remembered[name] = value
        with self.telling():
            self.store.remember(name, value)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """What goes wrong inside is told, and ends what is inside only: a full disk, a session that is gone."""
        try:
            yield
        except TriattnError as error:
            self.notify(str(error), severity="error", timeout=15)

    def get_default_screen(self) -> Screen[None]:
        return self.chat

    def on_mount(self) -> None:
        self.theme_changed_signal.subscribe(self, lambda theme: self.remember("theme", theme.name))
        self.toolbox.host.start()
        self.call_after_refresh(self._first_model)

    def _first_model(self) -> None:
        """The model that was asked for, else the session's, else the last one; else a choice."""
        named = [self.start.model, self.session.session.model if self.session.session else None]
        for candidate in [*named, self.preference("model")]:
            if candidate and is_file(Path(candidate)):
                self.load_model(Path(candidate))
                return
        self.action_models()

    # ------------------------------------------------------------------- model

    def load_model(self, path: Path, *, evict: bool | None = None) -> None:
        """Load it in the engine's thread; messages wait there for it. `evict` None: as with the last one."""
        self.model, self.failed, self.loading = path, None, True
        self.evict = self.evict if evict is None else evict
        self.chat.status.state, self.chat.status.busy = f"loading {self.model_name}", True
        self.engine.load(path, self.settings, evict=self.evict, verbose=self.start.verbose)

    def model_loaded(self, path: Path, stats: RuntimeStats, why: str | None, suggested: Mapping[str, float]) -> None:
        self.loading, self.loaded = False, stats
        self.sampling = self.settings.sampling(suggested)
        if why:
            self.notify(why, title=self.model_name)
        self.remember("model", str(path))

    def model_failed(self, path: Path) -> None:
        self.model, self.failed, self.loading, self.loaded = None, path, False, None

    def change_settings(self, settings: Settings, *, evict: bool | None = None) -> None:
        """Take new settings; what the context depends on loads the model anew, or tries again what failed."""
        same = settings == self.settings
        self.settings = settings
        if self.failed is not None:
            self.load_model(self.failed, evict=evict)
        elif not same and self.model is not None:
            self.load_model(self.model, evict=evict)

    # ----------------------------------------------------------------- session

    async def open_session(self, session: Session | None) -> None:
        """Go to another session, or to a new one."""
        if session is not None:
            session = self.store.open(session.id)
        if session is None or session.id != self.session.id:
            self.session.close()
            self.chat.forget_numbers()
        self.session = OpenSession(self.store, session, system=self.start.system)
        await self.chat.show_session()

    # ------------------------------------------------------------------- jobs

    def on_job_progress(self, event: JobProgress) -> None:
        if isinstance(self.screen, ModelsScreen):
            self.screen.show_progress(event)
        percent = f" {100 * event.done // event.total} %" if event.total else ""
        if not self.chat.busy:
            self.chat.status.state, self.chat.status.busy = f"{event.stage}{percent}", True

    def on_job_done(self, event: JobDone) -> None:
        if not self.chat.busy:
            self.chat.status.state, self.chat.status.busy = "ready" if self.model else "no model", False
        if isinstance(self.screen, ModelsScreen):
            self.screen.show_done(event)
        elif event.path is not None and self.model is None and not self.chat.busy and glance(event.path)[1]:
            self.notify(f"{event.path.name} is ready.")
            self.load_model(event.path)
        elif event.path is not None:
            self.notify(f"{event.path.name} is ready; F3 opens it.")
        elif event.error is not None:
            self.notify(str(event.error), severity="error", timeout=15)

    # ----------------------------------------------------------------- screens

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        # Textual's own panel of keys knows neither names nor places, and there is nothing to maximise
        ours = (command for command in super().get_system_commands(screen) if command.title in ("Theme", "Quit"))
        yield from ours
        yield SystemCommand("Keys", "All of them, and the names by which the settings change them", self.action_help)
        if screen is self.chat:
            chat = self.chat
            yield SystemCommand("New conversation", "Start from nothing", chat.action_new)
            yield SystemCommand("Sessions", "Open, search, rename, delete, export, import", self.action_sessions)
            yield SystemCommand("Models", "Choose, fetch, convert", self.action_models)
            yield SystemCommand("Settings", "System prompt, sampling, memory", self.action_settings)
            yield SystemCommand("Tools", "Servers, and which of their tools may be called", self.action_tools)
            for name in self.settings.presets:
                about = "System prompt, sampling and thinking of config.toml, for this session"
                yield SystemCommand(f"Preset: {name}", about, functools.partial(self.use_preset, name))
            yield SystemCommand("Attach a file", "A text file that goes with the message", chat.action_attach)
            yield SystemCommand("Answer anew", "One more answer to the last message", chat.action_again)
            about = "The model writes what it reads from then on in the place of all turns but the last"
            yield SystemCommand("Summarise the conversation", about, chat.action_summarise)
            yield SystemCommand("Memory panel", "Show or hide it", chat.action_memory)
            yield SystemCommand("Memory map", "What each layer keeps of the conversation", self.action_map)
            yield SystemCommand("Dim what is forgotten", "Text that no head holds any more", chat.action_dim)
            yield SystemCommand("Copy last code block", "To the clipboard", chat.action_copy_code)

    def use_preset(self, name: str) -> None:
        """Answer this session by a preset from now on, in the place of what was set for it before."""
        preset = dict(self.settings.presets[name])
        system = preset.pop("system", None)
        fields_of = {setting: field for field, setting in SAMPLING.items()}
        with self.telling():
            options = {fields_of.get(setting, setting): value for setting, value in preset.items()}
            self.session.change(system=system, options=options)
            self.notify(f"This session is answered by the preset {name}; F4 shows it.")

    def _push(self, screen: Screen[None]) -> None:
        if self.screen is self.chat:
            self.push_screen(screen)

    def action_help_quit(self) -> None:
        """Ctrl+C with nothing to copy: what it means in every other program at a prompt."""
        if self.chat.busy:
            self.chat.action_stop()
        else:
            self.notify("Ctrl+Q leaves.")

    def action_help(self) -> None:
        self._push(HelpScreen(key_groups(), self.settings.keys))

    def action_sessions(self) -> None:
        if not self.chat.refuse_while_busy():
            self._push(SessionsScreen())

    def action_models(self) -> None:
        self._push(ModelsScreen())

    def action_settings(self, ctx: int | None = None) -> None:
        """F4; with a context that is proposed."""
        self._push(SettingsScreen(ctx))

    def action_tools(self) -> None:
        self._push(ToolsScreen())

    def action_map(self) -> None:
        self.map_open = True
        self.engine.map_wanted = True
        self._push(MapScreen())
        self.engine.read_cache(self.session.id, self.session.read)

    def show_map(self, retained: Retained, path: Sequence[Message]) -> None:
        if isinstance(self.screen, MapScreen):
            self.screen.show(retained, path)

    def panic(self, *renderables: RenderableType) -> None:
        """Textual, when a thread of its own fails, such as the one that reads keys: it ends without an exit code."""
        super().panic(*renderables)
        self._return_code = 1

    def _handle_exception(self, error: Exception) -> None:
        """What fails because the screen goes while it is still being made is for the log alone."""
        if self._leaves:
            traceback.print_exception(error)
        else:
            super()._handle_exception(error)

    async def action_quit(self) -> None:
        self._leaves = True
        self.engine.stop()
        self.exit()

    def shut_down(self) -> None:
        """Stop the work, write what is left, let go of the session: after the screen has gone."""
        self.job.stop()
        self.toolbox.host.close()
        self.engine.close()
        self.snapshots.close()
        with contextlib.suppress(Exception):
            self.store.close()
