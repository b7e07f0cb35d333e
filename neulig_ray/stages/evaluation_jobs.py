"""Jobs of evaluations: in a worker they read, measure, and hand back results rows."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from neulig_ray.cluster.cost import Cost, Sizes
from neulig_ray.cluster.jobs import Job, JobOutput, Needs
from neulig_ray.errors import NotApplicable
from neulig_ray.evaluation.baseline_rows import evaluate_ensemble, evaluate_reference
from neulig_ray.evaluation.context import EvaluationContext
from neulig_ray.evaluation.correct_images import correct_bytes, without_bits
from neulig_ray.evaluation.forward import embed_with
from neulig_ray.evaluation.ligand_rows import evaluate_gated, evaluate_selection
from neulig_ray.evaluation.method_rows import method_rows
from neulig_ray.evaluation.rows import Row
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.combinations import origin_of
from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.ligand.data import Combination, task_of
from neulig_ray.merging.declare.ensemble import EnsembleMethod
from neulig_ray.merging.declare.gated import GatedMethod
from neulig_ray.merging.declare.method import MergingMethod
from neulig_ray.merging.declare.reference import ReferenceMethod
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.work import forward_flops
from neulig_ray.results.schema import skipped
from neulig_ray.stages.joint import load_joint
from neulig_ray.stages.ligand_inputs import kept_parameters, load_ligand, tower_parameters
from neulig_ray.stages.merge_inputs import MergeReader
from neulig_ray.stages.merged_models import Spent, read_model, read_model_betas, spent_on
from neulig_ray.stages.merging_costs import making, measuring
from neulig_ray.stages.read_inputs import (
    SharedSplit,
    load_bare_tower,
    on_device,
    peak_bytes,
    read_split,
    read_stack,
)
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

ROWS_FILE = "rows.json"
CORRECT_FILE = "correct.safetensors"


class MeasuredRows(NamedTuple):
    """Results rows, what else the artifact's manifest records, what making the models took before."""

    rows: list[Row]
    about: Mapping[str, Any] = MappingProxyType({})
    spent: Spent = Spent()


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
            orders, limit = len(settings.get("order_seeds", (0,))), settings.get("sample_images")
            return sum((sizes.passes(data[t], "test", orders * flops, limit) for t in self.tasks), Cost())
        if self.measure is joint and not self.mixed:
            return sum((sizes.passes(data[task], "test", flops) for task in self.tasks), Cost())
        if self.measure is not merge:
            return Cost()
        measured = measuring(sizes, self.spec, self.models, self.tasks, mixed=self.mixed)
        if settings.get("model"):
            return measured
        made = making(sizes, self.spec, self.models, self.tasks, settings, mixed=self.mixed)
        return measured + made

    def make(self, storage: Storage) -> JobOutput:
        started = time.perf_counter()
        found = self.measure(storage, self.spec, self.models, **self.settings)
        elapsed = found.spent.seconds + time.perf_counter() - started
        peak = max(found.spent.peak_memory_bytes, peak_bytes())
        measured, bits = without_bits(found.rows)
        rows = [{**row, "seconds": elapsed, "peak_memory_bytes": peak} for row in measured]
        info = {"rows": len(rows), "seconds": elapsed, **found.about}
        files = {ROWS_FILE: json.dumps(rows, indent=1).encode()}
        return {**files, **({CORRECT_FILE: correct_bytes(bits)} if bits else {})}, info


def reference(
    storage: Storage, spec: MethodSpec, models: ArchModels, key: str, seed: int | None = None
) -> MeasuredRows:
    """A single model on the task of the collaborator `key`."""
    method = spec.require(ReferenceMethod)
    model = origin_of(key) if method.of == "origin" else key
    row = evaluate_reference(method, model, key, _test(storage, models).data, spec.options_with(seed))
    return MeasuredRows([{**row, "parameters": tower_parameters(models.arch)}])


