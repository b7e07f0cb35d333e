"""What a ligand's gate looks at, and its shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from neulig_ray.errors import InputError, unknown
from neulig_ray.ligand.data import Combination, LigandData

Sees = Literal["experts", "origin", "origin-blocks"]


@dataclass(frozen=True, kw_only=True)
class GateSpec:
    """`sees`: each expert's embedding of an image, n passes (the paper's); or that of the origin, one pass,
    or the class token and token mean of each of the origin's blocks beside it. Experts of different origins
    have no common one: the gate then sees each origin once. `hidden`: units of a hidden layer, 0 for none.
    """

    sees: Sees = "experts"
    hidden: int = 0

    def check(self) -> None:
        """Raises InputError for a value that there is not, by the name of the method's option."""
        if self.sees not in get_args(Sees):
            raise unknown("gate", str(self.sees), get_args(Sees))
        if self.hidden < 0:
            raise InputError(f"hidden {self.hidden} units: use 0 for a linear gate, or a number such as 128")

    def sources(self, combination: Combination) -> tuple[str, ...]:
        """Whose view of an image it gets, in the order of the concatenation: collaborators, or origins."""
        if self.sees == "experts":
            return combination
        return tuple(dict.fromkeys(key.rpartition("@")[2] for key in combination))

    def views(self, combination: Combination, data: LigandData, task: str) -> list[torch.Tensor]:
        """What the sources see of the images of `task`: float32 (N, width) each, to be concatenated."""
        view = data.feature if self.sees == "origin-blocks" else data.embedding
        return [view(source, task) for source in self.sources(combination)]

    @property
    def identity(self) -> dict[str, Any]:
        """What is not the paper's."""
        return {
            **({"gate": self.sees} if self.sees != "experts" else {}),
            **({"hidden": self.hidden} if self.hidden else {}),
        }


EXPERTS = GateSpec()


def width(views: Sequence[torch.Tensor]) -> int:
    """Numbers of an image that a gate gets from these views."""
    return sum(view.shape[1] for view in views)
