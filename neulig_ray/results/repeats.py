"""Repeats of a measurement: orders of batches, ligands of several seeds, experts of several seeds."""

from collections.abc import Sequence
from typing import Final

import pandas as pd

from neulig_ray.results.schema import MEASURED, OK

SEEDS: Final = ("expert_seed", "seed")  # together: one system, which differs from another's by chance
POINT: Final = ("origin", "collaborators", "task")
_NO_SEED: Final = -1


def by_seed(rows: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """What was measured, by (`by`, point, seeds): means over the orders of batches. No seed is seed -1."""
    good = rows[rows["status"] == OK]
    seeds = {name: good[name].fillna(_NO_SEED).astype("int64") for name in SEEDS}
    return good.assign(**seeds).groupby([*by, *POINT, *SEEDS], dropna=False)[list(MEASURED)].mean()


def over_seeds(measured: pd.DataFrame) -> pd.DataFrame:
    """Of `by_seed`, the means by point: every seed has the same weight, however many orders it has."""
    return measured.groupby([name for name in measured.index.names if name not in SEEDS]).mean()


def seed_means(measured: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Of `by_seed`, the mean of each seed over its points, by (`by`, seeds), where there are several seeds.

    These are over the points that all seeds have: else seeds would differ by what of them failed.
    """
    places = measured.index.to_frame(index=False)
    seed = places.groupby(list(SEEDS)).ngroup()
    seeds = seed.groupby([places[name] for name in by]).transform("nunique")
    found = seed.groupby([places[name] for name in places if name not in SEEDS]).transform("size")
    return measured[((seeds > 1) & (found == seeds)).to_numpy()].groupby([*by, *SEEDS]).mean()


def seed_counts(measured: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Of `by_seed`, how many `seeds` and `expert_seeds` each line has, by `by`."""
    pairs = measured.index.to_frame(index=False)[[*by, *SEEDS]].drop_duplicates()
    lines = pairs.groupby(list(by))["expert_seed"]
    return pd.DataFrame({"seeds": lines.size(), "expert_seeds": lines.nunique()})
