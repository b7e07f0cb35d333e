"""NeuLig-Ray: model merging that matches ensembling, on Ray Train, Ray Tune and MLflow.

`import neulig_ray as nl` is the public surface; docs/python.md shows each name in use. What a name needs is
imported when it is first used: torch, Ray and pandas take seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neulig_ray.api.evaluation import evaluate
    from neulig_ray.api.experiments import read_results, run
    from neulig_ray.api.experts import Expert, load_experts
    from neulig_ray.api.gates import Gate, load_ligand, train_ligand
    from neulig_ray.api.listings import list_archs, list_methods, list_tasks
    from neulig_ray.api.merging import merge
    from neulig_ray.errors import InputError, StageError
    from neulig_ray.experiment.config import (
        Cluster,
        Evaluation,
        Experiment,
        Finetune,
        Ligand,
        Pretrain,
        Search,
    )
    from neulig_ray.pipeline.outcome import Results

__version__ = "0.1.0"

_HOME = {
    "neulig_ray.api.evaluation": ("evaluate",),
    "neulig_ray.api.experiments": ("read_results", "run"),
    "neulig_ray.api.experts": ("Expert", "load_experts"),
    "neulig_ray.api.gates": ("Gate", "load_ligand", "train_ligand"),
    "neulig_ray.api.listings": ("list_archs", "list_methods", "list_tasks"),
    "neulig_ray.api.merging": ("merge",),
    "neulig_ray.errors": ("InputError", "StageError"),
    "neulig_ray.experiment.config": (
        "Cluster",
        "Evaluation",
        "Experiment",
        "Finetune",
        "Ligand",
        "Pretrain",
        "Search",
    ),
    "neulig_ray.pipeline.outcome": ("Results",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Cluster",
    "Evaluation",
    "Experiment",
    "Expert",
    "Finetune",
    "Gate",
    "InputError",
    "Ligand",
    "Pretrain",
    "Results",
    "Search",
    "StageError",
    "evaluate",
    "list_archs",
    "list_methods",
    "list_tasks",
    "load_experts",
    "load_ligand",
    "merge",
    "read_results",
    "run",
    "train_ligand",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(importlib.import_module(_MODULE[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
