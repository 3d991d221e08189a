"""F3: the models of this machine. Open one, fetch one, convert one; a first user is offered the demo model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import OptionList, ProgressBar, Static
from textual.widgets.option_list import Option

from triattn_local import store
from triattn_local.errors import ModelNotFoundError
from triattn_local.inspection.describe import glance
from triattn_local.model.shard_names import shards
from triattn_local.support import formats
from triattn_local.support.paths import expanded, is_file

from ..jobs import JobDone, JobProgress
from .ask import AskScreen
from .dialog import Dialog

if TYPE_CHECKING:
    from ..app import ChatApp


class ModelsScreen(Dialog[None]):
    """A list, and the progress of the work on it."""

    app: ChatApp

    DEFAULT_CSS = """
    ModelsScreen {
        & OptionList { height: auto; max-height: 16; }
        & #work { height: auto; margin: 1 0 0 0; }
        & #stage { height: auto; color: $foreground 75%; }
        & ProgressBar { width: 100%; }
        & Bar { width: 1fr; }
        & .welcome { margin: 1 0; height: auto; }
        & .hint { margin: 1 0 0 0; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "pull", "Fetch one from the Hugging Face hub", id="pull_model"),
        Binding("o", "open_file", "Open a GGUF file of this machine", id="open_file"),
        Binding("c", "convert", "Convert: measure and add the statistics", id="convert_model"),
        Binding("f", "full", "Open with full attention", id="full_attention"),
        Binding("s", "stop_job", "Stop fetching or converting", id="stop_job"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._models: list[tuple[Path, bool]] = []
        self._foreign: list[store.Foreign] = []
        self._demo_offered = False

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = "Models"
            yield Static("", classes="welcome", markup=False)
            yield OptionList()
            with Vertical(id="work"):
                yield Static("", id="stage", markup=False)
                yield ProgressBar(show_eta=True)
            yield Static("", classes="problem", markup=False)
            yield Static("", classes="hint", id="keys", markup=False)

    def on_mount(self) -> None:
        self.query_one("#work").display = self.app.job.running
        self._list()

    def _list(self, select: Path | None = None) -> None:
        found = store.entries(self.app.settings.models)
        known = {entry.path for entry in found}
        for path in self.app.other_models:
            if path not in known and is_file(path):
                files = shards(path)
                size = sum(file.stat().st_size for file in files if is_file(file))
                found.append(store.Entry(str(path), path, size, len(files)))
        self._models = [(entry.path, glance(entry.path)[1]) for entry in found]
        # what can be opened at once comes first
        order = sorted(range(len(found)), key=lambda i: (not self._models[i][1], found[i].name.lower()))
        self._models = [self._models[i] for i in order]
        options = self.query_one(OptionList)
        options.clear_options()
        for i, (path, ready) in zip(order, self._models, strict=True):
            here = self.app.model == path
            line = Text.assemble(("● " if here else "  ", "bold"), (found[i].name, "bold" if ready else ""))
            about = formats.size(found[i].size_bytes) + ("" if ready else " · no statistics: c converts it")
            line.append(f"  {about}", "dim")
            options.add_option(Option(line))
        self._foreign = store.elsewhere(self.app.settings.models)
        for model in self._foreign:
            about = f"  {formats.size(model.size_bytes)} · of {model.program}: Enter links it, and copies nothing"
            options.add_option(Option(Text.assemble((f"  {model.name}", ""), (about, "dim"))))
        self._demo_offered = not any(path.stem == Path(store.DEMO.file).stem + ".triattn" for path, _ in self._models)
        if self._demo_offered:
            about = f"  {formats.size(store.DEMO.size)}: fetches, converts and opens it, in a minute or two"
            options.add_option(Option(Text.assemble(("  Demo model: SmolLM2 135M", "bold"), (about, "dim"))))
        welcome = self.query_one(".welcome", Static)
        welcome.display = not self._models and not self._foreign
        welcome.update(
            "Welcome. There is no model on this machine yet.\n\n"
            "Enter fetches a small real one to try everything with. For a model of your own press o, and name its GGUF "
            "file, or p, and name one of the Hugging Face hub: org/repo:quant."
        )
        keys = "Enter opens · c convert · f full attention · o a file · p the hub"
        self.query_one("#keys", Static).update(f"{keys} · s stop · Esc" if self.app.job.running else f"{keys} · Esc")
        wanted = select or self.app.model
        places = [i for i, (path, _) in enumerate(self._models) if path == wanted]
        options.highlighted = places[0] if places else 0
        options.focus()

    @property
    def _current(self) -> tuple[Path, bool] | None:
        index = self.query_one(OptionList).highlighted
        return self._models[index] if index is not None and index < len(self._models) else None

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        place = event.option_index - len(self._models)
        if 0 <= place < len(self._foreign):
            with self.telling():
                self._add(str(store.link(self._foreign[place], self.app.settings.models)))
            return
        if place >= 0:
            self._work(lambda: self.app.job.pull("demo"))
            return
        self._choose(*self._models[event.option_index])

    def _choose(self, path: Path, ready: bool) -> None:
        if not ready and self.app.settings.stats is None:
            self.say_problem(
                f"{path.name} has no statistics yet: c measures them (minutes), f opens it with full attention."
            )
            return
        self._open(path, evict=self.app.start.evict)

    def _open(self, path: Path, *, evict: bool) -> None:
        if self.app.chat.busy:
            self.say_problem("An answer is coming; Esc, then Esc again, stops it.")
            return
        self.dismiss(None)
        self.app.load_model(path, evict=evict)

    def action_full(self) -> None:
        if self._current is not None:
            self._open(self._current[0], evict=False)

    def action_convert(self) -> None:
        if self._current is None:
            return
        path, ready = self._current
        if ready:
            self.say_problem(f"{path.name} has its statistics already; Enter opens it.")
            return
        self._work(lambda: self.app.job.convert(path))

    def action_pull(self) -> None:
        def fetch(spec: str | None) -> None:
            spec = (spec or "").strip()
            if is_file(expanded(spec)):
                self._add(spec)
            elif spec:
                self._work(lambda: self.app.job.pull(spec))

        self.app.push_screen(AskScreen("Fetch: org/repo:quant of the Hugging Face hub, or demo"), fetch)

    def action_open_file(self) -> None:
        def add(written: str | None) -> None:
            if written and written.strip():
                self._add(written.strip())

        self.app.push_screen(AskScreen("Open a GGUF file", files=True), add)

    def _add(self, written: str) -> None:
        """A model that lies elsewhere: in the list, and opened if it can be."""
        path = expanded(written).absolute()
        with self.telling():
            if not is_file(path):
                raise ModelNotFoundError("no such file", where=str(path))
            path = store.resolve(str(path), self.app.settings.models)
            if path not in self.app.other_models:
                self.app.other_models.append(path)
            self._list(path)
            self._choose(path, glance(path)[1])

    def _work(self, start: Callable[[], None]) -> None:
        with self.telling():
            start()
            self.say_problem("")
            self.show_progress(JobProgress("starting", 0, 0))
            self.query_one("#keys", Static).update("s stops · Esc goes on in the background")

    def action_stop_job(self) -> None:
        self.app.job.stop()

    def show_progress(self, event: JobProgress) -> None:
        self.query_one("#work").display = True
        self.query_one("#stage", Static).update(event.stage)
        self.query_one(ProgressBar).update(total=event.total or None, progress=event.done)

    def show_done(self, event: JobDone) -> None:
        self.query_one("#work").display = False
        self.say_problem("")
        if event.error is not None:
            self.say_problem(str(event.error))
        self._list(event.path)
        if event.path is not None and glance(event.path)[1] and self.app.model is None and not self.app.chat.busy:
            self._open(event.path, evict=self.app.start.evict)
