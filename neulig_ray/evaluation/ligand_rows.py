"""Results rows of trained ligands: merging and ensembling at each granularity, and hard routing."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from neulig_ray.evaluation.context import Bench, choose
from neulig_ray.evaluation.granularity import Betas, Served, serve
from neulig_ray.evaluation.metrics import accuracy, compare
from neulig_ray.evaluation.rows import Row, new_row
from neulig_ray.experiment.config import GRANULARITIES
from neulig_ray.ligand.coopvec import coopvecs, entropy, own_slot, routing_accuracy
from neulig_ray.ligand.data import LigandData, combination_key, task_of
from neulig_ray.ligand.portland import Portland
from neulig_ray.merging.methods.ligand import hard_routing
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.merging.prediction import ensemble_logits
from neulig_ray.models.archs import Arch


def evaluate_ligand(
    portland: Portland,
    member: int,
    *,
    stack: ExpertStack,
    tower: nn.Module,
    arch: Arch,
    val: LigandData,
    test: LigandData,
    images: Mapping[str, np.ndarray],
    granularities: Sequence[str] = GRANULARITIES,
    **settings: Any,
) -> list[Row]:
    """Rows of one member on the test split: granularity x task x order.

    `images`: task -> the test images, uint8 (N, H, W, 3), in the order of `test`; the betas of `task` and
    `global` come from `val`; `settings` are the keywords of `serve`. Ensembling uses every image's own beta
    on the row's images, `matched_ensembling_accuracy` the beta that the row's merged model had. Raises
    TrainingDiverged for a merged model whose logits are NaN.
    """
    combination = portland.combinations[member]
    bench = Bench(combination, stack, tower, arch, test, images)
    betas = Betas(
        {task: coopvecs(portland, member, test, task) for task in bench.tasks},
        {task: coopvecs(portland, member, val, task).mean(0) for task in bench.tasks},
    )
    return [
        _row(bench, betas, granularity, served)
        for granularity in granularities
        for served in serve(granularity, bench, betas, **settings)
    ]


def _row(bench: Bench, betas: Betas, granularity: str, served: Served) -> Row:
    task, rows = served.task, served.rows
    labels = bench.labels(task, rows)
    own_beta = betas.images[task][rows]
    what = f"ligand of {combination_key(bench.combination)} at {granularity} on {task}"
    matched = bench.ensemble(served.beta, task, rows)
    return new_row(
        task,
        granularity,
        buffers=bench.buffers,
        batch_size=served.batch_size,
        order_seed=served.order_seed,
        num_samples=len(rows),
        **compare(served.logits, bench.ensemble(own_beta, task, rows), labels, what),
        matched_ensembling_accuracy=accuracy(matched, labels, what),
        entropy=entropy(own_beta),
        routing_accuracy=routing_accuracy(own_beta, bench.own(task)),
    )


def evaluate_hard_routing(portland: Portland, member: int, test: LigandData) -> list[Row]:
    """Rows of the expert with the largest beta alone, image by image, from stored embeddings."""
    combination = portland.combinations[member]
    rows = []
    for task in map(task_of, combination):
        beta, own = coopvecs(portland, member, test, task), own_slot(combination, task)
        chosen = hard_routing.function(beta)
        logits = ensemble_logits(chosen, test.stacked(combination, task), test.head(combination[own]))
        what = f"hard routing of {combination_key(combination)} on {task}"
        rows.append(
            new_row(
                task,
                "sample",
                num_samples=len(beta),
                merging_accuracy=accuracy(logits, test.label(task), what),
                entropy=entropy(beta),
                routing_accuracy=routing_accuracy(beta, own),
            )
        )
    return rows


def task_accuracies(
    portland: Portland,
    *,
    stack: ExpertStack,
    tower: nn.Module,
    arch: Arch,
    val: LigandData,
    images: Mapping[str, np.ndarray],
    limit: int | None = None,
    seed: int = 0,
    members: Iterable[int] | None = None,
) -> list[dict[str, Any]]:
    """What a search optimises: merging at `task` and ensembling on val, for each combination and task.

    A task's beta is the mean over all its val images; both accuracies are on the same `limit` of them.
    Rows: combination, task, num_samples, merging_accuracy and ensembling_accuracy (percent).
    """
    found = []
    for member in range(len(portland.combinations)) if members is None else members:
        combination = portland.combinations[member]
        bench = Bench(combination, stack, tower, arch, val, images)
        for task in bench.tasks:
            beta = coopvecs(portland, member, val, task)
            rows = choose(len(beta), limit, seed, task)
            labels = bench.labels(task, rows)
            merged = bench.logits(bench.merge(beta.mean(0)), task, rows)
            what = f"ligand of {combination_key(combination)} on {task}"
            found.append(
                {
                    "combination": combination,
                    "task": task,
                    "num_samples": len(rows),
                    "merging_accuracy": accuracy(merged, labels, f"{what}, merged"),
                    "ensembling_accuracy": accuracy(bench.ensemble(beta[rows], task, rows), labels, what),
                }
            )
    return found
