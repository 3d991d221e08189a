"""The main screen: transcript, prompt, one line of status, and the memory beside them."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Center, Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Markdown, Static

from triattn_local.errors import DoesNotFitError, StatsError, TriattnError
from triattn_local.sessions import Attachment, Message
from triattn_local.sessions.conversation import Retained, context_for, room_for_answer
from triattn_local.support import formats
from triattn_local.support.stop import Stop
from triattn_local.tools.host import Result, Tool

from .. import events, garbage, pacing
from ..engine import Turn
from ..numbers import of_nothing
from ..session import OpenSession
from ..toolbox import MOST_IN_A_ROW, spelled
from ..widgets.code_block import CodeBlock
from ..widgets.memory_panel import MemoryPanel
from ..widgets.messages import AnswerMessage, MessageWidget, Notice, harmless
from ..widgets.prompt import Prompt
from ..widgets.status import StatusLine
from ..widgets.tool import ToolMessage
from ..widgets.transcript import Earlier, Transcript
from .allow import AllowScreen
from .full import FullScreen, Way

if TYPE_CHECKING:
    from ..app import ChatApp

WIDE = 100
"""columns from which the memory stands beside the conversation"""

WORDS = {
    "/?": "app.help",
    "/help": "app.help",
    "/new": "new",
    "/clear": "new",
    "/bye": "app.quit",
    "/exit": "app.quit",
    "/quit": "app.quit",
}
"""messages that are none: what hands used to other chats write"""

_SMALLER = "F4 sets a smaller context or budget, and loads it anew; F3 chooses another model"
_EMPTY = "Nothing said yet.\n\nEnter sends · Ctrl+J new line · F1 all keys\nF2 sessions · F3 models · F4 settings"


class ChatScreen(Screen[None]):
    """One session, one model."""

    app: ChatApp

    DEFAULT_CSS = """
    ChatScreen {
        background: $background;
        & #title { height: 1; padding: 0 2; color: $foreground 55%; background: $panel; }
        & #body { height: 1fr; }
        & #talk { width: 1fr; align-horizontal: center; }
        & #attached { height: auto; max-width: 114; padding: 0 3; color: $accent; }
        & #prompt { margin: 0 1; max-width: 114; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop the answer; leave editing", id="stop", priority=True),
        Binding("f2,ctrl+s", "app.sessions", "Sessions: open, search, rename, delete, export", id="sessions"),
        Binding("f3,ctrl+l", "app.models", "Models: choose, fetch, convert", id="models"),
        Binding("f4,ctrl+g", "app.settings", "System prompt, sampling, memory", id="settings"),
        Binding("f5,ctrl+b", "memory", "Memory beside the conversation", id="memory"),
        Binding("f6", "go_on", "Go on with the last answer, if it was cut", id="go_on", priority=True),
        Binding("f8", "app.map", "Map of what each layer keeps", id="map"),
        Binding("f9", "dim", "Dim what is forgotten", id="dim"),
        Binding("ctrl+n", "new", "New conversation", id="new"),
        Binding("ctrl+o", "attach", "Attach a text file", id="attach"),
        Binding("ctrl+r", "again", "Answer anew", id="again"),
        Binding("ctrl+t", "fold", "Show or hide the last thinking", id="fold"),
        Binding(
            "ctrl+y",
            "copy_code",
            "Copy the last code block; again for the one before",
            id="copy_last_code",
            priority=True,
        ),
        Binding("alt+left", "turn(-1)", "Earlier alternative", id="previous"),
        Binding("alt+right", "turn(1)", "Later alternative", id="next"),
        Binding("pageup", "scroll(-1)", "Scroll up", id="page_up", priority=True),
        Binding("pagedown", "scroll(1)", "Scroll down", id="page_down", priority=True),
    ]

    def __init__(self, keys: Mapping[str, str]) -> None:
        super().__init__()
        self.transcript = Transcript()
        self.panel = MemoryPanel()
        self.prompt = Prompt(keys, id="prompt")
        self.status = StatusLine()
        self._title = Static("", id="title", markup=False)
        self._files_line = Static("", id="attached", markup=False)
        self._files: list[Attachment] = []
        self._editing: Message | None = None
        self._begun: Message | None = None
        """what the answer that is coming goes on from"""
        self._answer: AnswerMessage | None = None
        """the answer that is coming"""
        self._copied = 0
        self._speed: tuple[float, int] = (0.0, 0)
        self._state = "ready"
        self._retained: Retained | None = None
        self._draining = False
        self._pace = pacing.Pace()
        self._garbage = garbage.Collector()
        self._ended: events.TurnEnded | None = None
        self._calls: Stop | None = None
        """set to leave the calls that are on their way"""
        self._call: Future[Result] | None = None
        self._summing = False
        self._after_summary: Message | None = None
        """the question that waits for the summary"""

    def compose(self) -> ComposeResult:
        yield self._title
        with Horizontal(id="body"):
            with Vertical(id="talk"):
                yield self.transcript
                with Center():
                    yield self._files_line
                    yield self.prompt
            yield self.panel
        yield self.status

    async def on_mount(self) -> None:
        self._files_line.display = False
        self.lay_out()
        self.set_interval(pacing.UPDATE_S, self._drain)
        self.set_interval(1.0, self._tick)
        await self.show_session()
        self.prompt.focus()

    # ---------------------------------------------------------------- session

    @property
    def session(self) -> OpenSession:
        return self.app.session

    @property
    def busy(self) -> bool:
        """Whether an answer is coming, or what it waits for."""
        return self._answer is not None or self._calls is not None or self._summing

    async def show_session(self) -> None:
        """The session has changed: show its branch from scratch."""
        self._editing = None
        self._retained = None
        self._set_files([])
        await self.transcript.show(self.session.path, self.session.siblings, empty=_EMPTY)
        for message in self.session.path[-1:]:
            if message.state == "interrupted":
                await self.transcript.say(
                    Notice(
                        "This answer was cut off when the program ended; all that had come is here.",
                        fix="F6 goes on with it, Ctrl+R answers anew; or write a message",
                    )
                )
        self.refresh_title()
        self.app.engine.read_cache(self.session.id, self.session.read)

    def forget_numbers(self) -> None:
        """Those on the screen belong to a conversation that is left; the engine may be busy with it for some time."""
        if self.status.stats is not None:
            self.status.stats = of_nothing(self.status.stats)
        self.panel.forget(self.status.stats)

    def refresh_title(self) -> None:
        """Session, model, and what the prompt is for."""
        model = self.app.model_name or "no model"
        what = "an answer" if self._editing and self._editing.role == "assistant" else "an earlier message"
        prompt = f"edits {what} · Esc leaves it" if self._editing else ""
        self.prompt.border_title = prompt
        self.prompt.set_class(self._editing is not None, "editing")
        self.prompt.border_subtitle = "Esc stops" if self.busy else "Enter sends · Ctrl+J new line · F1 keys"
        title = self.session.title or "New conversation"
        room = max(10, self.app.size.width - len(model) - 7)
        if len(title) > room:
            title = title[: room - 1] + "…"
        self._title.update(f"{title}{' ' * max(3, self.app.size.width - 4 - len(title) - len(model))}{model}")

    def on_resize(self) -> None:
        self.lay_out()
        self.refresh_title()

    def lay_out(self) -> None:
        """Show what there is room for, and look no closer than somebody sees."""
        width = self.app.size.width
        self.panel.display = width >= WIDE and bool(self.app.preference("memory", True))
        self._want_map()

    def _want_map(self) -> None:
        self.app.engine.map_wanted = self.panel.display or bool(self.app.preference("dim", False)) or self.app.map_open

    # -------------------------------------------------------------- say, answer

    @on(Prompt.Sent)
    async def _send(self, sent: Prompt.Sent) -> None:
        if (action := WORDS.get(sent.text.strip())) is not None:
            self.prompt.clear()
            await self.run_action(action)
            return
        if self.refuse_while_busy():
            return
        words = sent.text.strip("\n")
        if not words.strip() and not self._files:
            return
        if self._editing is not None and self._editing.role == "assistant":
            await self._rewrite(self._editing, words)
            return
        if self.app.model is None:
            self.app.action_models()
            return
        editing = self._editing
        path = self.session.path
        parent = editing.parent if editing else (path[-1].id if path else None)
        try:
            message = self.session.ask(words, tuple(self._files), parent=parent, model=str(self.app.model))
        except TriattnError as error:
            await self.transcript.say(Notice.of(error, "your words are still in the prompt"))
            return
        self.prompt.clear()
        self._set_files([])
        self._editing = None
        await self.transcript.clear_notices()
        if editing is not None:
            await self.transcript.show(self.session.path, self.session.siblings)
        else:
            await self.transcript.add(message)
        await self._ask(message)

    async def _rewrite(self, answer: Message, words: str) -> None:
        """An answer in the user's words: an alternative that the model reads as its own."""
        with self.app.telling():
            self.session.rewrite(answer, words)
            self.prompt.clear()
            await self.show_session()
            self.refresh_title()

    async def _ask(self, message: Message, begun: Message | None = None) -> None:
        """Have the engine answer a message of the user, the last of the branch; or go on with an answer to it."""
        n_siblings = sum(1 for m in self.session.messages if m.parent == message.id)
        try:
            if message.left_out:
                self._leave_out(self.session.turn_of(message), False)
            sampling = self.session.sampling(self.app.sampling, n_siblings)
            max_tokens = self.session.max_tokens(self.app.max_tokens)
            thinking, stop = self.session.thinking(self.app.thinking), self.session.stop(self.app.settings.stop)
        except TriattnError as error:
            await self.transcript.say(Notice.of(error, "F4 opens the settings"))
            return
        try:
            answer = self.session.answer_to(message) if begun is None else self.session.go_on_with(begun)
        except TriattnError as error:
            await self.transcript.say(Notice.of(error, "Ctrl+R tries again"))
            return
        path = self.session.read[:-1]
        widget = await self.transcript.add(answer)
        assert isinstance(widget, AnswerMessage)
        self._answer, self._ended, self._begun = widget, None, begun
        self._speed = (time.monotonic(), 0)
        system = self.session.system
        functions = self.app.toolbox.functions
        turn = Turn(answer.session, system, path, answer.id, sampling, max_tokens, thinking, stop, functions, begun)
        self.app.engine.answer(turn)
        self._say_state(
            "waiting for the model"
            if self.app.loading
            else "waiting for the tools"
            if self.app.toolbox.host.is_starting
            else "starting"
        )
        self.refresh_title()

    @on(events.TurnReady)
    async def _turn_ready(self, event: events.TurnReady) -> None:
        ready = event.ready
        notes = [f"cache restored from {ready.origin}"] if ready.origin in ("memory", "disk") else []
        if ready.n_again:
            why = f" ({ready.why})" if ready.origin == "nothing" else ""
            notes.append(f"{ready.n_again:,} earlier tokens read again{why}")
        if self._answer is not None and notes:
            self._answer.say(", ".join(notes))

    @on(events.Reading)
    def _reading(self, event: events.Reading) -> None:
        if self.busy:
            percent = 100 * event.n_done // max(1, event.n_total)
            state = f"reading {percent} %"
            if event.tokens_per_s > 0:
                left_s = (event.n_total - event.n_done) / event.tokens_per_s
                state += f" · {event.tokens_per_s:,.0f} tok/s · {formats.seconds(left_s)} left"
            self._say_state(state)

    async def _drain(self) -> None:
        """Show what has come since the last time."""
        pieces = self.app.engine.pieces
        if self._draining or self._answer is None or (not pieces and self._ended is None):
            return
        if self._ended is None and not self._pace.due(time.monotonic()):
            return
        self._draining = True
        try:
            self._pace.began(time.monotonic())
            answer = self._answer
            room = self._pace.chars(len(pieces)) if self._ended is None else math.inf
            with self.app.batch_update():
                while pieces and room > 0:
                    kind = pieces[0][0]
                    parts = []
                    while pieces and pieces[0][0] == kind and room > 0:
                        _, piece, n_tokens = pieces.popleft()
                        parts.append(piece)
                        room -= len(piece)
                    self._speed = (self._speed[0], self._speed[1] + len(parts))
                    await answer.write(kind, "".join(parts), n_tokens)
                await self.transcript.lay_out()
            self.call_after_refresh(self._shown)
            # it may have ended meanwhile, in another task, with pieces that this update had no room for
            if self._ended is not None and not pieces:
                await self._end(answer, self._ended)
        finally:
            self._draining = False

    def _shown(self) -> None:
        """What was drained is on the screen."""
        self._pace.shown(time.monotonic())
        self.set_timer(0.001, self._garbage.updated)

    @on(events.TooLong)
    async def _too_long(self, event: events.TooLong) -> None:
        """Nothing was read: the question stands alone, and the user says how to go on."""
        answer, self._answer = self._answer, None
        self._say_state("ready")
        with self.app.telling():
            if answer is not None:
                self.session.withdraw(answer.message)
                await answer.remove()
            self.refresh_title()
            if self._begun is not None:
                await self._too_long_to_go_on(self._begun, event)
                return
            question = self.session.path[-1]
            if question.role == "tool":
                question = self.session.turn_of(question)[0]
            # until it is asked again: or each message after it would be too long, too
            self._leave_out(self.session.turn_of(question))
            room = room_for_answer(event.error.n_ctx)
            if event.oldest and event.n_after + room <= event.error.n_ctx:
                self.app.push_screen(FullScreen(event), lambda way: self._go_on(way, event, question))
            else:
                await self._say_too_long(event)

    async def _too_long_to_go_on(self, answer: Message, event: events.TooLong) -> None:
        self.session.select(answer.id)
        await self.transcript.show(self.session.path, self.session.siblings)
        n_ctx = event.error.n_ctx
        await self.transcript.say(
            Notice(
                f"There is no room to go on in the context of {n_ctx:,} tokens.",
                fix=f"F4 raises it, to {context_for(event.error.n_tokens):,} for this; or keep the model from reading "
                "earlier turns (d), then F6",
                error=True,
            )
        )

    async def _say_too_long(self, event: events.TooLong) -> None:
        n = min(event.n_after, event.error.n_tokens)
        await self.transcript.say(
            Notice(
                f"This message was not sent: with {n:,} tokens it exceeds the context of {event.error.n_ctx:,}.",
                fix=f"↑ takes it back into the prompt, to shorten it\n→ F4 raises the context, to {context_for(n):,} "
                "for this, and Ctrl+R asks again\n→ or go on with another message: the model does not read this one",
                error=True,
            )
        )

    async def _go_on(self, way: Way | None, event: events.TooLong, question: Message) -> None:
        with self.app.telling():
            if way == "summary":
                self._after_summary = question
                self._summarise(event.oldest)
            elif way == "oldest":
                self._leave_out(event.oldest)
                await self._ask(self.session.path[-1])
            elif way == "raise":
                self.app.call_later(self.app.action_settings, context_for(event.error.n_tokens))
            elif way == "shorten":
                self._edit(question)
        if way is None:
            await self.transcript.say(
                Notice("This message was not sent.", fix="Ctrl+R asks it again; ↑ edits it; or go on with another one")
            )

    def _summarise(self, messages: Sequence[Message]) -> None:
        """Have the model write what it is to read in the place of these messages, the first ones that it reads."""
        session = self.session.session
        assert session is not None
        self._summing = True
        self._say_state("summarising")
        sampling = self.session.sampling(self.app.sampling, 0)
        thinking, functions = self.session.thinking(self.app.thinking), self.app.toolbox.functions
        self.app.engine.summarise(
            Turn(session.id, self.session.system, messages, 0, sampling, None, thinking, (), functions)
        )
        self.refresh_title()

    @on(events.Summarised)
    async def _summarised(self, event: events.Summarised) -> None:
        self._summing, question = False, self._after_summary
        self._after_summary = None
        self._say_state("ready")
        self.refresh_title()
        with self.app.telling():
            if event.text is None:
                error = event.error or TriattnError("there is no summary: it was stopped, or empty")
                await self.transcript.say(Notice.of(error, "Ctrl+R asks the last message again"))
                return
            self.session.summarise(event.messages, event.text)
            if question is not None:
                self.session.leave_out(self.session.turn_of(question), False)
            await self.transcript.show(self.session.path, self.session.siblings)
            if question is not None:
                await self._ask(self.session.path[-1])

    def action_summarise(self) -> None:
        """All that the model reads but the last turn."""
        if self.refuse_while_busy():
            return
        starts = [i for i, message in enumerate(self.session.read) if message.role == "user"]
        if len(starts) < 2 or self.app.model is None:
            self.notify("There is one turn at most: nothing to summarise.")
            return
        with self.app.telling():
            self._summarise(self.session.read[: starts[-1]])

    def _leave_out(self, messages: Sequence[Message], out: bool = True) -> None:
        """Keep the model from reading messages, or let it read them again; and show that."""
        self.session.leave_out(messages, out)
        for message in self.session.path:
            widget = self.transcript.find(message.id)
            if widget is not None:
                widget.change(self.app.store.message(message.id))

    @on(events.TurnEnded)
    async def _turn_ended(self, event: events.TurnEnded) -> None:
        self._ended = event
        await self._drain()

    async def _end(self, answer: AnswerMessage, event: events.TurnEnded) -> None:
        self._answer = self._ended = None
        self.session.reload()
        answer.end(event.answer)
        if event.error is not None:
            await self.transcript.say(Notice.of(event.error, self._next_step(event.error)))
        self._say_state("ready")
        self.refresh_title()
        if event.answer.calls and event.error is None:
            self._use_tools(event.answer)

    # ------------------------------------------------------------------- tools

    @work(group="calls", exit_on_error=False)
    async def _use_tools(self, answer: Message) -> None:
        """Call what an answer calls, as far as the user allows it, and have the model go on."""
        self._calls = stop = Stop()
        self.refresh_title()
        try:
            with self.app.telling():
                for call in answer.calls:
                    await self._use_tool(answer, call, stop)
                    if stop.is_set():
                        break
        finally:
            self._calls = self._call = None
            self._say_state("ready")
            self.refresh_title()
        n = sum(1 for message in self.session.turn_of(answer) if message.role == "tool")
        last = self.session.path[-1]
        if stop.is_set() or last.role != "tool":
            return
        if n >= MOST_IN_A_ROW:
            await self.transcript.say(
                Notice(f"The model called tools {n} times in a row.", fix="a message lets it go on")
            )
            return
        await self._ask(last)

    async def _use_tool(self, answer: Message, call: Mapping[str, Any], stop: Stop) -> None:
        toolbox, name, arguments = self.app.toolbox, str(call["name"]), call["arguments"]
        tool, word = toolbox.find(name), ""
        if tool is None:
            result = Result(f"There is no tool {name!r}.", True)
        else:
            word = await self._allowed(tool, arguments, stop)
            result = Result(
                "It was not called: the user stopped." if word == "stopped" else "The user does not allow it.", True
            )
            if not word:
                result, word = await self._wait_for(tool, arguments, stop)
        stats = self.status.stats
        text = await asyncio.to_thread(toolbox.cut, result, stats.n_ctx if stats is not None else 4096)
        told = {"server": tool.server if tool else "", "failed": result.failed, "word": word or None}
        await self.transcript.add(self.session.result_of(answer, call, text, **told))

    async def _allowed(self, tool: Tool, arguments: Mapping[str, Any], stop: Stop) -> str:
        """Whether the user lets it be called: "", or a word for what came in between."""
        word = self.app.toolbox.word(tool)
        if word == "ask":
            self._say_state("may it?")
            way = await self.app.push_screen_wait(AllowScreen(tool, arguments))
            if way is None:
                stop.set()
                return "stopped"
            if way in ("always", "never"):
                self.app.toolbox.permissions.say(tool, "always" if way == "always" else "never")
            word = "always" if way in ("once", "always") else "never"
        return "" if word == "always" else "not allowed"

    async def _wait_for(self, tool: Tool, arguments: Mapping[str, Any], stop: Stop) -> tuple[Result, str]:
        widget = await self.transcript.calling(harmless(f"⚒ {spelled(tool.own_name, arguments)} · {tool.server} …"))
        self._say_state(f"{tool.own_name} · Esc stops")
        self._call = self.app.toolbox.host.call(tool, arguments)
        try:
            result = await asyncio.wrap_future(self._call)
        except asyncio.CancelledError:
            if not stop.is_set():  # the chat ends
                raise
            return Result("It was stopped by the user, and its result is not known.", True), "stopped"
        finally:
            self._call = None
            await widget.remove()
        return result, "failed" if result.failed else ""

    def _next_step(self, error: TriattnError) -> str:
        on_disk = isinstance(error.__cause__, sqlite3.Error)
        return _SMALLER if isinstance(error, DoesNotFitError) and not on_disk else "Ctrl+R tries again"

    @on(events.TurnSettled)
    def _settled(self, event: events.TurnSettled) -> None:
        widget = self.transcript.find(event.answer)
        settled = event.settled
        if isinstance(widget, AnswerMessage) and settled.n_dropped:
            remark = f"thinking left the cache ({settled.n_dropped:,} tokens)"
            widget.say(f"{widget.note} · {remark}" if widget.note else remark)

    # ------------------------------------------------------------------ engine

    @on(events.Loaded)
    async def _loaded(self, event: events.Loaded) -> None:
        await self.transcript.query("Notice.error").remove()  # of a model or settings that are no more
        self.app.model_loaded(event.path, event.stats, event.why, event.suggested)
        self._say_state("ready" if not self.busy else "starting")
        self.status.stats = event.stats
        self.panel.show_stats(event.stats)
        self.refresh_title()

    @on(events.LoadFailed)
    async def _load_failed(self, event: events.LoadFailed) -> None:
        self.app.model_failed(event.path)
        step = "F4, Ctrl+S tries again; F3 chooses another model"
        if isinstance(event.error, StatsError):
            step = "F3, then c, converts it here; then Enter opens it"
        elif isinstance(event.error, DoesNotFitError):
            step = _SMALLER
        await self.transcript.say(Notice.of(event.error, step))
        self._say_state("no model")
        self.refresh_title()

    @on(events.Failed)
    async def _failed(self, event: events.Failed) -> None:
        await self.transcript.say(Notice.of(event.error))

    @on(events.CacheRead)
    def _cache_read(self, event: events.CacheRead) -> None:
        if event.session != self.session.id:
            return  # of a conversation that was left meanwhile
        self.status.stats = event.stats
        self.panel.show_stats(event.stats)
        self.panel.show_snapshots(event.snapshot_bytes, self.app.snapshots.memory_limit)
        if event.retained is not None:
            self._retained = event.retained
            self.panel.show_retained(event.retained)
            self.app.show_map(event.retained, self.session.path)
            if self.app.preference("dim", False):
                self.transcript.mark_forgotten(event.retained)

    def _tick(self) -> None:
        """Once a second: how fast the answer comes."""
        now_s = time.monotonic()
        then_s, n = self._speed
        if self.busy and n:
            speed = n / max(1e-6, now_s - then_s)
            self.panel.show_speed(speed)
            self._say_state(f"{speed:.1f} tok/s")
        elif not self.busy and self.panel.display:
            self.panel.show_speed(0.0)
        self._speed = (now_s, 0)
        if not self._pace.typing(now_s):
            self._garbage.rest(now_s, busy=self.busy)

    @on(Prompt.Changed)
    def _typed(self) -> None:
        self._pace.typed(time.monotonic())
        self.call_after_refresh(self._echoed)

    def _echoed(self) -> None:
        """A key is drawn; a moment later the terminal's thread has written it, and no other one comes for some time."""
        if self.busy:
            self.set_timer(0.002, self._after_echo)

    async def _after_echo(self) -> None:
        now_s = time.monotonic()
        if self.busy and not self._garbage.rest(now_s, busy=True) and self._pace.echoed(now_s):
            await self._drain()

    def _say_state(self, state: str) -> None:
        self.status.state = state
        self.status.busy = self.busy or self.app.loading

    # ------------------------------------------------------------------ actions

    def action_stop(self) -> None:
        if self._calls is not None:
            self._calls.set()
            if self._call is not None:
                self._call.cancel()
            self._say_state("stopping")
        elif self.busy:
            self.app.engine.stop()
            self._say_state("stopping")
        elif self._editing is not None:
            self._editing = None
            self.prompt.clear()
            self.refresh_title()
        else:
            self.prompt.focus()

    def action_memory(self) -> None:
        if self.app.size.width < WIDE:
            self.app.action_map()
            return
        self.app.remember("memory", not self.panel.display)
        self.lay_out()
        self.app.engine.read_cache(self.session.id, self.session.read)

    def action_dim(self) -> None:
        dim = not self.app.preference("dim", False)
        self.app.remember("dim", dim)
        self._want_map()
        self.transcript.mark_forgotten(self._retained if dim else None)
        self.app.engine.read_cache(self.session.id, self.session.read)
        self.notify("What no head holds any more is dimmed." if dim else "All text is shown plainly.")

    async def action_new(self) -> None:
        if not self.refuse_while_busy():
            await self.app.open_session(None)

    def refuse_while_busy(self) -> bool:
        if self.busy:
            self.notify("An answer is coming; Esc stops it.", severity="warning")
        return self.busy

    async def action_again(self) -> None:
        last = next((m for m in reversed(self.session.path) if m.role == "user"), None)
        if last is not None:
            await self._again(last)

    async def _again(self, message: Message) -> None:
        """One more answer to a message of the user."""
        if self.refuse_while_busy():
            return
        if self.app.model is None:
            self.app.action_models()
            return
        if message.role == "assistant":  # the result of a tool is wanted anew: that is for the model to want
            message = self.session.turn_of(message)[0]
        with self.app.telling():
            self.session.select(message.id)
            await self.transcript.show(self.session.path, self.session.siblings)
            await self._ask(message)

    async def action_go_on(self) -> None:
        last = self.session.path[-1:]
        if last and last[0].role == "assistant":
            await self._go_on_with(last[0])
        else:
            self.notify("The last message is no answer: Ctrl+R answers it.")

    async def _go_on_with(self, answer: Message) -> None:
        """The model writes on behind an answer that was cut."""
        if self.refuse_while_busy():
            return
        if not answer.can_go_on:
            self.notify("This answer is whole: r answers anew, and w edits its words.")
            return
        question = self._message(answer.parent)
        if self.app.model is None or question is None:
            self.app.action_models()
            return
        with self.app.telling():
            await self.transcript.clear_notices()
            self.session.select(question.id)
            await self.transcript.show(self.session.path, self.session.siblings)
            await self._ask(question, answer)

    def action_fold(self) -> None:
        for widget in reversed(self.transcript.message_widgets()):
            if isinstance(widget, AnswerMessage) and widget.thinking.thinking:
                widget.thinking.toggle()
                return

    def action_copy_code(self) -> None:
        blocks = [
            code
            for widget in self.transcript.message_widgets()
            if isinstance(widget, AnswerMessage)
            for code in widget.body.code()
        ]
        if not blocks:
            self.notify("There is no code to copy.")
            return
        if self._copied >= len(blocks):
            self._copied = 0
        self._copied += 1
        self._copy(blocks[-self._copied], f"code block {len(blocks) - self._copied + 1}")

    async def action_turn(self, step: int) -> None:
        branching = [m for m in self.session.path if len(self.session.siblings(m)) > 1]
        if branching:
            await self._turn(branching[-1], step)

    async def _turn(self, message: Message, step: int) -> None:
        with self.app.telling():
            if not self.refuse_while_busy() and self.session.switch(message, step):
                await self.show_session()

    def action_scroll(self, direction: int) -> None:
        self.transcript.scroll_page(direction)

    @on(Prompt.EditLast)
    def _edit_last(self) -> None:
        last = next((m for m in reversed(self.session.path) if m.role == "user"), None)
        if last is not None and not self.busy:
            self._edit(last)

    def _edit(self, message: Message) -> None:
        self._editing = message
        self.prompt.text = message.content
        self.prompt.move_cursor(self.prompt.document.end)
        self._set_files(list(message.attachments))
        self.prompt.focus()
        self.refresh_title()

    @on(MessageWidget.Wanted)
    async def _wanted(self, event: MessageWidget.Wanted) -> None:
        message = event.message
        question = message if message.role == "user" else self._message(message.parent)
        if event.what == "copy":
            self._copy(self.app.store.message(message.id).content, "message")
        elif event.what in ("next", "previous"):
            await self._turn(message, 1 if event.what == "next" else -1)
        elif event.what == "fold":
            widget = self.transcript.find(message.id)
            if isinstance(widget, AnswerMessage):
                widget.thinking.toggle()
            elif isinstance(widget, ToolMessage):
                widget.toggle()
        elif event.what == "leave_out":
            with self.app.telling():
                if not self.refuse_while_busy():
                    self._leave_out(self.session.turn_of(message), not message.left_out)
        elif event.what == "go_on":
            if message.role == "assistant":
                await self._go_on_with(message)
        elif event.what == "rewrite":
            if message.role != "assistant" or message.calls:
                self.notify("Only an answer that calls no tools has words to edit.")
            elif not self.refuse_while_busy():
                self._edit(message)
        elif question is not None and not self.refuse_while_busy():
            if event.what == "again":
                await self._again(question)
            else:
                self._edit(self.session.turn_of(question)[0])

    def _message(self, id_: int | None) -> Message | None:
        return next((m for m in self.session.messages if m.id == id_), None)

    @on(CodeBlock.Copied)
    def _code_copied(self, event: CodeBlock.Copied) -> None:
        self._copy(event.code, "code")

    @on(Markdown.LinkClicked)
    def _link_clicked(self, event: Markdown.LinkClicked) -> None:
        self._copy(event.href, "address")

    def _copy(self, words: str, what: str) -> None:
        self.app.copy_to_clipboard(words)
        self.notify(f"{what[:1].upper()}{what[1:]} copied: {formats.plural(words.count(chr(10)) + 1, 'line')}.")

    # -------------------------------------------------------------- attachments

    @on(Prompt.LongPaste)
    def _long_paste(self, event: Prompt.LongPaste) -> None:
        n = sum(1 for file in self._files if file.name.startswith("pasted")) + 1
        self._set_files([*self._files, Attachment(f"pasted {n}", event.text)])

    @work
    async def action_attach(self) -> None:
        from .attach import AttachScreen

        file = await self.app.push_screen_wait(AttachScreen())
        if file is not None:
            self._set_files([*self._files, file])
        self.prompt.focus()

    def _set_files(self, files: list[Attachment]) -> None:
        self._files = files
        self._files_line.display = bool(files)
        if files:
            self._show_attached(tuple(files))

    @work(thread=True, exclusive=True, group="count")
    def _show_attached(self, files: tuple[Attachment, ...]) -> None:
        """Count the tokens before anything is sent; the tokenizer takes its time for a long text."""
        parts, stats = [], self.status.stats
        for file in files:
            n_tokens = self.app.engine.count_tokens(file.as_prompt())
            size = formats.plural(file.text.count("\n") + 1, "line")
            about = "" if n_tokens is None else f" · {n_tokens:,} tokens"
            if n_tokens and stats is not None and n_tokens > stats.n_ctx:
                about += f", more than the context of {stats.n_ctx:,} holds"
            parts.append(f"▤ {file.name} · {size}{about}")
        self.app.call_from_thread(self._files_line.update, "\n".join([*parts, "  Ctrl+X removes the last"]))

    @on(Prompt.DropAttachment)
    def _drop_attachment(self) -> None:
        self._set_files(self._files[:-1])

    async def on_click(self, event: Any) -> None:
        if isinstance(event.widget, Earlier):
            await self.transcript.show_earlier()
