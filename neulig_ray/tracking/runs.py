"""What one MLflow run shall hold, as plain data."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import pandas as pd

from neulig_ray.results import schema
from neulig_ray.results.summary import Line, Score

_VERSION: Final = 1  # raised when runs are to be recorded anew though their inputs are the same

KEY, CONTENT, FINGERPRINT = "neulig.key", "neulig.content", "neulig.fingerprint"
File = bytes | Callable[[], bytes]
Metric = tuple[str, float, int]  # name, value, step


@dataclass(frozen=True)
class Run:
    """One run as it shall stand in the store. `source`: what those files are made of that are drawn late."""

    key: str
    name: str
    parent: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Metric] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    files: Mapping[str, File] = field(default_factory=dict)
    source: str = ""
    seconds: float = 0.0
    succeeded: bool = True

    @property
    def status(self) -> str:
        return "FINISHED" if self.succeeded else "FAILED"

    @property
    def content(self) -> str:
        """A hash of everything that the run shows: an unchanged one needs no recording."""
        digest = hashlib.sha256()
        plain = [_VERSION, self.name, self.parent, dict(self.tags), dict(self.params), list(self.metrics),
                 self.status, self.source]  # fmt: skip
        digest.update(json.dumps(plain, sort_keys=True).encode())
        for name, rows in sorted(self.tables.items()):
            digest.update(f"{name}\n{as_json(rows)}".encode())
        for name, data in sorted(self.files.items()):
            digest.update(name.encode() + (hashlib.sha256(data).digest() if isinstance(data, bytes) else b""))
        return digest.hexdigest()[:32]


def as_json(rows: pd.DataFrame) -> str:
    """A table as text, without columns that 0.1 had not and that say nothing.

    Results of 0.1 lack them: that is no reason to record its runs again.
    """
    silent = [column for column in rows if column in schema.LATER and _says_nothing(rows, column)]
    return str(rows.drop(columns=silent).to_json(orient="split"))


def _says_nothing(rows: pd.DataFrame, column: str) -> bool:
    """Whether nothing fills the column; of the key's, whether the others tell the rows apart already."""
    if column not in schema.KEY:
        return bool(rows[column].isna().all())
    return not rows.duplicated([name for name in schema.KEY if name in rows and name != column]).any()


def finite(metrics: Iterable[tuple[str, float | None, int]]) -> list[Metric]:
    """The metrics that have a value, under names that MLflow accepts."""
    return [
        (re.sub(r"[^\w\-. /:]", "_", name), round(float(value), 9), step)  # no noise of 64-bit sums
        for name, value, step in metrics
        if value is not None and abs(value) < float("inf")
    ]


def score_metrics(score: Score, of: str) -> list[Metric]:
    """merging/<of>, ensembling/<of>, gap/<of> and the ends of its interval, as far as they were measured."""
    values = {"merging": score.merging, "ensembling": score.ensembling, "gap": score.gap}
    values |= {"gap_low": score.low, "gap_high": score.high}
    return finite((f"{name}/{of}", value, 0) for name, value in values.items())


def seed_metrics(line: Line) -> list[Metric]:
    """Where a line has several seeds: merging/seed_spread, gap/low and gap/high, its interval."""
    if line.seeds < 2:
        return []
    values = {"merging/seed_spread": line.seed_spread.merging, "gap/low": line.mean.low}
    return finite((name, value, 0) for name, value in {**values, "gap/high": line.mean.high}.items())


def line_metrics(line: Line) -> list[Metric]:
    """Everything that a line of a table says, by task and as means."""
    others = {name.removesuffix("_accuracy"): value for name, value in line.others.items()}
    others["absolute_gap"] = line.absolute_gap
    return [
        *score_metrics(line.mean, "mean"),
        *finite((f"{name}/mean", value, 0) for name, value in others.items()),
        *seed_metrics(line),
        *(metric for task, score in line.scores.items() for metric in score_metrics(score, task)),
    ]
