"""Portland on standardised embeddings: a gate in training, which ends as one on embeddings as they are."""

from collections.abc import Mapping

import torch

from neulig_ray.ligand.data import Combination, LigandData, task_of
from neulig_ray.ligand.portland import Portland

CHUNK = 8192  # images at a time, as float64
CONSTANT = 1e-3  # of its root mean square: a feature that deviates by less is left out


class StandardisedPortland(Portland):
    """beta(x) = softmax(A s (z - m) + b), with m and s fixed: the same functions as Portland's, other steps.

    `mean`, `scale`: float32 (members, 1, n d). Embeddings as they are have a mean many times their
    deviation, and a norm that differs from expert to expert; steps of one size for all weights, as Adam's
    are, then leave the gate's logits at the mercy of rounding.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, start: Portland, data: LigandData) -> None:
        """`start`: the initial weights, which are for standardised embeddings; `data`: the train split."""
        super().__init__(start.combinations, start.weight.detach(), start.bias.detach())
        moments = [standardisation(combination, data) for combination in start.combinations]
        self.register_buffer("mean", torch.stack([mean for mean, _ in moments]).unsqueeze(1))
        self.register_buffer("scale", torch.stack([scale for _, scale in moments]).unsqueeze(1))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return super().forward((z - self.mean) * self.scale)

    def finished(self, state: Mapping[str, torch.Tensor]) -> Portland:
        """The same function of embeddings as they are: mean and scale folded into weight and bias."""
        weight = state["weight"].double() * self.scale
        bias = state["bias"].double() - (weight * self.mean).sum(-1)
        return Portland(self.combinations, weight.float(), bias.float())


def standardisation(combination: Combination, data: LigandData) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / standard deviation, float32 (n d,), of the combination's concatenated embeddings.

    Over the images of its tasks, of which each counts the same. The scale is 0 for a feature that is
    constant, or nearly so: it tells the gate nothing, and folded its weight would be all rounding.
    """
    tasks = [task_of(collaborator) for collaborator in combination]
    means, squares = [], []
    for collaborator in combination:
        found = [_moments(data.embedding(collaborator, task)) for task in tasks]
        means.append(torch.stack([mean for mean, _ in found]).mean(0))
        squares.append(torch.stack([square for _, square in found]).mean(0))
    mean, square = torch.cat(means), torch.cat(squares)
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
