"""Means and spreads of a results table: the one aggregation behind console, HTML, plots and MLflow."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from neulig_ray.results.intervals import mean_intervals
from neulig_ray.results.repeats import POINT, SEEDS, by_seed, over_seeds, seed_counts, seed_means
from neulig_ray.results.schema import MEASURED, OK, SKIPPED
from neulig_ray.results.variants import ENSEMBLE_PREFIX, FIELDS, Nature, Variant

NAN = float("nan")
SCORES = {"merging": "merging_accuracy", "ensembling": "ensembling_accuracy", "gap": "gap"}


@dataclass(frozen=True)
class Score:
    """Two accuracies in percent and their signed gap in percentage points; NaN where there is none.

    `low`, `high`: the 95 % interval of the gap over test images and seeds, as `mean_intervals` has it.
    """

    merging: float = NAN
    ensembling: float = NAN
    gap: float = NAN
    low: float = NAN
    high: float = NAN

    @property
    def has_interval(self) -> bool:
        return self.low == self.low

    @property
    def undecided(self) -> bool:
        """Whether images and seeds do not tell the gap from none."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Line:
    """One variant over its combinations and seeds.

    `scores[task]` is the mean over the combinations that contain the task, `mean` the mean over
    combinations and their tasks, of numbers that are means over seeds. `spread` is the standard deviation
    between the combinations' own means, `seed_spread` that between the means of the seeds (of each over the
    combinations and tasks that all seeds have); NaN for a single one. `absolute_gap` is the mean of |gap|
    over combinations and tasks. `others` holds the means of the remaining measured columns by name.
    `failures` says what could not be measured. `seeds` counts pairs of an experts' and an own seed,
    `expert_seeds` the experts'.
    """

    variant: Variant
    scores: dict[str, Score]
    mean: Score
    spread: Score
    absolute_gap: float
    others: dict[str, float]
    combinations: int
    failures: tuple[str, ...] = ()
    seed_spread: Score = Score()
    seeds: int = 1
    expert_seeds: int = 1


@dataclass(frozen=True)
class Table:
    """The lines of one (arch, origin, n); the reference lines are the same models whatever n is."""

    arch: str
    origin: str
    n: int
    tasks: tuple[str, ...]
    lines: tuple[Line, ...]
    combinations: int
    order_seeds: int = 0
    failures: tuple[str, ...] = field(default=())

    @property
    def title(self) -> str:
        return f"{self.arch} · origin {self.origin} · n = {self.n}"

    @property
    def has_intervals(self) -> bool:
        return any(line.mean.has_interval for line in self.lines)

    @property
    def seeds(self) -> int:
        """Of the line that has most."""
        return max((line.seeds for line in self.lines), default=1)

    @property
    def expert_seeds(self) -> int:
        """Of the line that has most."""
        return max((line.expert_seeds for line in self.lines), default=1)

    @property
    def caption(self) -> str:
        """How the numbers of the table were averaged."""
        parts = []
        if self.combinations > 1:
            parts.append(
                f"means over {self.combinations} combinations (a task's cell: over those that contain it)"
            )
            parts.append(f"spread of the mean between combinations: {_spreads(self.lines)} points")
        elif self.combinations == 1:
            parts.append("one combination")
        if self.has_intervals:
            chance = "over test images" + (", and its spread over seeds" if self.seeds > 1 else "")
            parts.append(
                f"95 %: paired bootstrap of the mean gap {chance}; where it holds 0, the gap has no "
                "colour beyond 1.5 points"
            )
        if self.order_seeds > 1:
            parts.append(f"batches over {self.order_seeds} orders")
        if self.seeds > 1:
            experts = f", of {self.expert_seeds} seeds of experts" if self.expert_seeds > 1 else ""
            parts.append(f"means over {self.seeds} seeds{experts}, ±: their standard deviation")
        return "; ".join(parts)


def origin_group(origin: str) -> str:
    """Combinations of experts from the same origins belong together, whichever expert has which."""
    return ",".join(sorted(set(origin.split(","))))


def points(rows: pd.DataFrame) -> pd.DataFrame:
    """What was measured, by (origin, collaborators, task): means over seeds, of means over batch orders."""
    return over_seeds(by_seed(rows))


def lines(rows: pd.DataFrame) -> list[Line]:
    """One line for each variant among the rows, in the order of a table.

    Batch orders are averaged first, then seeds, then tasks and combinations.
    """
    keyed = _with_batch_size(rows)
    # A number for each line, in the order of their first rows: fast to group by.
    keyed = keyed.assign(line=keyed.groupby(list(FIELDS), sort=False).ngroup())
    measured = by_seed(keyed, ["line"])
    cells = over_seeds(measured)
    widths, task_widths = mean_intervals(keyed[keyed["status"] == OK], measured)
    combinations = cells.groupby(["line", *POINT[:2]]).mean().groupby("line")
    means = cells.groupby("line").mean()
    mean, spread = _scores(means, widths), _scores(combinations.std(), {})
    seed_spread = _scores(seed_means(measured, ["line"]).groupby("line").std(), {})
    counts = combinations.size().to_dict()
    seeds: dict[Any, dict[str, int]] = seed_counts(measured, ["line"]).to_dict("index")  # type: ignore[assignment]
    absolute = cells["gap"].abs().groupby("line").mean().to_dict()
    others: dict[Any, dict[str, float]] = means.drop(columns=list(SCORES.values())).to_dict("index")  # type: ignore[assignment]
    missing = dict.fromkeys(set(MEASURED) - set(SCORES.values()), NAN)
    scores: dict[Any, dict[str, Score]] = {}
    for (place, task), score in _scores(cells.groupby(["line", "task"]).mean(), task_widths).items():
        scores.setdefault(place, {})[task] = score
    natures = _natures(rows)
    failures = _failures(keyed, natures)
    made = []
    for place, values in enumerate(keyed[list(FIELDS)].drop_duplicates().itertuples(index=False, name=None)):
        made.append(
            Line(
                variant=_variant(values, natures),
                scores=scores.get(place, {}),
                mean=mean.get(place, Score()),
                spread=spread.get(place, Score()),
                absolute_gap=absolute.get(place, NAN),
                others=others.get(place, missing),
                combinations=counts.get(place, 0),
                failures=failures.get(place, ()),
                seed_spread=seed_spread.get(place, Score()),
                **seeds.get(place, {}),
            )
        )
    return sorted(made, key=lambda x: x.variant.place)


