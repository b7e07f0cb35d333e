"""Routed methods: more than one parameter set at inference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from neulig_ray.merging.declare.method import Decorator, Kind, declare
from neulig_ray.merging.declare.on_images import OnImagesMethod

Refuses = Callable[[nn.Module], str | None]


def defined_everywhere(tower: nn.Module) -> None:
    """No architecture is refused."""


@dataclass(frozen=True)
class RoutedMethod(OnImagesMethod):
    """`refuses(tower)` gives `unsupported_reason`."""

    kind: ClassVar[Kind] = "routed"
    planned_granularity: ClassVar[str] = "sample"

    refuses: Refuses = defined_everywhere

    def unsupported_reason(self, tower: nn.Module) -> str | None:
        return self.refuses(tower)


def routed(
    name: str,
    *,
    paper: str,
    version: int = 1,
    needs: Sequence[str],
    refuses: Refuses = defined_everywhere,
    symmetric: bool = True,
) -> Decorator[RoutedMethod]:
    """Declare a method that keeps more than one parameter set at inference: a function of `MergeInputs`.

    It returns an nn.Module in eval mode, pixels (B, 3, S, S) -> embeddings (B, d), which routes each image
    and whose parameters and buffers are everything that it keeps; or `MergedModels`, where tasks have modules
    of their own or the module serves something else than a sample. `refuses(tower)` gives the reason, a
    sentence, where the method is not defined for the tower's architecture: experiments then leave it out and
    say so.
    """
    return declare(RoutedMethod, **locals())
