"""The results table: one row for each measured accuracy of one task. Its columns are a fixed interface.

A further column is a line of VALUES (or KEY), and whatever puts its value into a row.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from neulig_ray.errors import StageError, unknown

TEXT, INTEGER, REAL = "string", "Int64", "float64"


@dataclass(frozen=True)
class Column:
    """One column: its type, and what it means, for people.

    `measured`: a number that is averaged over seeds, orders and combinations, and empty in a row that failed.
    `percentage`: such a number between 0 and 100. `heading`: what tables call the column that shows its mean,
    with so many `digits`; "": they do not show it. `later`: 0.1 had no such column; in tables without it, it
    is empty.
    """

    dtype: str
    meaning: str
    measured: bool = False
    percentage: bool = False
    heading: str = ""
    digits: int = 1
    later: bool = False


def _percentage(meaning: str, heading: str = "", *, later: bool = False) -> Column:
    return Column(REAL, meaning, measured=True, percentage=True, heading=heading, later=later)


KEY = {
    "arch": Column(TEXT, "architecture of the models"),
    "origin": Column(
        TEXT, "foundation weights of the experts; where these differ, comma-joined in their order"
    ),
    "n": Column(INTEGER, "number of collaborators; 1: an expert alone, 0: its origin"),
    "collaborators": Column(TEXT, "tasks of the experts, comma-joined; `task@origin` where origins differ"),
    "method": Column(TEXT, "the method"),
    "options": Column(TEXT, "as JSON the options that are not the method's defaults"),
    "alignment": Column(
        TEXT,
        "the ligand's objective: `sup` (class labels), `semi` (none), `route` (an image's data set)",
    ),
    "granularity": Column(TEXT, "what one merged parameter vector serves, see below"),
    "buffers": Column(TEXT, "BatchNorm statistics: `average` or `re-estimated`; empty for networks without"),
    "batch_size": Column(INTEGER, "images of a batch, of the `batch-*` granularities"),
    "order_seed": Column(INTEGER, "which shuffle made the batches"),
    "seed": Column(INTEGER, "the ligand's or the method's seed"),
    "protocol": Column(TEXT, "which splits: `standard` or `paper`"),
    "task": Column(TEXT, "the task whose images were measured"),
    "split": Column(TEXT, "the split that they are of; `standard` reports on the official test split"),
    "expert_seed": Column(INTEGER, "the seed of the experts' fine-tuning; 0 for imported ones", later=True),
}
VALUES = {
    "num_samples": Column(INTEGER, "number of images"),
    "merging_accuracy": _percentage("of the merged parameters, or of the single model"),
    "ensembling_accuracy": _percentage(
        "of the weighted embeddings; a ligand's always with each image's own beta"
    ),
    "gap": Column(REAL, "ensembling minus merging, percentage points, signed", measured=True),
    "matched_ensembling_accuracy": _percentage("ensembling with the beta that the row's merged model had"),
    "agreement": _percentage("percentage of images of which merged and ensembled predictions coincide"),
    "kl": Column(REAL, "mean KL divergence of the merged from the ensembled prediction, nats", measured=True),
    "entropy": Column(REAL, "entropy of beta over log n", measured=True, heading="H", digits=2),
    "routing_accuracy": _percentage(
        "percentage of images whose largest beta is their own task's expert", heading="route"
    ),
    "alignment_weight": Column(REAL, "the ligand's weight of the weighted-offset term"),
    "learning_rate": Column(REAL, "the ligand's learning rate"),
    "parameters": Column(INTEGER, "numbers that are kept at inference"),
    "seconds": Column(REAL, "that the worker took for the row's evaluation"),
    "peak_memory_bytes": Column(INTEGER, "of that worker since it started"),
    "status": Column(TEXT, "`ok`, or `failed: ` or `skipped: ` and why"),
    "fingerprint": Column(TEXT, "of the evaluation that the row is from"),
    "gap_low": Column(
        REAL, "lower end of the gap's 95 % interval: paired bootstrap over the row's images", later=True
    ),
    "gap_high": Column(REAL, "upper end of it", later=True),
    "agreement_unsure": _percentage(
        "`agreement` on the images whose own largest beta is below 0.9: elsewhere the ensemble is nearly one "
        "expert",
        later=True,
    ),
}
COLUMNS = {**KEY, **VALUES}

PERCENTAGES = tuple(name for name, column in COLUMNS.items() if column.percentage)
MEASURED = (  # in the order in which trackers have recorded them
    *PERCENTAGES,
    *(name for name, column in COLUMNS.items() if column.measured and not column.percentage),
)
INTERVAL = ("gap_low", "gap_high")  # of the row's own gap: no mean of them is an interval
LATER = frozenset(name for name, column in COLUMNS.items() if column.later)
SHOWN = {name: column for name, column in COLUMNS.items() if column.heading}

OK = "ok"
SKIPPED = "skipped: "


def skipped(reason: str) -> str:
    """The `status` of a row whose method does not exist for its models."""
    return f"{SKIPPED}{reason}"


def failed(reason: str) -> str:
    """The `status` of a row that could not be measured."""
    return f"failed: {reason}"


def canonical_options(options: Mapping[str, Any] | str | None) -> str:
    """Options that are not the default as JSON with sorted keys; "{}" when there are none."""
    if isinstance(options, str):
        options = json.loads(options) if options else {}
    return json.dumps(dict(options or {}), sort_keys=True, separators=(",", ":"))


def empty() -> pd.DataFrame:
    """A results table without rows."""
    return pd.DataFrame({name: pd.Series(dtype=column.dtype) for name, column in COLUMNS.items()})


def frame(rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """The rows as a results table: all columns in their order and types, sorted by the key.

    Text that does not apply is "", a number is missing. `status` is "ok" unless given, `gap` is filled in
    from the two accuracies, and a row that failed loses what it measured. Raises InputError for a column
    that does not exist, StageError when two rows share a key or an accuracy is no percentage.
    """
    given = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame([dict(row) for row in rows])
    for name in given.columns:
        if name not in COLUMNS:
            raise unknown("column of the results", str(name), COLUMNS)
    made: dict[str, Any] = {}
    for name, declared in COLUMNS.items():
        column: Any = given[name] if name in given else pd.Series([None] * len(given), index=given.index)
        if name == "options":
            column = column.map(lambda value: canonical_options(None if _missing(value) else value))
        made[name] = column.astype(declared.dtype)
        if declared.dtype == TEXT:
            made[name] = made[name].fillna(OK if name == "status" else "")
    table = pd.DataFrame(made)
    computed = table["ensembling_accuracy"] - table["merging_accuracy"]
    table["gap"] = table["gap"].fillna(computed)
    table.loc[table["status"] != OK, [*MEASURED, *INTERVAL]] = float("nan")
    _check(table)
    return table.sort_values(list(KEY), ignore_index=True, kind="stable")


def describe(row: Mapping[Any, Any]) -> str:
    """The key of a row for people: `name=value` of what is not empty."""
    named = ((name, row[name]) for name in KEY)
    return ", ".join(f"{name}={x}" for name, x in named if not _missing(x) and x not in ("", "{}"))


def _missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _check(table: pd.DataFrame) -> None:
    repeated = table.duplicated(list(KEY))
    if repeated.any():
        row = table[repeated].iloc[0].to_dict()
        raise StageError(
            f"{int(repeated.sum())} results repeat the key of another, the first: {describe(row)}"
        )
    for name in PERCENTAGES:
        wrong = (table[name] < 0) | (table[name] > 100)
        if wrong.any():
            row = table[wrong].iloc[0].to_dict()
            raise StageError(f"{name} {row[name]} is no percentage: {describe(row)}")
