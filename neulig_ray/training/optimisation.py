"""What both trainings share: AdamW with a warm-up and cosine schedule, clipped steps, divergence."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from neulig_ray.errors import TrainingDiverged


def adamw(module: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; gains, biases and scalars are not decayed (as open_clip does)."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def scheduled(step: int, steps: int, peak: float, warmup: float) -> float:
    """The learning rate of step 0..steps-1: linear over the warm-up, then cosine to zero.

    `warmup` below 1 is a fraction of all steps, from 1 on a number of steps; a training of fewer steps than
    that does not reach the peak.
    """
    rising = round(warmup) if warmup >= 1 else max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def take_step(
    optimizer: torch.optim.Optimizer, loss: float, learning_rate: float, gradient_clip: float, where: str
) -> None:
    """One optimiser step on the gradients that are there.

    Raises TrainingDiverged, naming `where`, when loss or gradient is not finite. The gradient's norm is
    checked too: with several workers it is common to all, so that all of them stop at the same step.
    """
    parameters: Iterable[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, gradient_clip)
    if not (math.isfinite(loss) and math.isfinite(norm.item())):
        raise TrainingDiverged(
            f"{where}: loss {loss}, gradient norm {norm.item()}; "
            f"lower the learning rate ({learning_rate:.2g} at this step)"
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()


def to_cpu(value: Any) -> Any:
    """A copy on the CPU of nested dicts and lists with tensors."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: to_cpu(item) for key, item in value.items()}
    if isinstance(value, list):
        return [to_cpu(item) for item in value]
    return value
