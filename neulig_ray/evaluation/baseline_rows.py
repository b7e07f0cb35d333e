"""Results rows of single models and of uniform ensembles, from stored embeddings."""

from collections.abc import Mapping
from typing import Any

import torch

from neulig_ray.evaluation.correct_images import with_correct_images
from neulig_ray.evaluation.metrics import accuracy
from neulig_ray.evaluation.rows import Row, new_row
from neulig_ray.ligand.data import Combination, LigandData, combination_key, task_of
from neulig_ray.merging.declare.ensemble import EnsembleMethod
from neulig_ray.merging.declare.reference import ReferenceMethod


def evaluate_reference(
    method: ReferenceMethod,
    model: str,
    collaborator: str,
    test: LigandData,
    options: Mapping[str, Any] | None = None,
) -> Row:
    """The row of a single model on the collaborator's task, under the collaborator's head.

    `model` is the key under which its embeddings are stored: the collaborator's own, or its origin's.
    """
    task = task_of(collaborator)
    labels = test.label(task)
    scores = method.predict(test.embedding(model, task), test.head(collaborator), options or {})
    reached = accuracy(scores, labels, f"{method.name} {model} on {task}")
    row = new_row(task, "global", num_samples=len(labels), merging_accuracy=reached)
    return with_correct_images(row, torch.arange(len(labels)), labels, merging=scores)


def evaluate_ensemble(
    method: EnsembleMethod,
    combination: Combination,
    test: LigandData,
    options: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Rows of an ensemble of stored embeddings, one for each task of the combination."""
    test.check(combination)
    rows = []
    for own in combination:
        task, labels = task_of(own), test.label(task_of(own))
        scores = method.predict(test.stacked(combination, task), test.head(own), options or {})
        what = f"{method.name} of {combination_key(combination)} on {task}"
        reached = accuracy(scores, labels, what)
        row = new_row(task, "global", num_samples=len(labels), ensembling_accuracy=reached)
        rows.append(with_correct_images(row, torch.arange(len(labels)), labels, ensembling=scores))
    return rows
