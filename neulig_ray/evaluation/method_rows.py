"""Results rows of every method that makes models of a combination: each measured on its task."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from neulig_ray.errors import InputError
from neulig_ray.evaluation.context import EvaluationContext
from neulig_ray.evaluation.correct_images import with_correct_images
from neulig_ray.evaluation.granularity import RULES
from neulig_ray.evaluation.method_models import ChosenModels, MethodModels, Tuning, make_models
from neulig_ray.evaluation.metrics import accuracy, compare
from neulig_ray.evaluation.rows import Row, new_row
from neulig_ray.ligand.data import combination_key
from neulig_ray.merging.declare.method import MergingMethod
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.prediction import equivalent_embedding
from neulig_ray.models.logits import head_logits


class MethodRows(NamedTuple):
    """Rows, and what was chosen: one entry for each rule for buffers and, where they differ, each task."""

    rows: list[Row]
    selected: list[dict[str, Any]]


def evaluate_merge(
    method: MergingMethod,
    inputs: MergeInputs,
    context: EvaluationContext,
    *,
    options: Mapping[str, Any] | None = None,
    origin: str | None = None,
    unlabelled: Mapping[str, np.ndarray] | None = None,
    tuning: Tuning | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> MethodRows:
    """`make_models` of `inputs`, and their `method_rows` on `context`, in one."""
    made = make_models(
        method,
        inputs,
        context.arch,
        options=options,
        unlabelled=unlabelled,
        tuning=tuning,
        batch_size=batch_size,
        seed=seed,
    )
    rows = method_rows(method, made, context, options=options, origin=origin, batch_size=batch_size)
    return MethodRows(rows, made.selected)


def method_rows(
    method: MergingMethod,
    made: MethodModels,
    context: EvaluationContext,
    *,
    options: Mapping[str, Any] | None = None,
    origin: str | None = None,
    batch_size: int = 128,
) -> list[Row]:
    """Rows of what a method made of the context's combination: for each rule for buffers one a task.

    `options` are those that were given, over which the chosen ones go. Ensembling is the equivalent
    z_0 + sum_i lambda_i (z_i - z_0) of methods that have one; `origin` is the key of the stored embeddings
    z_0. Raises TrainingDiverged for a model whose logits are NaN.
    """
    return [
        _row(method, chosen, context, dict(options or {}), origin, batch_size, buffers, task)
        for buffers, by_task in made.by_buffers.items()
        for task, chosen in by_task.items()
    ]


def _row(
    method: MergingMethod,
    chosen: ChosenModels,
    context: EvaluationContext,
    options: Mapping[str, Any],
    origin: str | None,
    batch_size: int,
    buffers: str,
    task: str,
) -> Row:
    merged = chosen.models
    every = torch.arange(len(context.images[task]))
    labels = context.labels(task, every)
    what = f"{method.name} of {combination_key(context.combination)} on {task}"
    logits = context.logits(merged.by_task[task], task, every, batch_size)
    coefficients = method.equivalent_coefficients(len(context.combination), {**options, **chosen.setting})

    def of_origin() -> torch.Tensor:
        if origin is None:
            raise InputError(
                f"the ensembling accuracy of {method.name} needs the origin's embeddings: give `origin`"
            )
        return context.data.embedding(origin, task)

    ensembled = None
    if coefficients is None:
        values: Mapping[str, Any] = {"merging_accuracy": accuracy(logits, labels, what)}
    else:
        stacked = context.data.stacked(context.combination, task)
        embeddings = equivalent_embedding(coefficients, stacked, of_origin)
        ensembled = head_logits(embeddings, context.head(task))
        values = compare(logits, ensembled, labels, what)
    batch = {"batch_size": batch_size} if "batch_size" in RULES[merged.granularity].settings else {}
    row = new_row(task, merged.granularity, buffers=buffers, num_samples=len(labels), **batch, **values)
    row = with_correct_images(row, every, labels, merging=logits, ensembling=ensembled)
    return {**row, "parameters": merged.parameters}
