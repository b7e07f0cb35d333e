"""Accuracies and comparisons of predictions; none of them accepts NaN."""

import torch

from neulig_ray.errors import TrainingDiverged

UNSURE = 0.9


def predictions(scores: torch.Tensor, what: str = "the model") -> torch.Tensor:
    """The class (N,) of the largest score (N, C); raises TrainingDiverged for NaN.

    argmax(NaN) is class 0, which would be counted as an accuracy.
    """
    if bad := int(scores.isnan().any(-1).sum()):
        raise TrainingDiverged(
            f"{what}: the logits of {bad} of {len(scores)} images are NaN, so it has no accuracy; look for "
            "NaN or negative BatchNorm variances in its parameters"
        )
    return scores.argmax(-1)


def accuracy(scores: torch.Tensor, labels: torch.Tensor, what: str = "the model") -> float:
    """Percentage of images whose largest score (N, C) is their label's (N,)."""
    return 100.0 * float((predictions(scores, what) == labels).double().mean())


def agreement(one: torch.Tensor, other: torch.Tensor) -> float:
    """Percentage of images on which two models with scores (N, C) predict the same class."""
    return 100.0 * float((predictions(one) == predictions(other)).double().mean())


def agreement_unsure(one: torch.Tensor, other: torch.Tensor, beta: torch.Tensor) -> float | None:
    """`agreement` on the images whose largest beta (N, n) is below UNSURE; None where there are none.

    A gate that gives one expert all the weight merges and ensembles that expert alone: there agreement shows
    nothing.
    """
    unsure = beta.max(-1).values < UNSURE
    return agreement(one[unsure], other[unsure]) if unsure.any() else None


def kl(ensemble: torch.Tensor, merged: torch.Tensor) -> float:
    """Mean KL(ensemble || merged) in nats of logits (N, C)."""
    p, q = ensemble.double().log_softmax(-1), merged.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def compare(
    merged: torch.Tensor, ensemble: torch.Tensor, labels: torch.Tensor, what: str
) -> dict[str, float]:
    """The columns of a results row that set merging beside ensembling, from logits (N, C)."""
    merging = accuracy(merged, labels, f"{what}, merged")
    ensembling = accuracy(ensemble, labels, f"{what}, ensembled")
    return {
        "merging_accuracy": merging,
        "ensembling_accuracy": ensembling,
        "gap": ensembling - merging,
        "agreement": agreement(ensemble, merged),
        "kl": kl(ensemble, merged),
    }