def variants(rows: pd.DataFrame) -> Iterator[tuple[Variant, pd.DataFrame]]:
    """The rows of each variant."""
    natures = _natures(rows)
    for values, group in _with_batch_size(rows).groupby(list(FIELDS), sort=False):
        yield _variant(values, natures), rows.loc[group.index]


def tables(frame: pd.DataFrame) -> list[Table]:
    """The tables of a results frame, by arch, origin and n; zero-shot and experts stand in each."""
    if frame.empty:
        return []
    grouped = frame.assign(origin_group=frame["origin"].map(origin_group))
    made, covered = [], set()
    for (arch, origin), mine in grouped[grouped["n"] > 1].groupby(["arch", "origin_group"]):
        covered |= {(arch, single) for single in str(origin).split(",")}
        singles = grouped[(grouped["arch"] == arch) & grouped["origin"].isin(str(origin).split(","))]
        for n, rows in mine.groupby("n"):
            made.append(_table(str(arch), str(origin), int(str(n)), rows, singles[singles["n"] < 2]))
    for (arch, origin), mine in grouped.groupby(["arch", "origin_group"]):
        if (arch, origin) not in covered and not (mine["n"] > 1).any():  # no combinations yet
            made.append(_table(str(arch), str(origin), 1, mine, mine.iloc[:0]))
    return sorted(made, key=lambda table: (table.arch, table.origin, table.n))


def _table(arch: str, origin: str, n: int, rows: pd.DataFrame, reference: pd.DataFrame) -> Table:
    tasks = tuple(sorted(rows["task"].unique()))
    shared = reference[reference["task"].isin(tasks)]
    own = lines(rows)
    everything = sorted([*lines(shared), *own], key=lambda x: x.variant.place)
    return Table(
        arch=arch,
        origin=origin,
        n=n,
        tasks=tasks,
        lines=tuple(everything),
        combinations=len(rows[["origin", "collaborators"]].drop_duplicates()) if n > 1 else 0,
        order_seeds=int(rows["order_seed"].nunique()),
        failures=tuple(reason for x in everything for reason in x.failures),
    )


def _with_batch_size(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(batch_size=rows["batch_size"].fillna(0).astype("int64"))


def _variant(values: Sequence[Any], natures: Mapping[str, Nature]) -> Variant:
    method, options, alignment, granularity, buffers, batch_size, protocol, split = values
    nature = natures.get(method, Nature())
    return Variant(method, options, alignment, granularity, buffers, int(batch_size), protocol, split, nature)


def _natures(rows: pd.DataFrame) -> dict[str, Nature]:
    """Method -> what its rows show. Where nothing was measured, only the name can tell an ensemble."""
    found = {}
    for method, own in rows.groupby("method"):
        merges, ensembles = (bool(own[SCORES[what]].notna().any()) for what in ("merging", "ensembling"))
        if not merges and not ensembles:
            ensembles = str(method).startswith(ENSEMBLE_PREFIX)
            merges = not ensembles
        found[str(method)] = Nature(int(own["n"].fillna(2).max()), merges, ensembles)
    return found


def _scores(means: pd.DataFrame, widths: Mapping[Any, tuple[float, float]]) -> dict[Any, Score]:
    columns = [means[column].astype(float) for column in SCORES.values()]
    found = {}
    for key, merging, ensembling, gap in zip(means.index, *columns, strict=True):
        below, above = widths.get(key, (NAN, NAN))
        found[key] = Score(merging, ensembling, gap, gap - below, gap + above)
    return found


def _failures(rows: pd.DataFrame, natures: Mapping[str, Nature]) -> dict[Any, tuple[str, ...]]:
    """What each line lacks and why; with the seeds, where it is not all of the line's."""
    seeds = rows[["line", *SEEDS]].drop_duplicates().groupby("line").size()
    found: dict[Any, dict[str, dict[str, None]]] = {}
    for row in rows[rows["status"] != OK].to_dict("records"):
        title, status = _variant([row[name] for name in FIELDS], natures).title, str(row["status"])
        if status.startswith(SKIPPED):  # the same for all combinations: told once
            text = f"{title} {status}"
        else:
            text = f"{title} of {row['collaborators'] or row['task']}: {status.removeprefix('failed: ')}"
        experts = "" if pd.isna(row["expert_seed"]) else f" on experts of {row['expert_seed']}"
        found.setdefault(row["line"], {}).setdefault(text, {})[f"{row['seed']}{experts}"] = None
    return {
        line: tuple(
            text if len(own) == seeds[line] else f"{text} (seed {', '.join(own)})"
            for text, own in texts.items()
        )
        for line, texts in found.items()
    }


def _spreads(made: tuple[Line, ...]) -> str:
    values = [x.spread.merging for x in made if x.combinations > 1 and x.spread.merging == x.spread.merging]
    return f"{min(values):.1f} to {max(values):.1f}" if values else "none"
