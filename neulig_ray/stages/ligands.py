"""Stage `ligands`: of every cell the trial that val prefers."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from neulig_ray.cluster.cost import Cost, Sizes
from neulig_ray.cluster.jobs import Resources
from neulig_ray.cluster.run_context import Failures, RunContext
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.combinations import Group
from neulig_ray.experiment.config import Experiment
from neulig_ray.ligand.loss import Objective
from neulig_ray.stages.search import LIGAND_FILE, Trial, plan_trials
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

SEARCH_FILE = "search.json"


@dataclass(frozen=True)
class Cell:
    """The ligands of one (arch, origin, n, sup or semi): the best of its trials."""

    artifact: Artifact
    group: Group
    objective: Objective
    trials: tuple[Trial, ...]

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        return tuple(trial.artifact for trial in self.trials)

    def cost(self, sizes: Sizes) -> Cost:
        return Cost()


def plan_cell(experiment: Experiment, group: Group, objective: Objective, models: ArchModels) -> Cell:
    trials = plan_trials(experiment, group, objective, models)
    return Cell(trials[0].cell, group, objective, trials)


def run(context: RunContext, cells: Sequence[Cell], resources: Resources) -> None:
    """Select, in the driver, adding to the failures the cells none of whose trials succeeded."""
    for cell in cells:
        select(cell, context.storage, context.failures)


def select(cell: Cell, storage: Storage, failures: Failures) -> None:
    """Commit the cell's best trial: highest val merging accuracy at `task`, ties to the higher ensembling."""
    if storage.exists(cell.artifact):
        return
    table = []
    for trial in cell.trials:
        if (fp := trial.artifact.fingerprint) in failures:
            about = {
                **dataclasses.asdict(trial.setting),
                "status": f"failed: {failures[fp]}",
                "fingerprint": fp,
            }
        else:
            about = {**storage.manifest(trial.artifact)["info"], "fingerprint": fp}
        table.append(about)
    finished = [i for i, about in enumerate(table) if about["status"] == "ok"]
    if not finished:
        failures[cell.artifact.fingerprint] = (
            f"no trial of its search succeeded; the first: {table[0]['status']}"
        )
        return
    best = max(finished, key=lambda i: (table[i]["val_merging"], table[i]["val_ensembling"], -i))
    data = storage.load(cell.trials[best].artifact, LIGAND_FILE)
    chosen = {"chosen": table[best]["fingerprint"], "trials": table}
    storage.commit(
        cell.artifact,
        {LIGAND_FILE: data, SEARCH_FILE: json.dumps(chosen, indent=1).encode()},
        {**table[best]},
    )
