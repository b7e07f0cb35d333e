"""How a ligand is trained beyond its setting: what the linear map sees, and how its weights come to rest."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from neulig_ray.errors import InputError, unknown

LigandInput = Literal["raw", "standardised", "normalised"]
Rate = Literal["constant", "cosine"]


@dataclass(frozen=True, kw_only=True)
class LigandRecipe:
    """What the paper does in one way, and may be done in others.

    `input`: embeddings as they are; or with mean 0 and standard deviation 1 over the train images of the
    combination's tasks, feature by feature; or each expert's embedding at length 1. `rate`: the learning
    rate stays, or falls to 0 as half a cosine. `average`: the share of the last rounds over which the
    weights are averaged, 0 for the last weights alone.
    """

    input: LigandInput = "raw"
    rate: Rate = "constant"
    average: float = 0.0

    def check(self) -> None:
        """Raises InputError for a value that there is not, by the name of the experiment's field."""
        for name, value, known in (
            ("input", self.input, get_args(LigandInput)),
            ("rate", self.rate, get_args(Rate)),
        ):
            if value not in known:
                raise unknown(f"ligand.{name}", str(value), known)
        if not 0 <= self.average <= 1:
            raise InputError(f"ligand.average {self.average!r} must lie in 0..1: a share of the last rounds")

    def identity(self) -> dict[str, Any]:
        """What a ligand is told apart by: every field that is not the paper's.

        Fingerprints from before there were others stay valid.
        """
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value != getattr(PAPER, name)}


PAPER = LigandRecipe(input="raw", rate="constant", average=0.0)
DEFAULT = PAPER
