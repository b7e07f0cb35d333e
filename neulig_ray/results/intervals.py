"""Intervals of mean gaps, from those of the rows and from the spread over seeds."""

from typing import Any, Final

import numpy as np
import pandas as pd

from neulig_ray.results.repeats import POINT, SEEDS, seed_counts, seed_means

_HALVES: Final = ["below", "above"]
_STUDENT: Final = (12.7062, 4.3027, 3.1824, 2.7764)  # of 1 to 4 degrees of freedom
_NORMAL: Final = 1.959964

Halves = dict[Any, tuple[float, float]]


def mean_intervals(rows: pd.DataFrame, measured: pd.DataFrame) -> tuple[Halves, Halves]:
    """How far below and above its mean gap, in points, each line's interval reaches: by line, and by task.

    `rows` are those that were measured, with the number of their `line`; `measured` is their `by_seed`.

    Two kinds of chance are added, as squares of half-widths:

    - which images the test splits have. Rows of one task are of the same test images, whatever the
      combination, seed or order, so that their errors may go together: their half-widths are averaged as
      their gaps are, which is at least the half-width of the mean. Tasks have images of their own: their
      parts of a mean are added as roots of squares. Lines of which some gap has no interval are left out;
    - which seeds were drawn, where a line has several: Student's interval of the mean of their gaps. An
      experts' seed counts once then, by the mean of its ligands, which share its chance. NaN where no
      combination has all seeds.
    """
    gaps = rows[rows["gap"].notna()]
    if gaps["gap_low"].isna().all():
        return {}, {}
    by_line, by_task = _of_images(gaps)
    return _with_seeds(by_line, measured, ["line"]), _with_seeds(by_task, measured, ["line", "task"])


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, to 0.003 (Abramowitz and Stegun 1964, 26.7.5, beyond 4)."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z, z3, z5, z7 = (_NORMAL**power for power in (1, 3, 5, 7))
    return (
        z
        + (z3 + z) / (4 * freedom)
        + (5 * z5 + 16 * z3 + 3 * z) / (96 * freedom**2)
        + (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * freedom**3)
    )


def _of_images(gaps: pd.DataFrame) -> tuple[Halves, Halves]:
    known = gaps[~gaps["line"].isin(gaps["line"][gaps["gap_low"].isna()])]
    halves = pd.DataFrame(
        {
            "line": known["line"],
            "point": known.groupby(list(POINT), sort=False).ngroup(),
            "task": known["task"],
            "seeds": known.groupby(list(SEEDS), sort=False, dropna=False).ngroup(),
            "below": known["gap"] - known["gap_low"],
            "above": known["gap_high"] - known["gap"],
        }
    )
    seeds = halves.groupby(["line", "point", "task", "seeds"])[_HALVES].mean()
    tasks = seeds.groupby(["line", "point", "task"]).mean().groupby(["line", "task"])
    by_task = tasks.mean()
    share = tasks.size() / tasks.size().groupby("line").transform("sum")
    by_line = by_task.mul(share, axis=0).pow(2).groupby("line").sum().pow(0.5)
    return _pairs(by_line), _pairs(by_task)


def _with_seeds(images: Halves, measured: pd.DataFrame, by: list[str]) -> Halves:
    counts = seed_counts(measured, by)
    several = counts.index[counts["seeds"] > 1]
    if several.empty:
        return images
    gaps = seed_means(measured, by)["gap"]
    experts = gaps.groupby([*by, "expert_seed"]).mean()
    units = pd.concat([part.groupby(by).agg(["size", "std"]) for part in (experts, gaps)])
    units = units[units["size"] > 1]  # of experts where there are several, else of ligands
    units = units[~units.index.duplicated()].reindex(several)
    added = {key: student(int(size) - 1) * std / size**0.5 if size == size else float("nan")
             for key, size, std in units.itertuples(name=None)}  # fmt: skip
    return {
        key: tuple(float(np.hypot(end, added[key])) for end in ends) if key in added else ends  # type: ignore[misc]
        for key, ends in images.items()
    }


def _pairs(made: pd.DataFrame) -> Halves:
    return dict(zip(made.index, made.itertuples(index=False, name=None), strict=True))
