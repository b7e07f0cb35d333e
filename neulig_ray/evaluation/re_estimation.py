"""Merged models with BatchNorm statistics that are measured again, on the images that each of them serves."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from neulig_ray.errors import InputError
from neulig_ray.evaluation.images import mixed_batches
from neulig_ray.merging.batchnorm import re_estimate
from neulig_ray.merging.merged_models import MergedModels
from neulig_ray.models.archs import Arch
from neulig_ray.weights.sources import State


def with_new_statistics(
    merged: MergedModels,
    tower: nn.Module,
    arch: Arch,
    unlabelled: Mapping[str, np.ndarray],
    batch_size: int,
    seed: int,
) -> MergedModels:
    """The same states, those that several tasks share on the images of all of these.

    `unlabelled`: task -> images uint8 (N, H, W, 3). Raises InputError for modules.
    """
    device = next(tower.parameters()).device
    tasks_of: dict[int, list[str]] = {}
    for task, state in merged.by_task.items():
        tasks_of.setdefault(id(state), []).append(task)
    found: dict[str, State] = {}
    for tasks in tasks_of.values():
        state = merged.by_task[tasks[0]]
        if isinstance(state, nn.Module):
            raise InputError("BatchNorm statistics are re-estimated of states of a tower, and not of modules")
        images = {task: unlabelled[task] for task in tasks}
        again = re_estimate(tower, state, mixed_batches(images, arch, batch_size, seed, device))
        found |= dict.fromkeys(tasks, again)
    return replace(merged, by_task={task: found[task] for task in merged.by_task})
