"""Jobs of evaluations: in a worker they read, measure, and hand back results rows."""

import functools
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from neulig_ray.cluster.cost import TRAINING_PASSES, Cost, Sizes
from neulig_ray.cluster.jobs import Job, JobOutput, Needs
from neulig_ray.errors import NotApplicable
from neulig_ray.evaluation.baseline_rows import evaluate_ensemble, evaluate_reference
from neulig_ray.evaluation.context import EvaluationContext
from neulig_ray.evaluation.correct_images import without_bits
from neulig_ray.evaluation.ligand_rows import evaluate_gated, evaluate_selection
from neulig_ray.evaluation.method_rows import evaluate_merge
from neulig_ray.evaluation.rows import Row
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.combinations import origin_of
from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.ligand.data import Combination, task_of
from neulig_ray.ligand.files import read_ligand
from neulig_ray.ligand.portland import Portland
from neulig_ray.merging.declare.ensemble import EnsembleMethod
from neulig_ray.merging.declare.gated import GatedMethod
from neulig_ray.merging.declare.method import MergingMethod
from neulig_ray.merging.declare.reference import ReferenceMethod
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import skeleton
from neulig_ray.models.work import forward_flops
from neulig_ray.results import correctness
from neulig_ray.results.granularities import granularity_of
from neulig_ray.results.schema import skipped
from neulig_ray.stages.merge_inputs import MergeReader
from neulig_ray.stages.read_inputs import SharedSplit, load_bare_tower, on_device, read_split, read_stack
from neulig_ray.stages.search import LIGAND_FILE
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

ROWS_FILE = "rows.json"
CORRECT_FILE = "correct.safetensors"


class MeasuredRows(NamedTuple):
    """Results rows, and what else the artifact's manifest records."""

    rows: list[Row]
    about: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class EvaluationJob(Job):
    """One method on the test split of a combination's tasks: `measure(storage, spec, models, **settings)`.

    `reads`: the artifacts that it works on. `mixed`: the combination's origins differ.
    """

    artifact: Artifact
    measure: Callable[..., MeasuredRows]
    spec: MethodSpec
    models: ArchModels
    settings: Mapping[str, Any]
    reads: tuple[Artifact, ...]
    tasks: tuple[str, ...]
    mixed: bool

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        return self.reads

    @property
    def needs(self) -> Needs:
        return Needs(gpu=self.measure not in STORED)

    def cost(self, sizes: Sizes) -> Cost:
        flops, data, settings = forward_flops(self.models.arch), self.models.data, self.settings
        if "granularity" in settings:
            orders, limit = settings.get("order_seeds", 1), settings.get("sample_images")
            return sum((sizes.passes(data[t], "test", orders * flops, limit) for t in self.tasks), Cost())
        return self._merging(sizes, flops) if self.measure is merge else Cost()

    def _merging(self, sizes: Sizes, flops: float) -> Cost:
        """Looks of merged models: training, choices on val, the test split.

        Where the tower has BatchNorm, all but the training is done twice, once with statistics made anew.
        """
        tower, spec, settings = _skeleton(self.models.arch), self.spec, self.settings
        if spec.method.unsupported_reason(tower) is not None or (spec.method.needs_base and self.mixed):
            return Cost()
        tries = math.prod(map(len, spec.grid.values())) if spec.grid else 0
        rules = 2 if any(name.endswith("running_mean") for name in tower.state_dict()) else 1
        total, data = Cost(), self.models.data
        for task in self.tasks:
            if tries:
                total += sizes.passes(data[task], "val", rules * tries * flops, settings["val_images"])
            total += sizes.passes(data[task], "test", rules * flops)
        passes = (rules - 1) * (tries + 1) * len(self.tasks) * settings["batchnorm_images"]
        options = spec.method.resolve(dict(spec.options))
        if {"steps", "batch_size"} <= options.keys():
            passes += TRAINING_PASSES * options["steps"] * options["batch_size"] * len(self.tasks)
        return total + Cost(passes * flops)

    def make(self, storage: Storage) -> JobOutput:
        started = time.perf_counter()
        found = self.measure(storage, self.spec, self.models, **self.settings)
        elapsed = time.perf_counter() - started
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of the worker since it started
        peak = kilobytes * (1 if sys.platform == "darwin" else 1024)
        measured, bits = without_bits(found.rows)
        rows = [{**row, "seconds": elapsed, "peak_memory_bytes": peak} for row in measured]
        info = {"rows": len(rows), "seconds": elapsed, **found.about}
        files = {ROWS_FILE: json.dumps(rows, indent=1).encode()}
        return {**files, **({CORRECT_FILE: correctness.written(bits)} if bits else {})}, info


@functools.lru_cache(maxsize=8)
def _skeleton(arch: str) -> nn.Module:
    """A tower without its numbers."""
    tower: nn.Module = skeleton(ARCHS[arch]).visual
    return tower


