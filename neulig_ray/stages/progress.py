"""What a person sees while a run goes on: one line for each stage, and the jobs in hand."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LOG_EVERY = 20.0  # seconds between the lines that a log gets of trainings under way


class Reporter:
    """Prints stages and their jobs: bars on a terminal, one line for each finished job elsewhere."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int, cached: int) -> Iterator["Stage"]:
        """Follow a stage of `total` jobs of which `cached` are in the storage already."""
        started = time.monotonic()
        if total == cached:
            self.say(f"[bold]{name:<12}[/] {total} in the storage")
            yield Stage(self, name, None)
            return
        bars = Progress(
            TextColumn("[bold]{task.fields[stage]:<12}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=self.console,
        )
        live = self.console.is_terminal and not self.quiet
        stage = Stage(self, name, bars if live else None, total, cached)
        with bars if live else nullcontext():
            yield stage
        failed = f", [red]{stage.failed} failed[/]" if stage.failed else ""
        self.say(
            f"[bold]{name:<12}[/] {stage.done} done{failed}, {cached} in the storage, "
            f"{time.monotonic() - started:.1f} s"
        )


class Stage:
    """The progress of one stage; its methods may be called from any thread."""

    def __init__(
        self, reporter: Reporter, name: str, bars: Progress | None, total: int = 0, cached: int = 0
    ) -> None:
        self._reporter = reporter
        self._bars = bars
        self._lock = threading.Lock()
        self._jobs: dict[str, Any] = {}
        self._last_line = time.monotonic()
        self.name = name
        self.done = 0
        self.failed = 0
        self._bar = bars.add_task("", total=total, completed=cached, stage=name) if bars else None

    def running(self, job: str, text: str) -> None:
        """Show what a long job is doing now: in its bar, or in a log as a line now and then."""
        with self._lock:
            if self._bars is None:
                if time.monotonic() - self._last_line > LOG_EVERY:
                    self._last_line = time.monotonic()
                    self._reporter.say(f"{self.name:<12} {job}  {text} ...")
                return
            if job not in self._jobs:
                self._jobs[job] = self._bars.add_task("", total=None, stage="")
            self._bars.update(self._jobs[job], description=f"{job}  {text}")

    def finished(self, job: str, text: str = "", *, failed: bool = False) -> None:
        """Count a job; one that took long enough to be shown, or that failed, gets a line of its own."""
        with self._lock:
            self.failed += failed
            self.done += not failed
            if self._bars is not None:
                if (bar := self._jobs.pop(job, None)) is not None:
                    self._bars.remove_task(bar)
                if self._bar is not None:
                    self._bars.advance(self._bar)
        if failed:
            self._reporter.say(f"[red]{self.name:<12} {job} failed:[/] {text}")
        elif text:
            self._reporter.say(f"{self.name:<12} {job}  {text}")
