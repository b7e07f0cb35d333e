"""The names that an experiment uses, looked up before anything heavy is imported.

Tasks and archs are light to import. Methods import torch, so that their names are read off their files.
"""

import ast
import functools
import sys
from pathlib import Path

from neulig_ray.errors import unknown
from neulig_ray.experiment.config import Experiment
from neulig_ray.models.archs import ARCHS
from neulig_ray.report.published_rows import published
from neulig_ray.tasks import TASKS


def check_names(experiment: Experiment) -> None:
    """Raises InputError for a task, an arch, a method or published rows that there are none of.

    Plugins that add names are loaded before. A task's entry that spells out a folder or a hub's data set is
    looked at later, when it is read.
    """
    for entry in (*experiment.tasks, *experiment.pretrain.tasks):
        if ":" not in entry:
            TASKS[entry]
    for name in experiment.archs:
        ARCHS[name]
    for text in experiment.methods:
        _check_method(text.partition(":")[0])
    if experiment.published:
        published(experiment.published)


def _check_method(name: str) -> None:
    merging = sys.modules.get("neulig_ray.merging")
    if merging is not None:  # torch is there already, and so may be plugins' methods
        merging.METHODS[name]
    elif name not in declared_methods():
        raise unknown("method", name, declared_methods(), "`neulig ls methods` describes them.")


@functools.cache
def declared_methods() -> frozenset[str]:
    """The methods of this package: the first argument of each decorator in the files of `merging/methods`."""
    found = set()
    for file in (Path(__file__).parents[1] / "merging" / "methods").glob("[!_]*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            for decorator in getattr(node, "decorator_list", ()):
                match decorator:
                    case ast.Call(args=[ast.Constant(value=str(name)), *_]):
                        found.add(name)
    return frozenset(found)
