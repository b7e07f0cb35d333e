"""Intervals of mean gaps, from those of the rows."""

from collections.abc import Sequence
from typing import Any, Final

import pandas as pd

_HALVES: Final = ["below", "above"]


def mean_intervals(
    rows: pd.DataFrame, fields: Sequence[str], point: Sequence[str]
) -> tuple[dict[Any, tuple[float, float]], dict[Any, tuple[float, float]]]:
    """How far below and above its mean gap, in points, each line's interval reaches: by line, and by task.

    Rows of one task are of the same test images, whatever the combination, seed or order, so that their
    errors may go together: their half-widths are averaged as their gaps are, which is at least the half-width
    of the mean. Tasks have images of their own: their parts of a mean are added as roots of squares. This is
    chance in the choice of images alone, not in what was trained. Lines of which some gap has no interval
    are left out.

    `fields` make a line; `point` is a mean's unit, the last of them the task.
    """
    gaps = rows[rows["gap"].notna()]
    whole = gaps.groupby(list(fields))["gap_low"].transform("count") == gaps.groupby(list(fields))[
        "gap"
    ].transform("size")
    known = gaps[whole]
    halves = known.assign(below=known["gap"] - known["gap_low"], above=known["gap_high"] - known["gap"])
    cells = halves.groupby([*fields, *point])[_HALVES].mean()
    tasks = cells.groupby([*fields, point[-1]])
    by_task = tasks.mean()
    share = tasks.size() / tasks.size().groupby(list(fields)).transform("sum")
    by_line = by_task.mul(share, axis=0).pow(2).groupby(list(fields)).sum().pow(0.5)
    return _pairs(by_line), _pairs(by_task)


def _pairs(made: pd.DataFrame) -> dict[Any, tuple[float, float]]:
    return dict(zip(made.index, made.itertuples(index=False, name=None), strict=True))
