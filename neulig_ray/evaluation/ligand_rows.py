"""Results rows of methods that weigh experts by a trained ligand: merging and ensembling, or choosing."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from neulig_ray.evaluation.context import EvaluationContext, choose
from neulig_ray.evaluation.correct_images import with_correct_images
from neulig_ray.evaluation.granularity import predict
from neulig_ray.evaluation.metrics import accuracy, agreement_unsure, compare
from neulig_ray.evaluation.predictions import Betas, Predictions
from neulig_ray.evaluation.rows import Row, new_row
from neulig_ray.ligand.coopvec import coopvecs, entropy, own_slot, routing_accuracy
from neulig_ray.ligand.data import LigandData, combination_key, task_of
from neulig_ray.ligand.portland import Portland
from neulig_ray.merging.declare.gated import GatedMethod
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.merging.prediction import ensemble_logits
from neulig_ray.models.archs import Arch
from neulig_ray.results.granularities import OWN


def evaluate_gated(
    method: GatedMethod,
    portland: Portland,
    member: int,
    context: EvaluationContext,
    val: LigandData,
    *,
    granularities: Sequence[str] = OWN,
    options: Mapping[str, Any] | None = None,
    made: Mapping[str, torch.Tensor] | None = None,
    **settings: Any,
) -> list[Row]:
    """Rows of one member on the context's split, the test split: granularity x task x order.

    The weights are what the method makes of every image's beta. Those of `task` and `global` come from
    `val`, or, of one granularity, are `made`: task -> the beta (n,) of its model; `settings` are fields of
    `granularity.Settings`. Ensembling uses every image's own weights on the row's images,
    `matched_ensembling_accuracy` the weights that the row's merged model had; `entropy` and
    `routing_accuracy` are the gate's own. Raises TrainingDiverged for a merged model whose logits are NaN,
    and InputError as the method does.
    """
    given = options or {}
    gate = {task: coopvecs(portland, member, context.data, task) for task in context.tasks}
    weights = Betas(
        {task: method.weights(beta, given) for task, beta in gate.items()},
        task_weights(method, portland, member, val, given) if made is None else {},
    )

    def row(granularity: str, found: Predictions) -> Row:
        task, rows = found.task, found.rows
        labels = context.labels(task, rows)
        what = f"{method.name} of {combination_key(context.combination)} at {granularity} on {task}"
        ensembled = context.ensemble(weights.images[task][rows], task, rows)
        matched = context.ensemble(found.beta, task, rows)
        measured = new_row(
            task,
            granularity,
            buffers=context.buffers,
            batch_size=found.batch_size,
            order_seed=found.order_seed,
            num_samples=len(rows),
            **compare(found.logits, ensembled, labels, what),
            agreement_unsure=agreement_unsure(ensembled, found.logits, gate[task][rows]),
            matched_ensembling_accuracy=accuracy(matched, labels, what),
            entropy=entropy(gate[task][rows]),
            routing_accuracy=routing_accuracy(gate[task][rows], context.own(task)),
        )
        return with_correct_images(measured, rows, labels, merging=found.logits, ensembling=ensembled)

    return [
        row(granularity, found)
        for granularity in granularities
        for found in predict(granularity, context, weights, made, **settings)
    ]


def task_weights(
    method: GatedMethod, portland: Portland, member: int, val: LigandData, options: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Task -> the mean (n,), over its val images, of the weights that the method makes of their betas."""
    return {
        task: method.weights(coopvecs(portland, member, val, task), options).mean(0)
        for task in map(task_of, portland.combinations[member])
    }


def evaluate_selection(
    method: GatedMethod,
    portland: Portland,
    member: int,
    test: LigandData,
    options: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Rows of a method that selects: the expert that it chooses for each image, from stored embeddings."""
    combination = portland.combinations[member]
    rows = []
    for task in map(task_of, combination):
        beta, own = coopvecs(portland, member, test, task), own_slot(combination, task)
        chosen = method.weights(beta, options or {})
        logits = ensemble_logits(chosen, test.stacked(combination, task), test.head(combination[own]))
        what = f"{method.name} of {combination_key(combination)} on {task}"
        row = new_row(
            task,
            "sample",
            num_samples=len(beta),
            merging_accuracy=accuracy(logits, test.label(task), what),
            entropy=entropy(beta),
            routing_accuracy=routing_accuracy(beta, own),
        )
        rows.append(with_correct_images(row, torch.arange(len(beta)), test.label(task), merging=logits))
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
        context = EvaluationContext(combination, stack, tower, arch, val, images)
        for task in context.tasks:
            beta = coopvecs(portland, member, val, task)
            rows = choose(len(beta), limit, seed, task)
            labels = context.labels(task, rows)
            merged = context.logits(context.merge(beta.mean(0)), task, rows)
            what = f"ligand of {combination_key(combination)} on {task}"
            found.append(
                {
                    "combination": combination,
                    "task": task,
                    "num_samples": len(rows),
                    "merging_accuracy": accuracy(merged, labels, f"{what}, merged"),
                    "ensembling_accuracy": accuracy(context.ensemble(beta[rows], task, rows), labels, what),
                }
            )
    return found
