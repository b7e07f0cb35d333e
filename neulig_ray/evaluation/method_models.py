"""The models that a method makes of a combination: followed by the rules for buffers, chosen on val."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np

from neulig_ray.errors import NotFinite, TrainingDiverged
from neulig_ray.evaluation.context import EvaluationContext, choose
from neulig_ray.evaluation.metrics import accuracy
from neulig_ray.evaluation.re_estimation import with_new_statistics
from neulig_ray.merging.declare.method import MergingMethod
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.merged_models import MergedModels
from neulig_ray.merging.models import is_batchnorm_statistic
from neulig_ray.models.archs import Arch
from neulig_ray.results.granularities import check_granularity


@dataclass(frozen=True)
class Tuning:
    """Options to choose on val, each with the values to try; `limit` val images of each task judge them."""

    grid: Mapping[str, tuple[Any, ...]]
    val: EvaluationContext
    limit: int | None = None

    def settings(self) -> list[dict[str, Any]]:
        """Every combination of the grid's values."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]


@dataclass(frozen=True)
class ChosenModels:
    """What was made with the options `setting`, those of the grid that were chosen on val."""

    models: MergedModels
    setting: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodModels:
    """All that a method makes of a combination, for whoever measures, exports or goes on from it.

    `by_buffers`: what becomes of BatchNorm statistics ("" for towers without; "average", "re-estimated") ->
    task -> what serves it. `selected`: what was chosen, one entry for each rule for buffers and, where they
    differ, each task.
    """

    by_buffers: Mapping[str, Mapping[str, ChosenModels]]
    selected: list[dict[str, Any]] = field(default_factory=list)


def make_models(
    method: MergingMethod,
    inputs: MergeInputs,
    arch: Arch,
    *,
    options: Mapping[str, Any] | None = None,
    unlabelled: Mapping[str, np.ndarray] | None = None,
    tuning: Tuning | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> MethodModels:
    """Run a method on `inputs`, once for each setting of its options.

    A tower with BatchNorm gives models with averaged statistics and, where there are `unlabelled` images
    (task -> uint8 (N, H, W, 3)), models with statistics re-estimated on them; modules keep the statistics
    that they were made with, and have no second version. With `tuning`, the options of the grid are those of
    the highest val accuracy (mean over the tasks; by task where each task has a model of its own; the first
    of equal ones), for each rule for buffers by itself. Raises InputError, NotFinite and TrainingDiverged as
    the method does.
    """
    study = _Study(method, inputs, arch, dict(options or {}), unlabelled or {}, batch_size, seed)
    selected: list[dict[str, Any]] = []
    settings: dict[str, dict[str, dict[str, Any]]] = {}  # buffers -> task -> chosen
    if tuning is not None and tuning.grid:
        settings = study.tune(tuning)
        for buffers, by_task in settings.items():
            selected += [{"buffers": buffers, **entry} for entry in _summarised(by_task)]
    merged: dict[str, MergedModels] = {}  # a setting -> what it gives: made once for all rules
    by_buffers: dict[str, dict[str, ChosenModels]] = {}
    for buffers in study.rules():
        chosen = settings.get(buffers) or {task: {} for task in inputs.tasks}
        followed: dict[str, MergedModels] = {}
        by_buffers[buffers] = {}
        for task in inputs.tasks:
            key = str(sorted(chosen[task].items()))
            if key not in merged:
                merged[key] = study.merge(chosen[task])
            if key not in followed:
                followed[key] = study.follow(merged[key], buffers)
            if buffers == "re-estimated" and followed[key].modules:
                continue
            own = {task: followed[key].by_task[task]}  # the other tasks' models of this setting can go
            by_buffers[buffers][task] = ChosenModels(replace(followed[key], by_task=own), chosen[task])
    return MethodModels(by_buffers, selected)


def _summarised(by_task: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    distinct = list(by_task.values())
    if all(setting == distinct[0] for setting in distinct):
        return [{"options": distinct[0]}]
    return [{"task": task, "options": setting} for task, setting in by_task.items()]


@dataclass
class _Study:
    method: MergingMethod
    inputs: MergeInputs
    arch: Arch
    options: dict[str, Any]
    unlabelled: Mapping[str, np.ndarray] = field(default_factory=dict)
    batch_size: int = 128
    seed: int = 0

    def rules(self) -> Iterator[str]:
        """What becomes of BatchNorm statistics: every rule that can be followed here."""
        if not any(is_batchnorm_statistic(name) for name in self.inputs.tower.state_dict()):
            yield ""
            return
        yield "average"
        if self.unlabelled:
            yield "re-estimated"

    def merge(self, setting: Mapping[str, Any]) -> MergedModels:
        """Raises InputError for a granularity that results do not know."""
        merged = self.method.run(self.inputs, {**self.options, **setting})
        check_granularity(merged.granularity, f"granularity of {self.method.name}'s models:")
        return merged

    def follow(self, merged: MergedModels, buffers: str) -> MergedModels:
        if buffers != "re-estimated" or merged.modules:
            return merged
        return with_new_statistics(
            merged, self.inputs.tower, self.arch, self.unlabelled, self.batch_size, self.seed
        )

    def tune(self, tuning: Tuning) -> dict[str, dict[str, dict[str, Any]]]:
        """Rule for buffers -> task -> the setting of the highest val accuracy."""
        val, settings, rules = tuning.val, tuning.settings(), list(self.rules())
        accuracies: dict[str, list[dict[str, float]]] = {rule: [] for rule in rules}
        by_task = False
        for setting in settings:
            try:
                merged = self.merge(setting)
            except NotFinite:  # nor is this one ever chosen where another works
                for rule in rules:
                    accuracies[rule].append(dict.fromkeys(val.tasks, -1.0))
                continue
            by_task = merged.granularity == "task"
            for rule in rules:
                models = self.follow(merged, rule)
                accuracies[rule].append({t: self._val(models, val, t, tuning.limit) for t in val.tasks})
        chosen: dict[str, dict[str, dict[str, Any]]] = {}
        for rule, tried in accuracies.items():
            if by_task:
                best = {t: max(range(len(tried)), key=lambda i, t=t: tried[i][t]) for t in val.tasks}  # type: ignore[misc]
            else:
                best = dict.fromkeys(
                    val.tasks, max(range(len(tried)), key=lambda i: fmean(tried[i].values()))
                )
            chosen[rule] = {task: settings[i] for task, i in best.items()}
        return chosen

    def _val(self, merged: MergedModels, val: EvaluationContext, task: str, limit: int | None) -> float:
        rows = choose(len(val.images[task]), limit, self.seed, task)
        logits = val.logits(merged.by_task[task], task, rows, self.batch_size)
        try:
            return accuracy(logits, val.labels(task, rows))
        except TrainingDiverged:  # a scaling that is too large: never chosen where another one works
            return -1.0
