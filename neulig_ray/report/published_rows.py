"""Rows that others published: shown beside ours, marked as not ours, never in a results table.

A file in the folder `published` holds the rows of one paper or table. The numbers are as printed, also where
a row contradicts itself: the row's note then says so.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from neulig_ray.errors import unknown

FOLDER: Final = Path(__file__).parent / "published"
PrintedScores = tuple[float | None, float | None, float | None]  # merging, ensembling, gap (as printed)


@dataclass(frozen=True)
class PublishedRow:
    """One method. `scores` by task, empty where only the mean was published; accuracies in percent."""

    label: str
    mean: PrintedScores
    scores: Mapping[str, PrintedScores]
    source: str
    note: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """The rows that may stand beside ours of one (arch, origin, n) and list of tasks."""

    arch: str
    origin: str
    n: int
    tasks: frozenset[str]
    rows: tuple[PublishedRow, ...]


@dataclass(frozen=True)
class Published:
    """What one file holds.

    `family`: of the checkpoints, in words; `checkpoints`: of those that can be imported, the name by which
    imported experts are held to it. `capabilities`: the paper's Table 1, method -> its marks.
    """

    name: str
    title: str
    source: str
    family: str
    notes: tuple[str, ...]
    tables: tuple[PublishedTable, ...]
    checkpoints: str = ""
    capabilities: Mapping[str, Mapping[str, str]] | None = None

    def beside(self, arch: str, origin: str, n: int, tasks: tuple[str, ...]) -> tuple[PublishedRow, ...]:
        """The rows for one table of ours; none where arch, origin, n or the list of tasks differ."""
        wanted = (arch, origin, n, frozenset(tasks))
        return tuple(
            row
            for table in self.tables
            if (table.arch, table.origin, table.n, table.tasks) == wanted
            for row in table.rows
        )


def names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.json"))


@functools.lru_cache(maxsize=16)
def published(name: str) -> Published:
    """The published rows of a name; raises InputError, with the near misses, for one that there is not."""
    if name not in names():
        raise unknown("published rows", name, names(), "They are the field `published` of an experiment.")
    found = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Published(
        name=name,
        title=found["title"],
        source=found["source"],
        family=found["family"],
        notes=tuple(found.get("notes", ())),
        tables=tuple(_table(table, found["source"]) for table in found["tables"]),
        checkpoints=found.get("checkpoints", ""),
        capabilities=found.get("capabilities"),
    )


def _table(given: Mapping[str, Any], source: str) -> PublishedTable:
    tasks = given["tasks"]
    order = given.get("order", tasks)
    return PublishedTable(
        arch=given["arch"],
        origin=given.get("origin", "openai"),
        n=given["n"],
        tasks=frozenset(tasks),
        rows=tuple(_row(row, order, source) for row in given["rows"]),
    )


def _row(given: Mapping[str, Any], tasks: list[str], source: str) -> PublishedRow:
    scores = given.get("scores")
    return PublishedRow(
        label=given["label"],
        mean=_cell(given["mean"]),
        scores={} if scores is None else dict(zip(tasks, map(_cell, scores), strict=True)),
        source=given.get("source", source),
        note=given.get("note", ""),
    )


def _cell(given: float | list[float | None]) -> PrintedScores:
    """A merging accuracy alone, or merging, ensembling and gap."""
    if isinstance(given, list):
        merging, ensembling, gap = [*given, None, None, None][:3]
        return merging, ensembling, gap
    return given, None, None
