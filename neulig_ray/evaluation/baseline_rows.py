"""Results rows of single models and of uniform ensembles, from stored embeddings."""

from collections.abc import Mapping
from typing import Any

import torch

from neulig_ray.errors import InputError
from neulig_ray.evaluation.metrics import accuracy
from neulig_ray.evaluation.rows import Row, new_row
from neulig_ray.ligand.data import Combination, LigandData, combination_key, task_of
from neulig_ray.merging._base import Method
from neulig_ray.merging.methods.references import expert, zeroshot


def evaluate_expert(collaborator: str, test: LigandData) -> Row:
    """The row of an expert on its own task, from its stored embeddings."""
    task = task_of(collaborator)
    logits = expert.function(test.embedding(collaborator, task), test.head(collaborator))
    return _single(task, logits, test, f"expert {collaborator}")


def evaluate_zeroshot(origin: str, collaborator: str, test: LigandData) -> Row:
    """The row of an origin on the collaborator's task, under the same head.

    `origin` is the key under which the origin's embeddings are stored.
    """
    task = task_of(collaborator)
    logits = zeroshot.function(test.embedding(origin, task), test.head(collaborator))
    return _single(task, logits, test, f"origin {origin}")


def _single(task: str, logits: torch.Tensor, test: LigandData, what: str) -> Row:
    labels = test.label(task)
    reached = accuracy(logits, labels, f"{what} on {task}")
    return new_row(task, "global", num_samples=len(labels), merging_accuracy=reached)


def evaluate_ensemble(
    method: Method, combination: Combination, test: LigandData, options: Mapping[str, Any] | None = None
) -> list[Row]:
    """Rows of an ensemble of stored embeddings, one for each task of the combination."""
    if method.kind != "ensemble":
        raise InputError(f"{method.name} is not an ensemble: its kind is {method.kind}")
    test.check(combination)
    resolved, rows = method.resolve(options or {}), []
    for own in combination:
        task, labels = task_of(own), test.label(task_of(own))
        scores = method.function(test.stacked(combination, task), test.head(own), **resolved)
        what = f"{method.name} of {combination_key(combination)} on {task}"
        reached = accuracy(scores, labels, what)
        rows.append(new_row(task, "global", num_samples=len(labels), ensembling_accuracy=reached))
    return rows
