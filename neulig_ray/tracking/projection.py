"""The runs that an experiment's storage amounts to; knows no MLflow.

Metric names. A run of one variant has `merging/<task>`, `ensembling/<task>`, `gap/<task>` (each the mean over
the combinations that contain the task), `gap_low/<task>` and `gap_high/<task>` (the 95 % interval of that gap
over test images and seeds), and `.../mean` (over combinations and tasks); where there are several seeds also
`merging/seed_spread` (the standard deviation over seeds of `merging/mean`), `gap/low` and `gap/high` (the
interval of `gap/mean`). The parent of a cell has the same names for its selected ligand at granularity `task`
(the supervised one, where there is one: its tag `alignment`), `sample/merging/mean` and so on for the same
ligand at `sample`, and the means of every selected ligand as `<alignment>/<granularity>/merging/mean`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import pandas as pd

from neulig_ray.errors import StageError
from neulig_ray.results.schema import OK, SKIPPED, frame
from neulig_ray.results.summary import Line, lines, origin_group, tables, variants
from neulig_ray.results.variants import FIELDS
from neulig_ray.tracking import mlflow_internals
from neulig_ray.tracking.files import cell_files, combinations, note, summary
from neulig_ray.tracking.records import CellRecord, ExpertCurve, TrialRecord
from neulig_ray.tracking.runs import (
    FINGERPRINT,
    Metric,
    Run,
    as_json,
    finite,
    line_metrics,
    score_metrics,
    seed_metrics,
)

_MAX_STEPS: Final = 100
_SELECTED: Final = ("task", "sample")


def runs(
    experiment: str,
    results: pd.DataFrame,
    trials: Sequence[TrialRecord] = (),
    experts: Sequence[ExpertCurve] = (),
    cells: Sequence[CellRecord] = (),
    artifacts: Mapping[str, bytes] | None = None,
) -> list[Run]:
    """All runs, a parent before its children. Raises StageError where rows or trials belong to no cell."""
    results = frame(results)
    groups = results["origin"].map(origin_group)
    _check_cells(results.assign(origin=groups), trials, cells)
    made: list[Run] = []
    single = results[results["n"] < 2]
    pairs = set(zip(single["arch"], single["origin"], strict=True))
    for arch, origin in sorted(pairs | {(curve.arch, curve.origin) for curve in experts}):
        mine = [curve for curve in experts if (curve.arch, curve.origin) == (arch, origin)]
        rows = single[(single["arch"] == arch) & (single["origin"] == origin)]
        made += _experts(experiment, arch, origin, rows, mine)
    for cell in cells:
        own = results[
            (results["arch"] == cell.arch) & (groups == origin_group(cell.origin)) & (results["n"] == cell.n)
        ]
        origins = cell.origin.split(",")
        reference = single[(single["arch"] == cell.arch) & single["origin"].isin(origins)]
        searched = [trial for trial in trials if _identity(trial) == _identity(cell)]
        made += _cell(experiment, cell, own, reference, searched, artifacts or {})
    return made


def _experts(
    experiment: str, arch: str, origin: str, rows: pd.DataFrame, curves: Sequence[ExpertCurve]
) -> Iterator[Run]:
    key = f"{experiment}/experts/{arch}/{origin}"
    shared = {"arch": arch, "origin": origin}
    measured = rows[rows["method"] == "expert"]
    found = _lines(rows)
    yield Run(
        key=key,
        name=f"experts {arch} {origin}",
        tags={**shared, "n": "1", "stage": "finetune", "method": "expert"},
        metrics=[m for x, _ in found if x.variant.method == "expert" for m in line_metrics(x)],
        tables={"experts.json": combinations(measured)} if len(measured) else {},
        seconds=sum(epoch.get("seconds", 0.0) for curve in curves for epoch in curve.epochs),
        succeeded=all(curve.status == OK for curve in curves),
    )
    yield from (_expert(key, shared, curve) for curve in curves)
    for x, part in found:
        if x.variant.method != "expert":
            yield _variant(key, {**shared, "n": str(x.variant.nature.n)}, x, part)


def _expert(parent: str, shared: Mapping[str, str], curve: ExpertCurve) -> Run:
    epochs = list(curve.epochs)
    stride = max(1, -(-len(epochs) // _MAX_STEPS))
    kept = [epoch for place, epoch in enumerate(epochs) if place % stride == 0 or place == len(epochs) - 1]
    steps = [(name, epoch[name], int(epoch["epoch"])) for epoch in kept for name in epoch if name != "epoch"]
    own = {"stage": "finetune", "task": curve.task, "seed": str(curve.seed), "status": curve.status}
    return Run(
        key=f"{parent}/{curve.task}/seed{curve.seed}/{curve.fingerprint}",
        name=f"expert {curve.task}",
        parent=parent,
        tags={**shared, "n": "1", **own, FINGERPRINT: curve.fingerprint},
        metrics=finite([*steps, ("test_accuracy", curve.test_accuracy, 0)]),
        tables={"epochs.json": pd.DataFrame([dict(epoch) for epoch in epochs])} if epochs else {},
        seconds=sum(epoch.get("seconds", 0.0) for epoch in epochs),
        succeeded=curve.status == OK,
    )


def _cell(
    experiment: str,
    cell: CellRecord,
    rows: pd.DataFrame,
    reference: pd.DataFrame,
    trials: Sequence[TrialRecord],
    artifacts: Mapping[str, bytes],
) -> Iterator[Run]:
    origin = origin_group(cell.origin)
    key = f"{experiment}/{cell.arch}/{origin}/n{cell.n}/seed{cell.seed}/{cell.fingerprint}"
    shared = {"arch": cell.arch, "origin": origin, "n": str(cell.n), "seed": str(cell.seed)}
    whole = pd.concat([reference, rows])
    table = next((made for made in tables(whole) if made.n == cell.n), None)
    own = _lines(rows)
    alignments = {x.variant.alignment for x, _ in own if x.variant.is_ligand}
    alignment = "sup" if "sup" in alignments else min(alignments, default="")
    own_files = cell_files(table, rows) if table else {}
    ligands = {f"ligand/{name}": data for name, data in cell.ligand_files.items()}
    text = {mlflow_internals.NOTE: note(table)} if table else {}
    yield Run(
        key=key,
        name=f"{cell.arch} {origin} n={cell.n}",
        tags={**shared, "alignment": alignment, FINGERPRINT: cell.fingerprint, **text},
        metrics=_cell_metrics([x for x, _ in own], alignment),
        tables={"table.json": summary(table.lines)} if table else {},
        files={**own_files, **ligands, **artifacts},
        source=as_json(whole),
        seconds=_seconds(rows) + sum(trial.seconds for trial in trials),
    )
    yield from _trials(key, shared, trials)
    yield from (_variant(key, shared, x, part) for x, part in own)


def _trials(parent: str, shared: Mapping[str, str], trials: Sequence[TrialRecord]) -> Iterator[Run]:
    taken: dict[str, int] = {}
    for trial in trials:
        setting = f"{trial.alignment}/{trial.fingerprint}/{trial.learning_rate!r}/{trial.alignment_weight!r}"
        taken[setting] = taken.get(setting, 0) + 1  # a search may propose the same setting twice
        merging, ensembling = trial.val_merging, trial.val_ensembling
        gap = None if merging is None or ensembling is None else ensembling - merging
        values = {"merging": merging, "ensembling": ensembling, "gap": gap}
        yield Run(
            key=f"{parent}/search/{setting}" + (f"#{taken[setting]}" if taken[setting] > 1 else ""),
            name=f"search {trial.alignment} lr={trial.learning_rate:.3g} alpha={trial.alignment_weight:.3g}"
            + ("" if trial.expert_seed is None else f" expert seed {trial.expert_seed}"),
            parent=parent,
            tags={**shared, "stage": "search", "alignment": trial.alignment, "status": trial.status,
                  "selected": str(trial.selected).lower(), FINGERPRINT: trial.fingerprint},
            params={"alignment": trial.alignment, "learning_rate": repr(trial.learning_rate),
                    "alignment_weight": repr(trial.alignment_weight)},
            metrics=finite((f"val/{name}/mean", value, 0) for name, value in values.items()),
            seconds=trial.seconds,
            succeeded=trial.status == OK,
        )  # fmt: skip


def _variant(parent: str, shared: Mapping[str, str], x: Line, rows: pd.DataFrame) -> Run:
    v = x.variant
    settings = {name: str(getattr(v, name) or "") for name in FIELDS}
    named = [f"{name}={value}" for name, value in settings.items() if value not in ("", "{}")]
    return Run(
        key=f"{parent}/{'/'.join(named)}",
        name=v.title,
        parent=parent,
        tags={**shared, **settings, "stage": "evaluate", "status": "; ".join(x.failures)[:1000] or OK},
        metrics=line_metrics(x),
        tables={"combinations.json": combinations(rows)},
        seconds=_seconds(rows),
        succeeded=any(status == OK or status.startswith(SKIPPED) for status in rows["status"]),
    )


def _lines(rows: pd.DataFrame) -> list[tuple[Line, pd.DataFrame]]:
    parts = dict(variants(rows))
    return [(line, parts[line.variant]) for line in lines(rows)]


def _cell_metrics(made: Sequence[Line], alignment: str) -> list[Metric]:
    selected = [x for x in made if x.variant.is_ligand and x.variant.granularity in _SELECTED]
    headline: list[Metric] = []
    every: list[Metric] = []
    for x in selected:
        how, granularity = x.variant.alignment, x.variant.granularity
        means = [*score_metrics(x.mean, "mean"), *seed_metrics(x)]
        every += [(f"{how}/{granularity}/{name}", value, step) for name, value, step in means]
        if (how, granularity) == (alignment, "task"):
            headline += line_metrics(x)
        if (how, granularity) == (alignment, "sample"):
            headline += [(f"sample/{name}", value, step) for name, value, step in means]
    return headline + every


def _identity(record: CellRecord | TrialRecord) -> tuple[str, str, int, int]:
    return record.arch, origin_group(record.origin), record.n, record.seed


def _check_cells(results: pd.DataFrame, trials: Sequence[TrialRecord], cells: Sequence[CellRecord]) -> None:
    known = {_identity(cell)[:3] for cell in cells}
    combined = results[results["n"] > 1][["arch", "origin", "n"]].drop_duplicates()
    met = {(str(arch), str(origin), int(n)) for arch, origin, n in combined.itertuples(index=False)}
    if strangers := (met | {_identity(trial)[:3] for trial in trials}) - known:
        raise StageError(f"rows or trials of (arch, origin, n) = {min(strangers)} belong to no cell")


def _seconds(rows: pd.DataFrame) -> float:
    """What the evaluations took; each of an evaluation's rows has the time of all."""
    return float(rows.drop_duplicates("fingerprint")["seconds"].sum())
