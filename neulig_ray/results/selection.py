"""Rows of a results table, named by words `column=value`."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from neulig_ray.errors import InputError, unknown
from neulig_ray.results.schema import KEY, OK, canonical_options

AVERAGED: Final = (
    "task",
    "order_seed",
    "seed",
    "expert_seed",
)  # may be left open: the mean of these rows is meant
_COLUMNS: Final = tuple(name for name in KEY if name not in AVERAGED)
_MOST_LINES: Final = 9  # below the first


def words(selection: str | Mapping[str, Any], also: Sequence[str] = ()) -> dict[str, str]:
    """The words of a selection, `method=ligand granularity=task`, as column -> value.

    `also`: names beside the key's columns. Raises InputError for what is no word, and names that are none.
    """
    if isinstance(selection, Mapping):
        given = {name: _text(name, value) for name, value in selection.items()}
    else:
        parts = [word.partition("=") for word in selection.split()]
        if bad := [name for name, equals, _ in parts if not equals]:
            raise InputError(f"{bad[0]!r} is no word column=value, as in 'method=average task=digits'")
        given = {name: _text(name, value) for name, _, value in parts}
        if len(given) < len(parts):
            raise InputError(f"{selection!r} names a column twice")
    for name in given:
        if name not in KEY and name not in also:
            raise unknown("column to choose rows by:", name, [*KEY, *also])
    return given


def chosen(table: pd.DataFrame, given: Mapping[str, str]) -> pd.DataFrame:
    """The rows of one method's result on one combination: they differ in task, order and seeds alone.

    Raises InputError for a value that no row has, with the near misses; for rows that differ in more, with
    what would choose one; and for rows that were not measured.
    """
    if table.empty:
        raise InputError("the results have no rows: run the experiment first")
    rows = table
    said: list[str] = []
    for name, value in given.items():
        texts = _texts(rows, name)
        if not (texts == value).any():
            among = f" of the rows with {' '.join(said)}" if said else ""
            raise unknown(f"{name}{among}:", value, {text or "(empty)" for text in texts.unique()})
        rows = rows[texts == value]
        said.append(f"{name}={value}")
    shown = " ".join(said) or "no word"
    differing = [name for name in _COLUMNS if _texts(rows, name).nunique() > 1]
    if differing:
        raise InputError(_ambiguous(rows, differing, shown))
    if (bad := rows[rows["status"] != OK]).size:
        raise InputError(f"{shown} is of rows that were not measured: {bad.iloc[0]['status']}")
    return rows


def described(rows: pd.DataFrame) -> str:
    """What the rows have in common, as words that choose them."""
    common = {name: _texts(rows, name).unique() for name in KEY}
    named = {name: str(values[0]) for name, values in common.items() if len(values) == 1}
    return " ".join(f"{name}={value}" for name, value in named.items() if value not in ("", "{}"))


def _ambiguous(rows: pd.DataFrame, differing: Sequence[str], shown: str) -> str:
    texts = pd.DataFrame({name: _texts(rows, name) for name in differing}).drop_duplicates()
    listing = [
        " ".join(f"{name}={value}" for name, value in kind.items()) for kind in texts.to_dict("records")
    ]
    if len(listing) > _MOST_LINES:
        listing = [*listing[: _MOST_LINES - 1], f"and {len(listing) - _MOST_LINES + 1} more"]
    fits = f"{shown} fits rows that differ in {', '.join(differing)}; add what chooses one:"
    return "\n".join([fits, *(f"  {line}" for line in listing)])


def _texts(rows: pd.DataFrame, name: str) -> pd.Series:
    """A column as people write it: nothing where it does not apply."""
    return rows[name].astype("string").fillna("")


def _text(name: str, value: Any) -> str:
    if name == "options":
        try:
            return canonical_options(value)
        except (ValueError, TypeError):
            raise InputError(
                f'options={value!r} is no JSON object, as in options={{"scaling":0.3}}'
            ) from None
    return "" if value is None else str(value)
