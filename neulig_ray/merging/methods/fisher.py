"""Fisher merging: each number as its expert's information about it weighs."""

from typing import Annotated, Literal

import torch
from torch import nn

from neulig_ray.merging import About, measured
from neulig_ray.merging.expert_weights import Weights, resolve_weights
from neulig_ray.merging.fisher_information import batch_fisher, exact_fisher
from neulig_ray.merging.inputs import Images, batches
from neulig_ray.merging.models import Models
from neulig_ray.merging.prediction import head_logits
from neulig_ray.merging.regression import Examples

Normalize = Annotated[
    bool, About("whether each expert's information is divided by its L2 norm over the model")
]

_LEAST = 1e-25  # of a sum of information, for its products with parameters to be exact


def measure(
    tower: nn.Module,
    images: Images,
    head: torch.Tensor,
    seed: int = 0,
    *,
    examples: Examples = 256,
    form: Annotated[
        Literal["exact", "batch"], About("exact diagonal, or MergeLM's squared gradients of batches")
    ] = "exact",
    batch_size: Annotated[
        int, About("number of images in a batch, which only the batch form depends on", at_least=1)
    ] = 32,
) -> dict[str, torch.Tensor]:
    """The diagonal Fisher information of an expert over `examples` images of its own task."""
    head = head.to(next(tower.parameters()).device)
    diagonal = exact_fisher if form == "exact" else batch_fisher
    shown = batches(images, batch_size, count=examples, seed=seed)
    return diagonal(tower, shown, lambda embeddings: head_logits(embeddings, head))


def _norms(models: Models, *, normalize: Normalize = True) -> torch.Tensor:
    """The L2 norm (n,) of each expert's information, or ones.

    Zero-dimensional parameters are left out, as a logit scale, whose information outweighs a whole layer's.
    """
    if not normalize:
        return torch.ones(models.n, dtype=torch.float64)
    names = [name for name in models.names if models.specs[name].shape]
    total = torch.zeros(models.n, dtype=torch.float64)
    for _, found in models.map("norms", _squares, elementwise=True, names=names):
        total += found
    return total.sqrt()


def _squares(tensors: torch.Tensor, *, statistics: torch.Tensor | None = None) -> torch.Tensor:
    if statistics is None:
        return torch.zeros(len(tensors), dtype=torch.float64)
    return statistics.double().square().sum(1)


def _check(models: Models, *, weights: Weights) -> None:
    resolve_weights("fisher", weights, models.n, normalize=True)


@measured(
    "fisher",
    paper="arXiv 2111.09832 (NeurIPS 2022)",
    measure=measure,
    elementwise=True,
    survey=_norms,
    precondition=_check,
)
def fisher(
    tensors: torch.Tensor,
    *,
    survey: torch.Tensor,
    statistics: torch.Tensor | None = None,
    weights: Weights = None,
    floor: Annotated[float, About("least information that counts", at_least=0)] = 1e-6,
    floor_on: Annotated[
        Literal["first", "all"], About("whose information has the floor: the first expert's alone, or all")
    ] = "all",
    floor_by: Annotated[
        Literal["maximum", "addition"],
        About("whether less is raised to the floor, or it is added throughout"),
    ] = "maximum",
) -> torch.Tensor:
    """The mean of the experts' numbers, weighted with their diagonal Fisher information.

    theta_j = sum_t a_t F_tj theta_tj / sum_t a_t F_tj with a_t = weight_t / ||F_t||, F the exact expectation
    over the labels of the squared gradient of log p, on unlabelled train images and with the frozen head.
    Numbers about which no expert has any information are averaged; so is what has no F.

    The authors have a target model and donors: `floor_on="first"` prefers the first expert where all know
    little. Experts of equal rank all have the floor. MergeLM and FusionBench: `form="batch"`,
    `floor_by="addition"`.

    Cost: a gradient for each image and label, for 26 labels and the tiny archs 50 to 70 ms of CPU an image.
    """
    if statistics is None:
        return tensors.mean(0)
    rows = slice(1) if floor_on == "first" else slice(None)
    information = statistics.clone()
    information[rows] = (
        information[rows] + floor if floor_by == "addition" else information[rows].clamp(floor)
    )
    known = survey > 0
    shares = resolve_weights("fisher", weights, len(tensors), normalize=True)
    shares = torch.where(known, shares / survey.where(known, 1), 0)
    shares = shares / shares.abs().max()
    weighed = information * shares.float()[:, None]
    total = weighed.sum(0)
    merged = (weighed * tensors).sum(0) / total
    # Squared gradients may be so small, or so large, that float32 does not hold their products.
    lost = ~((total > _LEAST) & total.isfinite() & merged.isfinite())
    if lost.any():
        weighed, wide = information[:, lost].double() * shares[:, None], tensors[:, lost].double()
        total = weighed.sum(0)
        exact = ((weighed * wide).sum(0) / total).float()
        merged[lost] = exact.where(total != 0, tensors.mean(0)[lost])
    return merged