def reference(
    storage: Storage, spec: MethodSpec, models: ArchModels, key: str, seed: int | None = None
) -> MeasuredRows:
    """A single model on the task of the collaborator `key`."""
    method = spec.require(ReferenceMethod)
    model = origin_of(key) if method.of == "origin" else key
    row = evaluate_reference(method, model, key, _test(storage, models).data, _options(spec, seed))
    return MeasuredRows([{**row, "parameters": _parameters(models.arch)}])


def ensemble(
    storage: Storage,
    spec: MethodSpec,
    models: ArchModels,
    combination: Combination,
    seed: int | None = None,
) -> MeasuredRows:
    method, test = spec.require(EnsembleMethod), _test(storage, models).data
    rows = evaluate_ensemble(method, combination, test, _options(spec, seed))
    kept = len(combination) * _parameters(models.arch)
    return MeasuredRows([{**row, "parameters": kept} for row in rows])


def merge(
    storage: Storage,
    spec: MethodSpec,
    models: ArchModels,
    combination: Combination,
    batchnorm_images: int,
    batch_size: int,
    seed: int,
    val_images: int = 0,
    statistics: Sequence[Artifact] = (),
) -> MeasuredRows:
    """Whatever a method makes of the experts' parameters."""
    method = spec.require(MergingMethod)
    reader = MergeReader(storage, models, combination, batchnorm_images, val_images, seed)
    try:
        reader.check(method)  # first: a method that is not defined here reads no model
        measured = evaluate_merge(
            method,
            reader.inputs(spec, statistics),
            reader.context("test"),
            options=_options(spec, seed),
            origin=reader.origin,
            unlabelled=reader.unlabelled(),
            tuning=reader.tuning(spec),
            batch_size=batch_size,
            seed=seed,
        )
    except NotApplicable as error:
        tasks = map(task_of, combination)
        return MeasuredRows([{"task": task, "status": skipped(str(error))} for task in tasks])
    return MeasuredRows(measured.rows, {"selected": measured.selected} if measured.selected else {})


def selection(
    storage: Storage,
    spec: MethodSpec,
    models: ArchModels,
    combination: Combination,
    ligand: Artifact,
    seed: int | None = None,
) -> MeasuredRows:
    """A gated method that chooses one expert for each image."""
    portland, about = _load_ligand(storage, ligand)
    member, test = portland.combinations.index(combination), _test(storage, models).data
    rows = evaluate_selection(spec.require(GatedMethod), portland, member, test, _options(spec, seed))
    kept = _all_kept(portland, models.arch)
    return MeasuredRows([{**row, **about, "parameters": kept} for row in rows])


def gated(
    storage: Storage,
    spec: MethodSpec,
    models: ArchModels,
    combination: Combination,
    ligand: Artifact,
    granularity: str,
    seed: int,
    **settings: Any,
) -> MeasuredRows:
    """A gated method at one granularity: the weights that it makes of a ligand's beta."""
    portland, about = _load_ligand(storage, ligand)
    test, arch = _test(storage, models), models.arch
    context = EvaluationContext(
        combination,
        on_device(read_stack(storage, models, combination)),
        load_bare_tower(arch),
        ARCHS[arch],
        test.data,
        test.images,
    )
    rows = evaluate_gated(
        spec.require(GatedMethod),
        portland,
        portland.combinations.index(combination),
        context,
        read_split(storage, models, "val", combination, images=False).data,
        granularities=[granularity],
        options=_options(spec, seed),
        seed=seed,
        **settings,
    )
    kept = _parameters(arch) if granularity_of(granularity).static else _all_kept(portland, arch)
    return MeasuredRows([{**row, **about, "parameters": kept} for row in rows])


STORED = (reference, ensemble, selection)  # what looks at stored embeddings alone, and needs no GPU


def _options(spec: MethodSpec, seed: int | None) -> dict[str, Any]:
    """The options with the experiment's seed, where the method has one that is not given."""
    given = dict(spec.options)
    return {"seed": seed, **given} if "seed" in spec.method.options else given


def _test(storage: Storage, models: ArchModels) -> SharedSplit:
    return read_split(storage, models, "test", models.experts, images=True)


def _load_ligand(storage: Storage, artifact: Artifact) -> tuple[Portland, dict[str, float]]:
    info = storage.manifest(artifact)["info"]
    about = {name: info[name] for name in ("alignment_weight", "learning_rate")}
    return read_ligand(storage.load(artifact, LIGAND_FILE)), about


@functools.lru_cache(maxsize=8)
def _parameters(arch: str) -> int:
    """Numbers in one visual tower's parameters."""
    return sum(p.numel() for p in load_bare_tower(arch).parameters())


def _all_kept(portland: Portland, arch: str) -> int:
    """Numbers kept where every expert and one combination's gate are needed at inference."""
    gate = portland.weight[0].numel() + portland.bias[0].numel()
    return portland.n * _parameters(arch) + gate
