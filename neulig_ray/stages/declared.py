"""What an experiment's methods and archs declare about themselves: the paper's Table 1, for results.json."""

from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from neulig_ray.config import Experiment
from neulig_ray.merging import Method
from neulig_ray.models.archs import ARCHS, Arch
from neulig_ray.models.clip import skeleton
from neulig_ray.stages.methods import MethodSpec

_EXAMPLES: Final = {"ViT": "tiny-vit", "CNN": "tiny-rn"}


def declared(experiment: Experiment) -> dict[str, Any]:
    """`archs`: name -> ViT or CNN; `methods`: those that merge -> paper, and what each is defined for.

    A method serves ViTs and CNNs unless it refuses their towers, experts of diverse origins unless it needs
    one base; `theory` is its own sentence.
    """
    methods = {spec.name: spec.method for spec in map(MethodSpec.parse, experiment.methods)}
    towers = {kind: skeleton(ARCHS[name]).visual for kind, name in _EXAMPLES.items()}
    return {
        "archs": {name: tower_kind(ARCHS[name]) for name in experiment.archs},
        "methods": {
            name: _describe(method, towers)
            for name, method in methods.items()
            if method.kind not in ("reference", "ensemble")
        },
    }


def tower_kind(arch: Arch) -> str:
    """A ModifiedResNet, and only that, lists the blocks of its stages."""
    return "CNN" if isinstance(arch.config["vision_cfg"].get("layers"), list | tuple) else "ViT"


def _describe(method: Method, towers: Mapping[str, nn.Module]) -> dict[str, Any]:
    return {
        "paper": method.paper,
        **{kind: method.refuses(tower) is None for kind, tower in towers.items()},
        "diverse origins": not method.needs_base,
        "ensembling": method.has_counterpart,
        "theory": method.theory,
    }
