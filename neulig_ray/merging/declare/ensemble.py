"""Ensembles: what is combined is what the experts say."""

from dataclasses import dataclass
from typing import ClassVar

from neulig_ray.merging.declare.method import Decorator, Kind, PredictingMethod, declare


@dataclass(frozen=True)
class EnsembleMethod(PredictingMethod):
    """`predict` takes the n experts' embeddings (n, N, d)."""

    kind: ClassVar[Kind] = "ensemble"


def ensemble(name: str, *, paper: str, version: int = 1) -> Decorator[EnsembleMethod]:
    """Declare a function that combines predictions.

    It takes the n experts' embeddings (n, N, d) of N images and the task's head (C, d), and its options as
    keyword-only parameters; it returns scores (N, C), of which the largest is the prediction.
    """
    return declare(EnsembleMethod, **locals())
