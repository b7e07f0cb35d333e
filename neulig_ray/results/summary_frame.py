"""The lines of all tables as one DataFrame, for notebooks and scripts."""

import dataclasses
from typing import Any

import pandas as pd

from neulig_ray.results.schema import MEASURED
from neulig_ray.results.summary import SCORES, Line, Table, tables
from neulig_ray.results.variants import FIELDS

_OTHERS = tuple(name for name in MEASURED if name not in SCORES.values())
_COLUMNS = (
    *("arch", "origin", "n", "line", *FIELDS),
    *SCORES,
    *(f"{name}_spread" for name in SCORES),
    *("gap_low", "gap_high", "absolute_gap", *_OTHERS, "combinations", "failures"),
    *(f"{name}_seed_spread" for name in SCORES),
    *("seeds", "expert_seeds"),
)


def summary_frame(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each line of each table of a results frame, in the order of the tables.

    Accuracies in percent, gaps and spreads in percentage points, NaN for what was not measured; zero-shot
    and experts stand in every table, as they do on the console. `gap_low` and `gap_high` are the 95 %
    interval of the mean gap over test images and seeds. `*_spread` is the standard deviation between
    combinations, `*_seed_spread` that between the line's `seeds`.
    """
    made = [_row(table, line) for table in tables(rows) for line in table.lines]
    return pd.DataFrame(made, columns=list(_COLUMNS))


def _row(table: Table, line: Line) -> dict[str, Any]:
    return {
        "arch": table.arch,
        "origin": table.origin,
        "n": table.n,
        "line": line.variant.title,
        **dataclasses.asdict(line.variant),
        **{name: getattr(line.mean, name) for name in SCORES},
        **{f"{name}_spread": getattr(line.spread, name) for name in SCORES},
        "gap_low": line.mean.low,
        "gap_high": line.mean.high,
        "absolute_gap": line.absolute_gap,
        **line.others,
        "combinations": line.combinations,
        "failures": "; ".join(line.failures),
        **{f"{name}_seed_spread": getattr(line.seed_spread, name) for name in SCORES},
        "seeds": line.seeds,
        "expert_seeds": line.expert_seeds,
    }
