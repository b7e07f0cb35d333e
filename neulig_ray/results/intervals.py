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
    if gaps["gap_low"].isna().all():
        return {}, {}
    line = gaps.groupby(list(fields), sort=False).ngroup()  # a number for each line: fast to group by
    missing = set(line[gaps["gap_low"].isna()])
    known, line = gaps[~line.isin(missing)], line[~line.isin(missing)]
    halves = pd.DataFrame(
        {
            "line": line,
            "point": known.groupby(list(point), sort=False).ngroup(),
            "task": known[point[-1]],
            "below": known["gap"] - known["gap_low"],
            "above": known["gap_high"] - known["gap"],
        }
    )
    cells = halves.groupby(["line", "point", "task"])[_HALVES].mean()
    tasks = cells.groupby(["line", "task"])
    by_task = tasks.mean()
    share = tasks.size() / tasks.size().groupby("line").transform("sum")
    by_line = by_task.mul(share, axis=0).pow(2).groupby("line").sum().pow(0.5)
    firsts = known.groupby(line.to_numpy())[list(fields)].first()
    names = dict(zip(firsts.index, firsts.itertuples(index=False, name=None), strict=True))
    return (
        {names[one]: ends for one, ends in _pairs(by_line).items()},
        {(*names[one], task): ends for (one, task), ends in _pairs(by_task).items()},
    )


def _pairs(made: pd.DataFrame) -> dict[Any, tuple[float, float]]:
    return dict(zip(made.index, made.itertuples(index=False, name=None), strict=True))
