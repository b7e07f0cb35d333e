"""What an experiment's methods and archs declare about themselves: the paper's Table 1, for results.json."""

import functools
from typing import Any, Final

from torch import nn

from neulig_ray.experiment.config import Experiment
from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.merging import Method
from neulig_ray.merging.declare.method import PredictingMethod
from neulig_ray.merging.declare.routed import RoutedMethod, defined_everywhere
from neulig_ray.models.archs import ARCHS, Arch
from neulig_ray.models.clip import skeleton

_EXAMPLES: Final = {"ViT": "tiny-vit", "CNN": "tiny-rn"}


def declared(experiment: Experiment) -> dict[str, Any]:
    """`archs`: name -> ViT or CNN; `methods`: those that merge -> paper, and what each is defined for.

    A method serves the towers that it does not call unsupported, and experts of diverse origins unless it
    needs one base; `theory` is its own sentence.
    """
    methods = {spec.name: spec.method for spec in map(MethodSpec.parse, experiment.methods)}
    return {
        "archs": {name: tower_kind(ARCHS[name]) for name in experiment.archs},
        "methods": {
            name: _describe(method)
            for name, method in methods.items()
            if not isinstance(method, PredictingMethod)
        },
    }


def tower_kind(arch: Arch) -> str:
    """A ModifiedResNet, and only that, lists the blocks of its stages."""
    return "CNN" if isinstance(arch.config["vision_cfg"].get("layers"), list | tuple) else "ViT"


@functools.cache
def _tower(kind: str) -> nn.Module:
    tower: nn.Module = skeleton(ARCHS[_EXAMPLES[kind]]).visual
    return tower


def _serves(method: Method, kind: str) -> bool:
    """Asked of a tower only where a method refuses some: building one imports open_clip."""
    refuses = isinstance(method, RoutedMethod) and method.refuses is not defined_everywhere
    return not refuses or method.unsupported_reason(_tower(kind)) is None


def _describe(method: Method) -> dict[str, Any]:
    return {
        "paper": method.paper,
        **{kind: _serves(method, kind) for kind in _EXAMPLES},
        "diverse origins": not method.needs_base,
        "ensembling": method.has_ensemble_equivalent,
        "theory": method.theory,
    }
