"""Trained methods: a loop of their own on images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from neulig_ray.merging.declare.method import Decorator, Kind, declare
from neulig_ray.merging.declare.on_images import OnImagesMethod


@dataclass(frozen=True)
class TrainedMethod(OnImagesMethod):
    """One static model, as a rule."""

    kind: ClassVar[Kind] = "trained"


def trained(
    name: str,
    *,
    paper: str,
    version: int = 1,
    needs: Sequence[str],
    split: str = "val",
    symmetric: bool = True,
) -> Decorator[TrainedMethod]:
    """Declare a method that looks at images while it merges: a function of `MergeInputs` and its options.

    It returns the merged state, name -> tensor, or `MergedModels` where one state does not serve all tasks.
    `split`: whose images the inputs hold; a method with an option `adapt_on` has them from the split that the
    option names.
    """
    return declare(TrainedMethod, **locals())
