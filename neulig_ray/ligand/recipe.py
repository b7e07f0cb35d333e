"""How a ligand is trained beyond its setting: what the gate sees, its loss, how its weights come to rest."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from neulig_ray.errors import InputError, unknown

Objective = Literal["sup", "semi", "route"]
LigandInput = Literal["raw", "standardised", "normalised"]
Rate = Literal["constant", "cosine"]
Semi = Literal["entropy", "information"]


@dataclass(frozen=True, kw_only=True)
class LigandRecipe:
    """What the paper does in one way, and may be done in others.

    `input`: embeddings as they are; or with mean 0 and standard deviation 1 over the train images of the
    combination's tasks, feature by feature; or each source's at length 1. `rate`: the learning rate stays, or
    falls to 0 as half a cosine. `average`: the share of the last rounds over which the weights are averaged,
    0 for the last weights alone. `semi`: L_b without labels, the entropy of predictions, or minus the mutual
    information of image and class.
    """

    input: LigandInput = "standardised"
    rate: Rate = "constant"
    average: float = 0.25
    semi: Semi = "information"

    def check(self) -> None:
        """Raises InputError for a value that there is not, by the name of the experiment's field."""
        for name, value, known in (
            ("input", self.input, get_args(LigandInput)),
            ("rate", self.rate, get_args(Rate)),
            ("semi", self.semi, get_args(Semi)),
        ):
            if value not in known:
                raise unknown(f"ligand.{name}", str(value), known)
        if not 0 <= self.average <= 1:
            raise InputError(f"ligand.average {self.average!r} must lie in 0..1: a share of the last rounds")

    @property
    def identity(self) -> dict[str, Any]:
        """What a ligand is told apart by."""
        return dataclasses.asdict(self)


PAPER = LigandRecipe(input="raw", rate="constant", average=0.0, semi="entropy")
DEFAULT = LigandRecipe()
"""Of what was measured, what moves least with rounding and seeds and loses nothing (docs/results.md)."""
