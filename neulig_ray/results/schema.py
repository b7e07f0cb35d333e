"""The results table: one row for each measured accuracy of one task. Its columns are a fixed interface."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from neulig_ray.errors import StageError, unknown

TEXT, INTEGER, REAL = "string", "Int64", "float64"

KEY = {
    "arch": TEXT,
    "origin": TEXT,
    "n": INTEGER,
    "collaborators": TEXT,
    "method": TEXT,
    "options": TEXT,
    "alignment": TEXT,
    "granularity": TEXT,
    "buffers": TEXT,
    "batch_size": INTEGER,
    "order_seed": INTEGER,
    "seed": INTEGER,
    "protocol": TEXT,
    "task": TEXT,
    "split": TEXT,
}
VALUES = {
    "num_samples": INTEGER,
    "merging_accuracy": REAL,
    "ensembling_accuracy": REAL,
    "gap": REAL,
    "matched_ensembling_accuracy": REAL,
    "agreement": REAL,
    "kl": REAL,
    "entropy": REAL,
    "routing_accuracy": REAL,
    "alignment_weight": REAL,
    "learning_rate": REAL,
    "parameters": INTEGER,
    "seconds": REAL,
    "peak_memory_bytes": INTEGER,
    "status": TEXT,
    "fingerprint": TEXT,
    "gap_low": REAL,
    "gap_high": REAL,
    "agreement_unsure": REAL,
}
COLUMNS = {**KEY, **VALUES}

PERCENTAGES = (
    "merging_accuracy",
    "ensembling_accuracy",
    "matched_ensembling_accuracy",
    "agreement",
    "agreement_unsure",
    "routing_accuracy",
)
MEASURED = (*PERCENTAGES, "gap", "kl", "entropy")  # empty in a row that failed
INTERVAL = ("gap_low", "gap_high")  # of the row's own gap: no mean of them is an interval

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
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in COLUMNS.items()})


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
    for name, dtype in COLUMNS.items():
        column: Any = given[name] if name in given else pd.Series([None] * len(given), index=given.index)
        if name == "options":
            column = column.map(lambda value: canonical_options(None if _missing(value) else value))
        made[name] = column.astype(dtype)
        if dtype == TEXT:
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
