"""What merging costs beside reading memory: passes of merged models, and their training."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from neulig_ray.cluster.cost import TRAINING_PASSES, Cost, Sizes
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import skeleton
from neulig_ray.models.work import forward_flops


def making(
    sizes: Sizes,
    spec: MethodSpec,
    models: ArchModels,
    tasks: Sequence[str],
    settings: Mapping[str, Any],
    *,
    mixed: bool,
) -> Cost:
    """Passes over val for what is chosen, of training, and of new BatchNorm statistics.

    `settings`: `val_images` and `batchnorm_images` of the evaluation; `mixed`: the experts' origins differ.
    Where the tower has BatchNorm, what is chosen is chosen for each of two rules.
    """
    if not defined(spec, models.arch, mixed=mixed):
        return Cost()
    flops, rules = forward_flops(models.arch), buffers_rules(models.arch)
    tries = math.prod(map(len, spec.grid.values())) if spec.grid else 0
    total = Cost()
    for task in tasks if tries else ():
        total += sizes.passes(models.data[task], "val", rules * tries * flops, settings["val_images"])
    passes = (rules - 1) * (tries + 1) * len(tasks) * settings["batchnorm_images"]
    options = spec.method.resolve(dict(spec.options))
    if {"steps", "batch_size"} <= options.keys():
        passes += TRAINING_PASSES * options["steps"] * options["batch_size"] * len(tasks)
    return total + Cost(passes * flops)


def measuring(
    sizes: Sizes, spec: MethodSpec, models: ArchModels, tasks: Sequence[str], *, mixed: bool
) -> Cost:
    """Passes over the test split, for each rule for BatchNorm's buffers."""
    if not defined(spec, models.arch, mixed=mixed):
        return Cost()
    each = buffers_rules(models.arch) * forward_flops(models.arch)
    return sum((sizes.passes(models.data[task], "test", each) for task in tasks), Cost())


def defined(spec: MethodSpec, arch: str, *, mixed: bool) -> bool:
    """Whether a method merges experts of this architecture. `mixed`: their origins differ."""
    return spec.method.unsupported_reason(_skeleton(arch)) is None and not (spec.method.needs_base and mixed)


def buffers_rules(arch: str) -> int:
    """How many rules for BatchNorm's buffers the merged models of an architecture are made by."""
    return 2 if any(name.endswith("running_mean") for name in _skeleton(arch).state_dict()) else 1


@functools.lru_cache(maxsize=8)
def _skeleton(arch: str) -> nn.Module:
    """A tower without its numbers."""
    tower: nn.Module = skeleton(ARCHS[arch]).visual
    return tower
