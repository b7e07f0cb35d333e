"""How far a merge is: a bar on standard error for people, the count of what was read for the last line."""

import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class MergeProgress(AbstractContextManager["MergeProgress"]):
    """What the engine tells its progress to. The bar is there on a terminal only, and not when `quiet`."""

    def __init__(self, bytes_each: float, *, quiet: bool) -> None:
        """`bytes_each`: bytes that are read for one number of the merged model."""
        self.passes = 0
        self.numbers = 0
        self._bytes_each = bytes_each
        self._shown = not quiet and sys.stderr.isatty()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    @property
    def bytes_read(self) -> float:
        return self.numbers * self._bytes_each

    def stage(self, what: str, total: int) -> None:
        """A pass over `total` numbers begins."""
        self.passes += 1
        if self._bar is not None:
            self._task = self._bar.add_task(f"pass {self.passes}: {what}", total=total * self._bytes_each)

    def advance(self, count: int) -> None:
        """`count` more numbers were read of every model; from any thread."""
        self.numbers += count
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, count * self._bytes_each)

    def __enter__(self) -> "MergeProgress":
        if self._shown:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
