"""Evaluations of small models: the inputs of a method and its context put together, as a stage does."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from neulig_ray.evaluation.context import EvaluationContext
from neulig_ray.evaluation.ligand_rows import evaluate_gated
from neulig_ray.evaluation.method_rows import MethodRows, evaluate_merge
from neulig_ray.evaluation.rows import Row
from neulig_ray.ligand.data import LigandData, task_of
from neulig_ray.ligand.portland import Portland
from neulig_ray.merging import METHODS, MergeInputs
from neulig_ray.merging.declare.gated import GatedMethod
from neulig_ray.merging.declare.method import MergingMethod
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.models.archs import Arch
from neulig_ray.weights.sources import State


def inputs_of(
    keys: Sequence[str], stack: ExpertStack, tower: nn.Module, base: State | None = None, **more: Any
) -> MergeInputs:
    experts = {key: stack.state(key) for key in keys}
    return MergeInputs(tower, experts, base, tasks=tuple(map(task_of, keys)), **more)


def merge_rows(
    method: MergingMethod,
    keys: tuple[str, ...],
    *,
    stack: ExpertStack,
    tower: nn.Module,
    arch: Arch,
    test: LigandData,
    images: Mapping[str, np.ndarray],
    base: State | None = None,
    inputs: Mapping[str, Any] | None = None,
    **more: Any,
) -> MethodRows:
    context = EvaluationContext(keys, stack, tower, arch, test, images)
    return evaluate_merge(method, inputs_of(keys, stack, tower, base, **(inputs or {})), context, **more)


def gated_rows(
    portland: Portland,
    member: int,
    *,
    stack: ExpertStack,
    tower: nn.Module,
    arch: Arch,
    val: LigandData,
    test: LigandData,
    images: Mapping[str, np.ndarray],
    method: GatedMethod | None = None,
    **settings: Any,
) -> list[Row]:
    context = EvaluationContext(portland.combinations[member], stack, tower, arch, test, images)
    return evaluate_gated(method or METHODS["ligand"], portland, member, context, val, **settings)  # type: ignore[arg-type]
