"""Labels as data sets write them: numbers of several types, texts, and the many ways to have none."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from neulig_ray.errors import InputError
from neulig_ray.tasks.reading.pictures import Labels, Pictures

MISSING: Final = -1
MOST_MISSING: Final = 0.01
_NO_TEXTS: Final = frozenset(("", "nan", "<na>", "nat"))  # as programs write a missing value; in lower case


def is_missing(cell: Any) -> bool:
    """Whether a cell holds no label: null, NaN, a negative number, a text that is blank or stands for NaN."""
    if cell is None:
        return True
    if isinstance(cell, str):
        return cell.strip().lower() in _NO_TEXTS
    return bool(math.isnan(cell) or cell < 0)


def texts(cells: Iterable[str | None]) -> tuple[str, ...]:
    """The texts that occur as labels, sorted: their place is their number."""
    return tuple(sorted({cell for cell in cells if cell is not None and not is_missing(cell)}))


def numbers(cells: Sequence[Any], names: Sequence[str]) -> Labels:
    """Labels int64 (N,), MISSING where there is none. Texts are numbered by their place in `names`.

    Raises ValueError for a number that is not whole, KeyError for a text that is no name.
    """
    place = {name: label for label, name in enumerate(names)}

    def number(cell: Any) -> int:
        if is_missing(cell):
            return MISSING
        if isinstance(cell, str):
            return place[cell]
        if int(cell) != cell:
            raise ValueError(f"{cell} is no whole number")
        return int(cell)

    return np.array([number(cell) for cell in cells], np.int64)


def labelled(
    pictures: Pictures, task: str, split: str, remedy: str = "Fetch or place the data again"
) -> Pictures:
    """The images that have a label, with a note on those that have none; InputError above 1 % of them."""
    without = int((pictures.labels < 0).sum())
    if not without:
        return pictures
    told = f"{without} of {len(pictures)} images have no label (empty, null, NaN or negative)"
    if without > MOST_MISSING * len(pictures):
        raise InputError(f"task {task!r}, split {split!r}: {told}, more than {MOST_MISSING:.0%}. {remedy}")
    kept = pictures.take(np.flatnonzero(pictures.labels >= 0))
    return replace(kept, notes=(*pictures.notes, f"{split}: {told} and are left out"))
