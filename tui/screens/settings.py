"""F4: how this session is answered, and how much the cache keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Input, Static, TextArea

from triattn_local.config import EFFORTS, SamplingConfig, ThinkingConfig
from triattn_local.errors import TriattnError
from triattn_local.settings import AUTO, Settings

from ..session import THINKING_OPTIONS
from .dialog import Dialog

if TYPE_CHECKING:
    from ..app import ChatApp

# name, label, kind, least, most, help
_SAMPLING: tuple[tuple[str, str, type, float, float, str], ...] = (
    ("temperature", "temperature", float, 0, 5, "0 always takes the likeliest"),
    ("top_k", "top k", int, 0, 1_000_000, "0 for no limit"),
    ("top_p", "top p", float, 0, 1, ""),
    ("min_p", "min p", float, 0, 1, ""),
    ("repeat_penalty", "repeat penalty", float, 0.5, 3, "1 for none"),
    ("presence_penalty", "presence penalty", float, -2, 2, "0 for none"),
    ("seed", "seed", int, 0, 2**31 - 1, "same seed, same answer"),
    ("max_tokens", "answer length", int, 0, 10_000_000, "tokens; 0 for no limit"),
)
# name, label, words for which value, help
_NO_LIMIT = "none"
_THINKING: tuple[tuple[str, str, dict[str, bool | str | None], str], ...] = (
    ("think", "thinking", {AUTO: None, "on": True, "off": False}, "on, off; auto: as its template has it"),
    ("effort", "effort", {AUTO: None, **{word: word for word in EFFORTS}}, "low, medium, high; if the model takes it"),
    ("think_budget", "thinking limit", {_NO_LIMIT: None}, "tokens after which it has to answer; none"),
)
_MEMORY: tuple[tuple[str, str, str], ...] = (
    ("ctx", "context", "logical context, tokens; auto: what fits"),
    ("budget", "budget", "tokens a head keeps; auto; off: full attention"),
)


class SettingsScreen(Dialog[None]):
    """A form; what cannot be taken is said below it, and nothing is changed."""

    app: ChatApp

    DEFAULT_CSS = """
    SettingsScreen {
        & > .box { height: auto; max-height: 100%; }
        & TextArea { height: 5; border: round $foreground 18%; background: $background; }
        & TextArea:focus { border: round $primary; }
        & .row { height: 1; margin: 0; }
        & .row > .label { width: 18; color: $foreground 75%; }
        & .row > Input { width: 16; height: 1; border: none; background: $panel; padding: 0 1; }
        & .row > Input:focus { background: $primary 25%; border: none; }
        & .row > .hint { width: 1fr; padding: 0 0 0 2; text-wrap: nowrap; text-overflow: ellipsis; }
        & .title { color: $primary; margin: 1 0 0 0; height: 1; }
        & .title:first-child { margin: 0; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+s", "save", "Save", priority=True, show=False)]

    def __init__(self, ctx: int | None = None) -> None:
        """Show the form; ``ctx`` is proposed as the context, and is not set before it is saved."""
        super().__init__()
        self._ctx = ctx

    def on_mount(self) -> None:
        if self._ctx is not None:
            context = self.query_one("#ctx", Input)
            context.value = str(self._ctx)
            context.focus()

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="box", can_focus=False) as box:
            box.border_title = "Settings"
            box.border_subtitle = "Ctrl+S saves · Tab moves on · Esc leaves all as it was"
            yield Static("system prompt of this session", classes="title")
            yield TextArea(self.app.session.system, id="system", tab_behavior="focus", show_line_numbers=False)
            yield Static("answers of this session", classes="title")
            for name, label, _, _, _, about in _SAMPLING:
                yield self._row(name, label, self._sampling_value(name), about)
            for name, label, words, about in _THINKING:
                yield self._row(name, label, self._thinking_value(name, words), about)
            yield Static("memory (a change loads the model anew)", classes="title")
            for name, label, about in _MEMORY:
                yield self._row(name, label, self._memory_value(name), about)
            yield Static("", classes="problem", markup=False)

    def _row(self, name: str, label: str, value: str, about: str) -> Horizontal:
        return Horizontal(
            Static(label, classes="label"), Input(value, id=name), Static(about, classes="hint"), classes="row"
        )

    def _base(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.app.sampling), "max_tokens": self.app.max_tokens or 0}

    def _memory_value(self, name: str) -> str:
        """What was asked for, else what the plan chose."""
        if name == "budget" and not self.app.evict:
            return "off"
        value, loaded = getattr(self.app.settings, name), self.app.loaded
        if loaded is not None and not self.app.settings.is_given(name):
            value = loaded.n_ctx if name == "ctx" else loaded.budget_tokens
        return "off" if value is None else str(value)

    def _thinking_base(self, name: str) -> Any:
        return getattr(self.app.thinking, THINKING_OPTIONS[name])

    def _thinking_value(self, name: str, words: Mapping[str, bool | str | None]) -> str:
        value = self.app.session.options.get(name, self._thinking_base(name))
        named = [word for word, stands_for in words.items() if stands_for is value or stands_for == value != 0]
        return named[0] if named else str(value)

    def _sampling_value(self, name: str) -> str:
        return f"{self.app.session.options.get(name, self._base()[name])}"

    @on(Input.Submitted)
    def action_save(self) -> None:
        problem = self.query_one(".problem", Static)
        try:
            options = self._read_sampling()
            SamplingConfig(**{name: value for name, value in options.items() if name != "max_tokens"})
            thinking = self._read_thinking()
            ThinkingConfig(**{THINKING_OPTIONS[name]: value for name, value in thinking.items()})
            settings, evict = self._read_memory()
            base = self._base()
            options = {name: value for name, value in options.items() if value != base[name]}
            options |= {name: value for name, value in thinking.items() if value != self._thinking_base(name)}
            # what is not in the form, such as the stop texts of a preset
            options = {**{n: v for n, v in self.app.session.options.items() if n not in self._shown}, **options}
            self.app.session.change(system=self.query_one("#system", TextArea).text.strip(), options=options)
        except (TriattnError, ValueError) as error:
            problem.update(str(error))
            self.call_after_refresh(problem.scroll_visible, animate=False)
            return
        self.app.change_settings(settings, evict=evict)
        self.dismiss(None)

    def _read_sampling(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for name, label, kind, least, most, _ in _SAMPLING:
            written = self.query_one(f"#{name}", Input).value.strip()
            try:
                value = kind(written)
            except ValueError:
                raise ValueError(f"{label}: {written!r} is not a number") from None
            if not least <= value <= most:
                raise ValueError(f"{label}: {value} is not between {least} and {most}")
            options[name] = value
        return options

    @property
    def _shown(self) -> set[str]:
        return {row[0] for row in _SAMPLING} | {row[0] for row in _THINKING}

    def _read_thinking(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for name, label, words, _ in _THINKING:
            written = self.query_one(f"#{name}", Input).value.strip().lower()
            if written not in words and not (name == "think_budget" and written.isdecimal()):
                raise ValueError(f"{label}: {written!r} is not {', '.join(words)}")
            options[name] = words[written] if written in words else int(written)
        return options

    def _read_memory(self) -> tuple[Settings, bool | None]:
        """The settings, and whether to forget if something was said of it."""
        written = {name: self.query_one(f"#{name}", Input).value.strip().lower() for name, _, _ in _MEMORY}
        changed = {name: value for name, value in written.items() if value != self._memory_value(name)}
        settings = self.app.settings
        for name, value in changed.items():
            if value == AUTO:
                settings = settings.changed(AUTO, **{name: getattr(Settings, name)})
            elif name == "budget" and value == "off":
                settings = settings.changed("F4", budget=None)
            elif value.isdecimal():
                settings = settings.changed("F4", **{name: int(value)})
            else:
                raise ValueError("context and budget are numbers of tokens, or auto")
        settings.runtime()
        settings.eviction()
        return settings, True if "budget" in changed else None
