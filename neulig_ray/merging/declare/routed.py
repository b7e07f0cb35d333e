"""Routed methods: more than one parameter set at inference."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from neulig_ray.errors import InputError
from neulig_ray.merging.declare.method import Decorator, Kind, declare
from neulig_ray.merging.declare.on_images import OnImagesMethod
from neulig_ray.merging.inputs import MergeInputs

Refuses = Callable[[nn.Module], str | None]


def defined_everywhere(tower: nn.Module) -> None:
    """No architecture is refused."""


@dataclass(frozen=True)
class RoutedMethod(OnImagesMethod):
    """`refuses(tower)` gives `unsupported_reason`. `untrained`: options that leave all its work out."""

    kind: ClassVar[Kind] = "routed"
    planned_granularity: ClassVar[str] = "sample"

    refuses: Refuses = defined_everywhere
    untrained: Mapping[str, Any] | None = None

    def unsupported_reason(self, tower: nn.Module) -> str | None:
        return self.refuses(tower)

    @property
    def rebuilds(self) -> bool:
        return self.untrained is not None

    @property
    def storable(self) -> bool:
        return self.rebuilds

    def rebuild(self, inputs: MergeInputs, options: Mapping[str, Any]) -> nn.Module:
        models = list(self.run(inputs, {**options, **(self.untrained or {})}).by_task.values())
        if not isinstance(models[0], nn.Module) or any(model is not models[0] for model in models):
            raise InputError(f"{self.name} is no longer one module for all tasks: merge anew")
        return models[0]


def routed(
    name: str,
    *,
    paper: str,
    version: int = 1,
    needs: Sequence[str],
    refuses: Refuses = defined_everywhere,
    symmetric: bool = True,
    untrained: Mapping[str, Any] | None = None,
) -> Decorator[RoutedMethod]:
    """Declare a method that keeps more than one parameter set at inference: a function of `MergeInputs`.

    It returns an nn.Module in eval mode, pixels (B, 3, S, S) -> embeddings (B, d), which routes each image
    and whose parameters and buffers are everything that it keeps; or `MergedModels`, where tasks have modules
    of their own or the module serves something else than a sample. `refuses(tower)` gives the reason, a
    sentence, where the method is not defined for the tower's architecture: experiments then leave it out and
    say so. `untrained`: options under which the function makes its one module for all tasks without its work,
    in seconds; the module that an experiment keeps is made so, and given its tensors. Without it the module
    is measured and not kept.
    """
    return declare(RoutedMethod, **locals())
