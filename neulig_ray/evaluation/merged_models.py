"""What a method makes of a combination: the model that serves each task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from neulig_ray.evaluation.images import mixed_batches
from neulig_ray.ligand.data import Combination, task_of
from neulig_ray.merging._base import Method
from neulig_ray.merging.adaptation_inputs import Workbench
from neulig_ray.merging.batchnorm import re_estimate
from neulig_ray.merging.engine import merge_masks, merge_with
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.models.archs import Arch
from neulig_ray.weights.sources import Source, State


@dataclass(frozen=True)
class Ingredients:
    """What a method may take besides the experts and its options.

    `base`, `origin`: the origin's state, and the key of its stored embeddings. `statistics`: of each expert,
    for measured methods. `workbench()`: for methods that look at images; built when it is needed.
    `unlabelled`: task -> images uint8 (N, H, W, 3) that re-estimate BatchNorm statistics.
    """

    base: State | None = None
    origin: str | None = None
    statistics: Sequence[Source] = ()
    workbench: Callable[[], Workbench] | None = None
    unlabelled: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Served:
    """`models`: task -> a state of the tower, or a module of its own. `numbers`: all parameters kept.

    `granularity` as in results: `global` for one static model, `task` where the model depends on the task,
    `sample` for modules that route each image, `batch-mean` for those that route a batch.
    """

    models: Mapping[str, State | nn.Module]
    granularity: str
    numbers: int

    @property
    def static(self) -> bool:
        return self.granularity in ("global", "task")


def serve(
    method: Method,
    combination: Combination,
    stack: ExpertStack,
    tower: nn.Module,
    ingredients: Ingredients,
    options: Mapping[str, Any],
) -> Served:
    """Run the method. Raises InputError as the method does, for a missing base or images among others."""
    tasks = [task_of(key) for key in combination]
    states = {key: stack.state(key) for key in combination}
    size = sum(p.numel() for p in tower.parameters())
    if method.masked:
        assert ingredients.base is not None, "plans give masked methods a base"
        masked = merge_masks(method, states, ingredients.base, options)
        models = {task: masked.dense(key) for task, key in zip(tasks, combination, strict=True)}
        return Served(models, "task", masked.numbers)
    if method.streams:
        base = ingredients.base if "base" in method.accepts else None
        state = merge_with(method, states, base, options, statistics=ingredients.statistics)
        return Served(dict.fromkeys(tasks, state), "global", size)
    assert ingredients.workbench is not None, "plans give methods that look at images a workbench"
    found = method.call(method.function, ingredients.workbench(), options=method.resolve(options))
    if isinstance(found, nn.Module):
        kept = sum(t.numel() for t in (*found.parameters(), *found.buffers()))
        return Served(dict.fromkeys(tasks, found), getattr(found, "granularity", "sample"), kept)
    return Served(dict.fromkeys(tasks, found), "global", size)


def with_new_statistics(
    served: Served,
    tower: nn.Module,
    arch: Arch,
    unlabelled: Mapping[str, np.ndarray],
    batch_size: int,
    seed: int,
) -> Served:
    """The same models with BatchNorm statistics measured on the images that each of them serves."""

    def anew(state: Any, tasks: Sequence[str]) -> State:
        images = {task: unlabelled[task] for task in tasks}
        device = next(tower.parameters()).device
        return re_estimate(tower, state, mixed_batches(images, arch, batch_size, seed, device))

    if served.granularity == "task":
        return replace(served, models={task: anew(state, [task]) for task, state in served.models.items()})
    state = anew(next(iter(served.models.values())), list(served.models))
    return replace(served, models=dict.fromkeys(served.models, state))


def counterpart(
    lambdas: torch.Tensor, stacked: torch.Tensor, origin: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """z_0 + sum_i lambda_i (z_i - z_0), (N, d), of embeddings (n, N, d).

    `origin()` gives z_0 (N, d); it is not asked where the lambdas sum to 1 and z_0 cancels.
    """
    combined = torch.einsum("i,ind->nd", lambdas, stacked)
    rest = 1 - float(lambdas.double().sum())
    return combined if abs(rest) < 1e-6 else combined + rest * origin()