def joint(
    storage: Storage,
    spec: MethodSpec,
    models: ArchModels,
    combination: Combination,
    network: Artifact | None,
    seed: int | None = None,
) -> MeasuredRows:
    """The network that was fine-tuned on all tasks; None where experts of several origins have none."""
    if network is None:
        origins = " and ".join(models.origins)
        reason = f"it is fine-tuned from one origin, but the experts start from {origins}"
        return MeasuredRows([{"task": task_of(key), "status": skipped(reason)} for key in combination])
    method, arch, test = spec.require(ReferenceMethod), models.arch, _test(storage, models)
    tower, state = load_bare_tower(arch), load_joint(storage, network, arch)
    rows = []
    for key in combination:
        task = task_of(key)
        seen = {(spec.name, task): embed_with(tower, state, test.images[task], ARCHS[arch]).numpy()}
        data = dataclasses.replace(test.data, embeddings=seen)
        row = evaluate_reference(method, spec.name, key, data, spec.options_with(seed))
        rows.append({**row, "parameters": tower_parameters(arch)})
    return MeasuredRows(rows)


def ensemble(
    storage: Storage,
    spec: MethodSpec,
    models: ArchModels,
    combination: Combination,
    seed: int | None = None,
) -> MeasuredRows:
    method, test = spec.require(EnsembleMethod), _test(storage, models).data
    rows = evaluate_ensemble(method, combination, test, spec.options_with(seed))
    kept = len(combination) * tower_parameters(models.arch)
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
    drawn_by: int | None = None,
    statistics: Sequence[Artifact] = (),
    model: Artifact | None = None,
) -> MeasuredRows:
    """Whatever a method makes of the experts' parameters, here or, where it takes long, as `model`.

    `drawn_by`: the seed of the images that are chosen, where it is another than the method's.
    """
    method = spec.require(MergingMethod)
    reader = MergeReader(storage, models, combination, batchnorm_images, val_images, seed, drawn_by)
    made, spent, skips = None, Spent(), ""
    stored = read_model(storage, model) if model else None
    if model and stored and stored.kept:
        made, skips, spent = stored.models, stored.skipped, spent_on(storage, model)
    else:
        try:
            reader.check(method)  # first: a method that is not defined here reads no model
            made = reader.make(spec, statistics, batch_size)
        except NotApplicable as error:
            skips = str(error)
    if made is None or skips:
        tasks = map(task_of, combination)
        return MeasuredRows([{"task": task, "status": skipped(skips)} for task in tasks], spent=spent)
    options = spec.options_with(seed)
    rows = method_rows(
        method, made, reader.context("test"), options=options, origin=reader.origin, batch_size=batch_size
    )
    return MeasuredRows(rows, {"selected": made.selected} if made.selected else {}, spent)


def selection(
    storage: Storage,
    spec: MethodSpec,
    models: ArchModels,
    combination: Combination,
    ligand: Artifact,
    ligand_seed: int,
    seed: int | None = None,
) -> MeasuredRows:
    """A gated method that chooses one expert for each image."""
    portland, about = load_ligand(storage, ligand)
    member, test = portland.member(combination, ligand_seed), _test(storage, models).data
    rows = evaluate_selection(spec.require(GatedMethod), portland, member, test, spec.options_with(seed))
    kept = kept_parameters(portland.select(member), models.arch, "sample")
    return MeasuredRows([{**row, **about, "parameters": kept} for row in rows])


def gated(
    storage: Storage,
    spec: MethodSpec,
    models: ArchModels,
    combination: Combination,
    ligand: Artifact,
    ligand_seed: int,
    granularity: str,
    seed: int,
    model: Artifact | None = None,
    **settings: Any,
) -> MeasuredRows:
    """A gated method at one granularity: the weights that it makes of a ligand's beta.

    `seed`: of the images that are chosen. `model`: what they merge, where that was made before.
    """
    portland, about = load_ligand(storage, ligand)
    member = portland.member(combination, ligand_seed)
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
        member,
        context,
        read_split(storage, models, "val", combination, images=False).data,
        granularities=[granularity],
        options=spec.options_with(ligand_seed),
        made=read_model_betas(storage, model) if model else None,
        seed=seed,
        **settings,
    )
    kept = kept_parameters(portland.select(member), arch, granularity)
    spent = spent_on(storage, model) if model else Spent()
    return MeasuredRows([{**row, **about, "parameters": kept} for row in rows], spent=spent)


STORED = (reference, ensemble, selection)  # what looks at stored embeddings alone, and needs no GPU


def _test(storage: Storage, models: ArchModels) -> SharedSplit:
    return read_split(storage, models, "test", models.experts, images=True)
