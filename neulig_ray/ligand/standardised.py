"""Portland on standardised views: a gate in training, which ends as one on views as they are."""

from collections.abc import Mapping

import torch

from neulig_ray.ligand.data import Combination, LigandData, task_of
from neulig_ray.ligand.gate import GateSpec
from neulig_ray.ligand.portland import HIDDEN, LINEAR, Portland

CHUNK = 8192  # images at a time, as float64
CONSTANT = 1e-3  # of its root mean square: a feature that deviates by less is left out


class StandardisedPortland(Portland):
    """beta(x) = softmax(A s (v - m) + b), with m and s fixed: the same functions as Portland's, other steps.

    `mean`, `scale`: float32 (members, 1, inputs). Embeddings as they are have a mean many times their
    deviation, and a norm that differs from expert to expert; steps of one size for all weights, as Adam's
    are, then leave the gate's logits at the mercy of rounding.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, start: Portland, data: LigandData) -> None:
        """`start`: the initial weights, which are for standardised views; `data`: the train split."""
        own = start.state()
        hidden = (own.get(name) for name in HIDDEN)
        super().__init__(start.combinations, own["weight"], own["bias"], *hidden, **start.about)
        moments = {c: standardisation(start.gate, c, data) for c in set(start.combinations)}
        self.register_buffer("mean", torch.stack([moments[c][0] for c in start.combinations]).unsqueeze(1))
        self.register_buffer("scale", torch.stack([moments[c][1] for c in start.combinations]).unsqueeze(1))

    def logits(self, view: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        return super().logits((view - self.mean) * self.scale, keep)

    def finished(self, state: Mapping[str, torch.Tensor]) -> Portland:
        """The same function of views as they are: mean and scale folded into the first layer."""
        weight_name, bias_name = HIDDEN if self.gate.hidden else LINEAR
        weight = state[weight_name].double() * self.scale
        bias = state[bias_name].double() - (weight * self.mean).sum(-1)
        folded = {**state, weight_name: weight.float(), bias_name: bias.float()}
        return Portland.from_state(self.combinations, folded, **self.about)


def standardisation(
    gate: GateSpec, combination: Combination, data: LigandData
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / standard deviation, float32 (inputs,), of what the gate sees.

    Over the images of the combination's tasks, of which each counts the same. The scale is 0 for a feature
    that is constant, or nearly so: it tells the gate nothing, and folded its weight would be all rounding.
    """
    tasks = [task_of(collaborator) for collaborator in combination]
    found = [[_moments(view) for view in gate.views(combination, data, task)] for task in tasks]
    mean, square = (
        torch.stack([torch.cat([moment[which] for moment in own]) for own in found]).mean(0)
        for which in (0, 1)
    )
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    scale = torch.where(deviation > CONSTANT * square.sqrt(), 1 / deviation, 0.0)
    return mean.float(), scale.float()


def _moments(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E[z] and E[z^2] of every feature, float64 (d,)."""
    total, squares = torch.zeros(2, z.shape[1], dtype=torch.float64)
    for at in range(0, len(z), CHUNK):
        part = z[at : at + CHUNK].double()
        total += part.sum(0)
        squares += part.square().sum(0)
    return total / len(z), squares / len(z)
