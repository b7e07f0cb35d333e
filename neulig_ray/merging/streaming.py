"""Running a streamed method over whole models."""

from collections.abc import Mapping
from typing import Any, Literal

import torch

from neulig_ray.errors import InputError
from neulig_ray.merging._base import Method
from neulig_ray.merging.parameters import State, check_states, is_batchnorm_statistic


def merge_with(
    method: Method,
    states: Mapping[str, State],
    base: State | None = None,
    options: Mapping[str, Any] | None = None,
    buffers: Literal["average", "base"] = "average",
) -> dict[str, torch.Tensor]:
    """The state that a streamed method merges `states` into, float32.

    BatchNorm statistics are averaged, or the base's; never extrapolated, which gives negative variances.
    Counters are the first model's, or the base's. Raises InputError when the models do not correspond, when
    a base is needed and not given, or for an option that the method does not have.
    """
    if method.kind != "streamed":
        raise InputError(f"{method.name} is not a method that merges parameters: its kind is {method.kind}")
    if base is None and (method.needs_base or buffers == "base"):
        raise InputError(f"{method.name} with buffers {buffers!r} needs the base model: give its origin")
    check_states(states if base is None else {**states, "base": base})
    resolved = method.resolve(options or {})
    first = next(iter(states.values()))
    merged: dict[str, torch.Tensor] = {}
    for name, tensor in first.items():
        if not tensor.is_floating_point():
            merged[name] = (base if base is not None and buffers == "base" else first)[name].clone()
            continue
        tensors = [state[name].to(torch.float32) for state in states.values()]
        if is_batchnorm_statistic(name):
            use_base = base is not None and buffers == "base"
            merged[name] = base[name].float().clone() if base and use_base else torch.stack(tensors).mean(0)
        elif method.needs_base and base is not None:
            merged[name] = method.function(tensors, base=base[name].to(torch.float32), **resolved)
        else:
            merged[name] = method.function(tensors, **resolved)
    return merged
