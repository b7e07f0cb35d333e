"""Results rows of everything that is not a ligand: single models, static merges, uniform ensembles."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from neulig_ray.errors import InputError
from neulig_ray.evaluation.bench import Bench
from neulig_ray.evaluation.metrics import accuracy, compare
from neulig_ray.evaluation.rows import Row, new_row
from neulig_ray.ligand.data import Combination, LigandData, combination_key, task_of
from neulig_ray.merging._base import Method
from neulig_ray.merging.batchnorm import re_estimate
from neulig_ray.merging.engine import merge_with
from neulig_ray.merging.methods.references import expert, zeroshot
from neulig_ray.merging.parameters import ExpertStack, State
from neulig_ray.merging.prediction import head_logits
from neulig_ray.models.archs import Arch
from neulig_ray.models.clip import preprocess
from neulig_ray.seeds import stable_generator


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


def evaluate_streamed(
    method: Method,
    combination: Combination,
    *,
    stack: ExpertStack,
    tower: nn.Module,
    arch: Arch,
    test: LigandData,
    images: Mapping[str, np.ndarray],
    options: Mapping[str, Any] | None = None,
    base: State | None = None,
    origin: str | None = None,
    unlabelled: Mapping[str, np.ndarray] | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> list[Row]:
    """Rows of one static merged model of a combination, one for each of its tasks.

    Ensembling is the prediction-level counterpart z_0 + sum_i lambda_i (z_i - z_0) of methods that have one.
    `base` and `origin`: the origin's state and the key of its stored embeddings, for methods that need them.
    A tower with BatchNorm gives rows with averaged statistics, and where `unlabelled` images (task -> uint8
    (N, H, W, 3), of another split) are given, rows with statistics re-estimated on their mixture.
    """
    bench = Bench(combination, stack, tower, arch, test, images)
    merged = merge_with(method, {key: bench.stack.state(key) for key in combination}, base, options)
    variants = {bench.buffers: merged}
    if bench.buffers and unlabelled is not None:
        pixels = mixed_batches([unlabelled[task] for task in bench.tasks], arch, batch_size, seed)
        variants["re-estimated"] = re_estimate(tower, merged, pixels)
    lambdas = _lambdas(method, len(combination), options)
    rows = []
    for buffers, state in variants.items():
        for task in bench.tasks:
            every = torch.arange(len(images[task]))
            labels = bench.labels(task, every)
            what = f"{method.name} of {combination_key(combination)} on {task}"
            logits = bench.logits(state, task, every)
            if lambdas is None:
                values: Mapping[str, Any] = {"merging_accuracy": accuracy(logits, labels, what)}
            else:
                counterpart = head_logits(_counterpart(lambdas, bench, origin, task), bench.head(task))
                values = compare(logits, counterpart, labels, what)
            rows.append(new_row(task, "global", buffers=buffers, num_samples=len(labels), **values))
    return rows


def _lambdas(method: Method, n: int, options: Mapping[str, Any] | None) -> torch.Tensor | None:
    if method.coefficients is None:
        return None
    return method.coefficients(n, **method.resolve(options or {}))


def _counterpart(lambdas: torch.Tensor, bench: Bench, origin: str | None, task: str) -> torch.Tensor:
    """z_0 + sum_i lambda_i (z_i - z_0), (N, d); without z_0 where the lambdas sum to 1 and it cancels."""
    combined = torch.einsum("i,ind->nd", lambdas, bench.data.stacked(bench.combination, task))
    rest = 1 - float(lambdas.double().sum())
    if abs(rest) < 1e-6:
        return combined
    if origin is None:
        raise InputError(
            "the ensembling accuracy of this method needs the origin's embeddings: give `origin`"
        )
    return combined + rest * bench.data.embedding(origin, task)


def mixed_batches(images: list[np.ndarray], arch: Arch, batch_size: int, seed: int) -> list[torch.Tensor]:
    """Pixels (about batch_size, 3, S, S) of all tasks' images in a seeded order, in batches of even size."""
    pixels = torch.cat([preprocess(part.copy(), arch) for part in images])
    order = torch.from_numpy(stable_generator("unlabelled", seed).permutation(len(pixels)))
    return [pixels[rows] for rows in order.tensor_split(-(-len(order) // batch_size))]
