"""Gated methods: what is done with a trained ligand's CoopVecs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from neulig_ray.errors import InputError
from neulig_ray.merging.declare.method import Decorator, Kind, Method, check_shape, declare


@dataclass(frozen=True)
class GatedMethod(Method):
    """`selects`: one expert alone answers each image, so that no parameters are merged."""

    kind: ClassVar[Kind] = "ligand"

    needs: tuple[str, ...] = ("train images",)
    symmetric: bool = False
    selects: bool = False

    @property
    def has_ensemble_equivalent(self) -> bool:
        return True

    def weights(self, beta: torch.Tensor, options: Mapping[str, Any]) -> torch.Tensor:
        """What the method makes of beta (N, n): the weights (N, n) of the n experts for each image.

        Raises InputError for wrong options, weights of another shape, and where a method that selects gives
        other weights than 1 for one expert and 0 for the rest.
        """
        resolved = self.resolve(options)
        self.check_counts(resolved, beta.shape[-1])
        found: torch.Tensor = self.call(self.function, beta, options=resolved)
        check_shape(self, found, tuple(beta.shape), "weights (images, experts)")
        if self.selects and not ((found == 1).sum(-1) == 1).logical_and(found.count_nonzero(-1) == 1).all():
            raise InputError(f"{self.name} declares that it selects, but weighs several experts of an image")
        return found


def gated(
    name: str, *, paper: str, version: int = 1, theory: str = "", selects: bool = False
) -> Decorator[GatedMethod]:
    """Declare what is done with a trained ligand's CoopVecs: a function of beta (N, n) that gives (N, n).

    What it gives weighs the experts' parameters (merging, at every granularity of the experiment: the
    function sees the beta of each image, and `task`, `global` and batches take means or first rows of what it
    gave) and their embeddings (ensembling). `selects`: each row is 1 for one expert and 0 for the others;
    such a method is measured as the single model that it chooses for each image, at granularity `sample`.

    It is not symmetric: a gate starts from random numbers for each place among the experts.
    """
    return declare(GatedMethod, **locals())
