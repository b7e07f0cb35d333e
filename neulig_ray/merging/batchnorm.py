"""BatchNorm statistics of merged models, measured anew on unlabelled images."""

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from neulig_ray.errors import InputError
from neulig_ray.weights.sources import State


def _batchnorms(tower: nn.Module) -> list[_BatchNorm]:
    return [m for m in tower.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def has_batchnorm(tower: nn.Module) -> bool:
    """Whether the tower keeps running statistics, which merging has to decide about."""
    return bool(_batchnorms(tower))


def re_estimate(tower: nn.Module, state: State, batches: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` with BatchNorm statistics measured on `batches` of images (B, 3, S, S); parameters unchanged.

    Each statistic is the plain mean over the batches (cumulative average, momentum None), so batches of
    nearly one size, each a mixture of all tasks, serve best: the variance between the tasks is part of what
    is measured. `tower` gives the architecture and the device, and stays as it is. Raises InputError where
    there is no BatchNorm or no image.
    """
    model = copy.deepcopy(tower).eval()
    model.load_state_dict(dict(state))
    model.requires_grad_(False)
    layers = _batchnorms(model)
    if not layers:
        raise InputError("this tower has no BatchNorm statistics to re-estimate")
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    parameter = next(model.parameters())
    seen = 0
    with torch.no_grad():
        for images in batches:
            model(images.to(parameter))
            seen += len(images)
    if not seen:
        raise InputError("no image to re-estimate the BatchNorm statistics on")
    return model.state_dict()
