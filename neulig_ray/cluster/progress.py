"""What a person sees while a run goes on: one line for each stage, and the jobs in hand."""

import datetime
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from neulig_ray.redaction import redacted

LOG_EVERY = 20.0  # seconds between the lines that a log gets of what is under way


class Reporter:
    """Prints stages and their jobs: bars on a terminal, lines elsewhere."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(redacted(text), highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int, cached: int) -> Iterator["StageProgress"]:
        """Follow a stage of `total` jobs of which `cached` are in the storage already."""
        started = time.monotonic()
        if total == cached:
            self.say(f"[bold]{name:<12}[/] {total} in the storage")
            yield StageProgress(self, name, None)
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
        stage = StageProgress(self, name, bars if live else None, total, cached)
        with bars if live else nullcontext():
            yield stage
        failed = f", [red]{stage.failed} failed[/]" if stage.failed else ""
        others = f", {stage.others} by another driver" if stage.others else ""
        self.say(
            f"[bold]{name:<12}[/] {stage.done} done{failed}{others}, {cached} in the storage, "
            f"{time.monotonic() - started:.1f} s"
        )


class StageProgress:
    """The progress of one stage; its methods may be called from any thread.

    `slots`: how many jobs the cluster holds at once. Of jobs that do not tell, as many are taken to run.
    """

    def __init__(
        self, reporter: Reporter, name: str, bars: Progress | None, total: int = 0, cached: int = 0
    ) -> None:
        self._reporter = reporter
        self._bars = bars
        self._lock = threading.Lock()
        self._jobs: dict[str, Any] = {}
        self._costs: dict[str, list[float]] = {}
        self._whole = 0.0
        self._left = total - cached
        self._spent = 0.0
        self._started = time.monotonic()
        self._last_line = self._started
        self.name = name
        self.slots = 1
        self.done = 0
        self.failed = 0
        self.others = 0
        self._bar = bars.add_task("", total=total, completed=cached, stage=name) if bars else None

    def weigh(self, costs: Iterable[tuple[str, float]]) -> None:
        """Names of jobs, not always unique, with their work in any unit: for the time that is left."""
        for job, cost in costs:
            self._costs.setdefault(job, []).append(cost)
            self._whole += cost

    def running(self, job: str, text: str) -> None:
        """Show what a long job is doing now: in its bar, or in a log as a line now and then."""
        with self._lock:
            if self._bars is None:
                self._jobs[job] = None
                self._now_and_then(f"{job}  {text} ...")
                return
            if job not in self._jobs:
                self._jobs[job] = self._bars.add_task("", total=None, stage="")
            self._bars.update(self._jobs[job], description=f"{job}  {text}")
            self._show()

    def note(self, job: str, text: str) -> None:
        """A line about a job that neither ends it nor fails it."""
        self._reporter.say(f"[yellow]{self.name:<12} {job}[/] {escape(text)}")

    def finished(self, job: str, text: str = "", *, failed: bool = False) -> None:
        """Count a job; one that took long enough to be shown, or that failed, gets a line of its own."""
        with self._lock:
            self.failed += failed
            self.done += not failed
            self._count(job)
            self._now_and_then()
        if failed:
            self._reporter.say(f"[red]{self.name:<12} {job} failed:[/] {escape(text)}")
        elif text:
            self._reporter.say(f"{self.name:<12} {job}  {escape(text)}")

    def waits_for(self, jobs: int) -> None:
        """Tell that another driver is making this many of the stage's jobs."""
        if jobs:
            self._reporter.say(f"{self.name:<12} waits for {jobs} that another driver is making")

    def found(self, job: str) -> None:
        """Count a job that another driver made."""
        with self._lock:
            self.others += 1
            self._count(job)

    def describe(self) -> str:
        """How many run, wait and failed, how fast it goes, and how long it will take at this pace."""
        running = min(self.slots, self._left)
        parts = [f"{running} running", f"{self._left - running} waiting", f"{self.failed} failed"]
        elapsed = time.monotonic() - self._started
        if self._spent and elapsed > 0:
            rate = 60 * (self.done + self.failed) / elapsed
            parts.append(f"{rate:.3g} a minute")
        if self._spent and self._left:
            whole = self._whole or self._spent + self._left
            left = elapsed * max(0.0, whole - self._spent) / self._spent
            parts.append(f"about {datetime.timedelta(seconds=round(left))} left")
        return ", ".join(parts)

    def _count(self, job: str) -> None:
        self._left -= 1
        known = self._costs.get(job) if self._whole else None
        self._spent += known.pop() if known else float(not self._whole)
        bar = self._jobs.pop(job, None)
        if self._bars is not None:
            if bar is not None:
                self._bars.remove_task(bar)
            if self._bar is not None:
                self._bars.advance(self._bar)
            self._show()

    def _show(self) -> None:
        if self._bars is not None and self._bar is not None:
            self._bars.update(self._bar, description=self.describe())

    def _now_and_then(self, text: str = "") -> None:
        """A line for a log, once in a while."""
        if self._bars is not None or time.monotonic() - self._last_line <= LOG_EVERY:
            return
        self._last_line = time.monotonic()
        if text:
            self._reporter.say(f"{self.name:<12} {text}")
        self._reporter.say(f"{self.name:<12} {self.done} done, {self.describe()}")
