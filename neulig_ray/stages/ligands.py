"""Stage `ligands`: of every cell the trial that val prefers."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from neulig_ray.cluster.cost import Cost, Sizes
from neulig_ray.cluster.jobs import Resources
from neulig_ray.cluster.run_context import Failures, RunContext
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.combinations import Group
from neulig_ray.experiment.config import Experiment
from neulig_ray.ligand.gate import EXPERTS, GateSpec
from neulig_ray.ligand.recipe import Objective
from neulig_ray.stages.search import LIGAND_FILE, VERSION, Trial, cell_label, plan_trials, trial_artifacts
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

SEARCH_FILE = "search.json"


@dataclass(frozen=True)
class Cell:
    """The ligands of one (arch, origin, n, objective) beside the experts of one seed: the best of its trials.

    `siblings`: the trials beside the experts of the other seeds, setting by setting as this cell's own. One
    setting is chosen for all.
    """

    artifact: Artifact
    group: Group
    objective: Objective
    trials: tuple[Trial, ...]
    siblings: tuple[tuple[Artifact, ...], ...] = ()

    @property
    def gate(self) -> GateSpec:
        return EXPERTS

    @property
    def expert_seed(self) -> int:
        return self.trials[0].experiment.seed

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the ligands of each combination."""
        return self.trials[0].experiment.ligand_seeds

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        own = tuple(trial.artifact for trial in self.trials)
        return own + tuple(artifact for trials in self.siblings for artifact in trials)

    def cost(self, sizes: Sizes) -> Cost:
        return Cost()


def plan_cells(
    experiment: Experiment, group: Group, objective: Objective, models: Mapping[int, ArchModels]
) -> list[Cell]:
    """A cell for each seed of the experts; `models`: expert seed -> the arch's."""
    own = {e.seed: e for e in experiment.by_seed}
    named = {seed: trial_artifacts(e, group, objective, models[seed]) for seed, e in own.items()}
    first: dict[tuple[Artifact, ...], int] = {}  # imported experts, which no seed made, have equal trials
    for seed, artifacts in named.items():
        first.setdefault(tuple(artifacts.values()), seed)
    cells = []
    for mine, seed in first.items():
        siblings = tuple(trials for trials in first if trials != mine)
        identity = {"trials": [a.fingerprint for a in mine]}
        if siblings:
            identity["siblings"] = [a.fingerprint for trials in siblings for a in trials]
        artifact = Artifact.of("ligand", cell_label(group, objective), VERSION, identity)
        trials = plan_trials(own[seed], group, objective, models[seed], artifact, named[seed])
        cells.append(Cell(artifact, group, objective, trials, siblings))
    return cells


def run(context: RunContext, cells: Sequence[Cell], resources: Resources) -> None:
    """Select, in the driver, adding to the failures the cells none of whose trials succeeded."""
    for cell in cells:
        select(cell, context.storage, context.failures)


def select(cell: Cell, storage: Storage, failures: Failures) -> None:
    """Commit the cell's best trial: highest val merging accuracy at `task`, ties to the higher ensembling.

    Both are means over the seeds of ligands and experts; a setting that failed for one of them is not chosen.
    """
    if storage.exists(cell.artifact):
        return
    rows = [trial.artifact for trial in cell.trials]
    table = [
        {**dataclasses.asdict(trial.setting), **_reached(trial.artifact, storage, failures)}
        for trial in cell.trials
    ]
    beside = [[_reached(a, storage, failures) for a in trials] for trials in cell.siblings]
    # Experts of a seed that has no ligand at all do not cost the others theirs.
    others = [found for found in beside if any(about["status"] == "ok" for about in found)]
    every = list(zip(table, *others, strict=True))
    finished = [i for i, own in enumerate(every) if all(about["status"] == "ok" for about in own)]
    if not finished:
        first = next(about["status"] for about in every[0] if about["status"] != "ok")
        failures[cell.artifact.fingerprint] = f"no trial of its search succeeded; the first: {first}"
        return
    scores = {
        i: tuple(fmean(about[name] for about in every[i]) for name in ("val_merging", "val_ensembling"))
        for i in finished
    }
    best = max(finished, key=lambda i: (*scores[i], -i))
    data = storage.load(rows[best], LIGAND_FILE)
    chosen = {"chosen": table[best]["fingerprint"], "trials": table}
    storage.commit(
        cell.artifact,
        {LIGAND_FILE: data, SEARCH_FILE: json.dumps(chosen, indent=1).encode()},
        {**table[best]},
    )


def _reached(trial: Artifact, storage: Storage, failures: Failures) -> dict[str, Any]:
    if trial.fingerprint in failures or not storage.exists(trial):
        reason = failures.get(trial.fingerprint, "it was not made")
        return {"status": f"failed: {reason}", "fingerprint": trial.fingerprint}
    return {**storage.manifest(trial)["info"], "fingerprint": trial.fingerprint}
