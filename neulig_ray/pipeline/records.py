"""What the tracker is told of a run beside the results table, read from the storage."""

from typing import Any

import pandas as pd

from neulig_ray.cluster.run_context import Failures
from neulig_ray.experiment.combinations import Group, origin_of
from neulig_ray.pipeline.plan import Plan
from neulig_ray.results.schema import failed
from neulig_ray.stages.ligand_options import Ligands
from neulig_ray.stages.ligands import SEARCH_FILE, Cell
from neulig_ray.stages.search import LIGAND_FILE
from neulig_ray.storage.artifact import fingerprint
from neulig_ray.storage.storage import Storage
from neulig_ray.tracking import records


def expert_curves(
    plan: Plan, storage: Storage, failures: Failures, results: pd.DataFrame
) -> list[records.ExpertCurve]:
    """Every expert's epochs, its accuracy on test, or why it failed."""
    rows = results[results["method"] == "expert"]
    places = zip(rows["arch"], rows["origin"], rows["task"], rows["expert_seed"], strict=True)
    accuracy = dict(zip(places, rows["merging_accuracy"].tolist(), strict=True))
    found = []
    for expert in plan.imported:
        found.append(
            records.ExpertCurve(
                arch=expert.arch,
                origin=expert.origin,
                task=expert.task,
                seed=plan.experiment.drawn_by,
                fingerprint=expert.artifact.fingerprint,
                epochs=[],
                test_accuracy=accuracy.get((expert.arch, expert.origin, expert.task, 0)),
            )
        )
    for job in plan.experts:
        reason = failures.get(job.artifact.fingerprint)
        curve = storage.manifest(job.artifact)["info"]["curve"] if storage.exists(job.artifact) else []
        found.append(
            records.ExpertCurve(
                arch=job.arch,
                origin=origin_of(job.key),
                task=job.task,
                seed=job.seed,
                fingerprint=job.artifact.fingerprint,
                epochs=curve,
                test_accuracy=accuracy.get((job.arch, origin_of(job.key), job.task, job.seed)),
                status=failed(reason) if reason else records.OK,
            )
        )
    return found


def trials(plan: Plan, storage: Storage) -> list[records.TrialRecord]:
    """Every trial of every finished search."""
    found = []
    several = len(plan.models) > 1
    for cell in plan.cells:
        search = _search(cell, storage)
        for about in search.get("trials", ()):
            found.append(
                records.TrialRecord(
                    **_place(cell.group),
                    seed=plan.experiment.drawn_by,
                    expert_seed=cell.expert_seed if several else None,
                    alignment=cell.objective,
                    learning_rate=about["learning_rate"],
                    alignment_weight=about["alignment_weight"],
                    val_merging=about.get("val_merging"),
                    val_ensembling=about.get("val_ensembling"),
                    seconds=about.get("seconds", 0.0),
                    status=about["status"],
                    fingerprint=about["fingerprint"],
                    selected=about["fingerprint"] == search["chosen"],
                )
            )
    return found


def cells(plan: Plan, storage: Storage) -> list[records.CellRecord]:
    """Every (arch, origin, n) with the ligands that were selected for it."""
    found = []
    for group in plan.groups:
        own = [cell for cell in plan.cells if cell.group == group]
        every: list[Ligands] = [*own, *(job for job in plan.variants if job.group == group)]
        prefix = f"{group.arch}.{group.origin}.n{group.n}."
        several = len(plan.models) > 1
        files = {
            f"{ligands.artifact.label.removeprefix(prefix)}"
            f"{f'.seed{ligands.expert_seed}' if several else ''}.safetensors": storage.load(
                ligands.artifact, LIGAND_FILE
            )
            for ligands in every
            if storage.exists(ligands.artifact)
        }
        of: Any = [cell.artifact.fingerprint for cell in own] or group.combinations
        seed = plan.experiment.drawn_by
        found.append(
            records.CellRecord(**_place(group), seed=seed, fingerprint=fingerprint(of), ligand_files=files)
        )
    return found


def _search(cell: Cell, storage: Storage) -> dict[str, Any]:
    if not storage.exists(cell.artifact):
        return {}
    loaded: dict[str, Any] = storage.load_json(cell.artifact, SEARCH_FILE)
    return loaded


def _place(group: Group) -> dict[str, Any]:
    return {"arch": group.arch, "origin": group.origin.replace("+", ","), "n": group.n}
