"""Results rows of every method that makes models of a combination; what is chosen is chosen on val."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch

from neulig_ray.errors import InputError, NotFinite, TrainingDiverged
from neulig_ray.evaluation.context import EvaluationContext, choose
from neulig_ray.evaluation.correct_images import with_correct_images
from neulig_ray.evaluation.granularity import RULES
from neulig_ray.evaluation.metrics import accuracy, compare
from neulig_ray.evaluation.re_estimation import with_new_statistics
from neulig_ray.evaluation.rows import Row, new_row
from neulig_ray.ligand.data import combination_key
from neulig_ray.merging.declare.method import MergingMethod
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.merged_models import MergedModels
from neulig_ray.merging.prediction import equivalent_embedding, head_logits
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


class MeasuredRows(NamedTuple):
    """Rows, and what was chosen: one entry for each rule for buffers and, where they differ, each task."""

    rows: list[Row]
    selected: list[dict[str, Any]]


def evaluate_merge(
    method: MergingMethod,
    inputs: MergeInputs,
    context: EvaluationContext,
    *,
    options: Mapping[str, Any] | None = None,
    origin: str | None = None,
    unlabelled: Mapping[str, np.ndarray] | None = None,
    tuning: Tuning | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> MeasuredRows:
    """Rows of what a method makes of a combination, one for each of its tasks.

    `inputs` are what the method merges, `context` is what its models are measured on. Ensembling is the
    equivalent z_0 + sum_i lambda_i (z_i - z_0) of methods that have one; `origin` is the key of the stored
    embeddings z_0. A tower with BatchNorm gives rows with averaged statistics and, where there are
    `unlabelled` images (task -> uint8 (N, H, W, 3)), rows with statistics re-estimated on them. With
    `tuning`, the options of the grid are those of the highest val accuracy (mean over the tasks; by task
    where each task has a model of its own; the first of equal ones), for each rule for buffers by itself.
    """
    study = _Study(method, inputs, context, dict(options or {}), origin, unlabelled or {}, batch_size, seed)
    selected: list[dict[str, Any]] = []
    settings: dict[str, dict[str, dict[str, Any]]] = {}  # buffers -> task -> chosen
    if tuning is not None and tuning.grid:
        settings = study.tune(tuning)
        for buffers, by_task in settings.items():
            selected += [{"buffers": buffers, **entry} for entry in _summarised(by_task)]
    rows: list[Row] = []
    for buffers in study.rules():
        chosen = settings.get(buffers) or {task: {} for task in context.tasks}
        models: dict[str, MergedModels] = {}
        for task in context.tasks:
            key = str(sorted(chosen[task].items()))
            if key not in models:
                models[key] = study.follow(study.merge(chosen[task]), buffers)
            if buffers == "re-estimated" and models[key].modules:
                continue  # a module keeps the statistics that it was made with
            rows.append(study.row(models[key], chosen[task], buffers, task))
    return MeasuredRows(rows, selected)


def _summarised(by_task: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    distinct = list(by_task.values())
    if all(setting == distinct[0] for setting in distinct):
        return [{"options": distinct[0]}]
    return [{"task": task, "options": setting} for task, setting in by_task.items()]


@dataclass
class _Study:
    method: MergingMethod
    inputs: MergeInputs
    context: EvaluationContext
    options: dict[str, Any]
    origin: str | None
    unlabelled: Mapping[str, np.ndarray] = field(default_factory=dict)
    batch_size: int = 128
    seed: int = 0

    def rules(self) -> Iterator[str]:
        """What becomes of BatchNorm statistics: every rule that can be followed here."""
        if not self.context.stack.has_batchnorm:
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
        context = self.context
        return with_new_statistics(
            merged, context.tower, context.arch, self.unlabelled, self.batch_size, self.seed
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

    def row(self, merged: MergedModels, setting: Mapping[str, Any], buffers: str, task: str) -> Row:
        context = self.context
        every = torch.arange(len(context.images[task]))
        labels = context.labels(task, every)
        what = f"{self.method.name} of {combination_key(context.combination)} on {task}"
        logits = context.logits(merged.by_task[task], task, every, self.batch_size)
        coefficients = self.method.equivalent_coefficients(
            len(context.combination), {**self.options, **setting}
        )
        if coefficients is None:
            ensembled = None
            values: Mapping[str, Any] = {"merging_accuracy": accuracy(logits, labels, what)}
        else:
            stacked = context.data.stacked(context.combination, task)
            embeddings = equivalent_embedding(coefficients, stacked, lambda: self._origin(task))
            ensembled = head_logits(embeddings, context.head(task))
            values = compare(logits, ensembled, labels, what)
        batch = {"batch_size": self.batch_size} if "batch_size" in RULES[merged.granularity].settings else {}
        row = new_row(task, merged.granularity, buffers=buffers, num_samples=len(labels), **batch, **values)
        row = with_correct_images(row, every, labels, merging=logits, ensembling=ensembled)
        return {**row, "parameters": merged.parameters}

    def _origin(self, task: str) -> torch.Tensor:
        if self.origin is None:
            raise InputError(
                f"the ensembling accuracy of {self.method.name} needs the origin's embeddings: give `origin`"
            )
        return self.context.data.embedding(self.origin, task)
