"""Results rows of every method that makes models of a combination; what is chosen is chosen on val."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from neulig_ray.errors import InputError, NotFinite, TrainingDiverged
from neulig_ray.evaluation.context import Bench, choose
from neulig_ray.evaluation.merged_models import Ingredients, Served, counterpart, serve, with_new_statistics
from neulig_ray.evaluation.metrics import accuracy, compare
from neulig_ray.evaluation.rows import Row, new_row
from neulig_ray.ligand.data import Combination, LigandData, combination_key
from neulig_ray.merging._base import Method
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.merging.prediction import head_logits
from neulig_ray.models.archs import Arch


@dataclass(frozen=True)
class Tuning:
    """Options to choose on val, each with the values to try; `limit` val images of each task judge them."""

    grid: Mapping[str, tuple[Any, ...]]
    val: LigandData
    images: Mapping[str, np.ndarray]
    limit: int | None = None

    def settings(self) -> list[dict[str, Any]]:
        """Every combination of the grid's values."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]


class Measured(NamedTuple):
    """Rows, and what was chosen: one entry for each rule for buffers and, where they differ, each task."""

    rows: list[Row]
    selected: list[dict[str, Any]]


def evaluate_merge(
    method: Method,
    combination: Combination,
    *,
    stack: ExpertStack,
    tower: nn.Module,
    arch: Arch,
    test: LigandData,
    images: Mapping[str, np.ndarray],
    options: Mapping[str, Any] | None = None,
    ingredients: Ingredients | None = None,
    tuning: Tuning | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> Measured:
    """Rows of what a method makes of a combination, one for each of its tasks.

    Ensembling is the prediction-level counterpart z_0 + sum_i lambda_i (z_i - z_0) of methods that have one.
    A tower with BatchNorm gives rows with averaged statistics and, where there are unlabelled images, rows
    with statistics re-estimated on them. With `tuning`, the options of the grid are those of the highest val
    accuracy (mean over the tasks; by task where each task has a model of its own; the first of equal ones),
    for each rule for buffers by itself.
    """
    given = ingredients or Ingredients()
    study = _Study(method, combination, stack, tower, arch, given, dict(options or {}), batch_size, seed)
    bench = Bench(combination, stack, tower, arch, test, images)
    selected: list[dict[str, Any]] = []
    settings: dict[str, dict[str, dict[str, Any]]] = {}  # buffers -> task -> chosen
    if tuning is not None and tuning.grid:
        settings = study.tune(tuning)
        for buffers, by_task in settings.items():
            selected += [{"buffers": buffers, **entry} for entry in _summarised(by_task)]
    rows: list[Row] = []
    for buffers in study.rules():
        chosen = settings.get(buffers) or {task: {} for task in bench.tasks}
        made: dict[str, Served] = {}
        for task in bench.tasks:
            key = str(sorted(chosen[task].items()))
            if key not in made:
                made[key] = study.serve(chosen[task], buffers)
            if buffers == "re-estimated" and not made[key].static:
                continue  # a module keeps the statistics that it was made with
            rows.append(study.row(made[key], chosen[task], buffers, bench, task))
    return Measured(rows, selected)


def _summarised(by_task: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    distinct = list(by_task.values())
    if all(setting == distinct[0] for setting in distinct):
        return [{"options": distinct[0]}]
    return [{"task": task, "options": setting} for task, setting in by_task.items()]


@dataclass
class _Study:
    method: Method
    combination: Combination
    stack: ExpertStack
    tower: nn.Module
    arch: Arch
    ingredients: Ingredients
    options: dict[str, Any]
    batch_size: int
    seed: int

    def rules(self) -> Iterator[str]:
        """What becomes of BatchNorm statistics: every rule that can be followed here."""
        if not self.stack.has_batchnorm:
            yield ""
            return
        yield "average"
        if self.ingredients.unlabelled:
            yield "re-estimated"

    def serve(self, setting: Mapping[str, Any], buffers: str) -> Served:
        made = serve(
            self.method,
            self.combination,
            self.stack,
            self.tower,
            self.ingredients,
            {**self.options, **setting},
        )
        return self._follow(made, buffers)

    def _follow(self, made: Served, buffers: str) -> Served:
        if buffers != "re-estimated" or not made.static:
            return made
        return with_new_statistics(
            made, self.tower, self.arch, self.ingredients.unlabelled, self.batch_size, self.seed
        )

    def tune(self, tuning: Tuning) -> dict[str, dict[str, dict[str, Any]]]:
        """Rule for buffers -> task -> the setting of the highest val accuracy."""
        val = Bench(self.combination, self.stack, self.tower, self.arch, tuning.val, tuning.images)
        settings, rules = tuning.settings(), list(self.rules())
        reached: dict[str, list[dict[str, float]]] = {rule: [] for rule in rules}
        by_task = False
        for setting in settings:
            try:
                made = self.serve(setting, "average")
            except NotFinite:  # nor is this one ever chosen where another works
                for rule in rules:
                    reached[rule].append(dict.fromkeys(val.tasks, -1.0))
                continue
            by_task = made.granularity == "task"
            for rule in rules:
                served = self._follow(made, rule)
                reached[rule].append({t: self._val(served, val, t, tuning.limit) for t in val.tasks})
        chosen: dict[str, dict[str, dict[str, Any]]] = {}
        for rule, found in reached.items():
            if by_task:
                best = {t: max(range(len(found)), key=lambda i, t=t: found[i][t]) for t in val.tasks}  # type: ignore[misc]
            else:
                best = dict.fromkeys(
                    val.tasks, max(range(len(found)), key=lambda i: fmean(found[i].values()))
                )
            chosen[rule] = {task: settings[i] for task, i in best.items()}
        return chosen

    def _val(self, served: Served, val: Bench, task: str, limit: int | None) -> float:
        rows = choose(len(val.images[task]), limit, self.seed, task)
        logits = val.logits(served.models[task], task, rows, self.batch_size)
        try:
            return accuracy(logits, val.labels(task, rows))
        except TrainingDiverged:  # a scaling that is too large: never chosen where another one works
            return -1.0

    def row(self, served: Served, setting: Mapping[str, Any], buffers: str, bench: Bench, task: str) -> Row:
        every = torch.arange(len(bench.images[task]))
        labels = bench.labels(task, every)
        what = f"{self.method.name} of {combination_key(self.combination)} on {task}"
        logits = bench.logits(served.models[task], task, every, self.batch_size)
        lambdas = self._lambdas(setting)
        if lambdas is None:
            values: Mapping[str, Any] = {"merging_accuracy": accuracy(logits, labels, what)}
        else:
            stacked = bench.data.stacked(self.combination, task)
            embeddings = counterpart(lambdas, stacked, lambda: self._origin(bench, task))
            values = compare(logits, head_logits(embeddings, bench.head(task)), labels, what)
        batch = {"batch_size": self.batch_size} if served.granularity.startswith("batch") else {}
        made = new_row(task, served.granularity, buffers=buffers, num_samples=len(labels), **batch, **values)
        return {**made, "parameters": served.numbers}

    def _lambdas(self, setting: Mapping[str, Any]) -> torch.Tensor | None:
        method = self.method
        if method.coefficients is None:
            return None
        resolved = method.resolve({**self.options, **setting})
        found: torch.Tensor | None = method.call(method.coefficients, len(self.combination), options=resolved)
        return found

    def _origin(self, bench: Bench, task: str) -> torch.Tensor:
        if self.ingredients.origin is None:
            raise InputError(
                f"the ensembling accuracy of {self.method.name} needs the origin's embeddings: give `origin`"
            )
        return bench.data.embedding(self.ingredients.origin, task)
