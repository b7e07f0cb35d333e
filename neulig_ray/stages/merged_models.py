"""Stage `models`: merged models that take more than a second to make, apart from measuring them."""

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from neulig_ray.cluster.cost import Cost, Sizes
from neulig_ray.cluster.device import device
from neulig_ray.cluster.jobs import Job, JobOutput, Needs
from neulig_ray.errors import InputError, NotApplicable
from neulig_ray.evaluation.granularity import RULES
from neulig_ray.evaluation.ligand_rows import task_weights
from neulig_ray.evaluation.model_files import (
    ModelOptions,
    ServedModel,
    StoredModels,
    model_files,
    read_betas,
    read_models,
    rebuilt,
    served_models,
    skipped_files,
    unkept_files,
)
from neulig_ray.evaluation.predictions import Betas
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.ligand.data import Combination
from neulig_ray.merging.declare.gated import GatedMethod
from neulig_ray.merging.declare.method import MergingMethod
from neulig_ray.merging.models import is_batchnorm_statistic
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.stages.experts import tower_size
from neulig_ray.stages.ligand_inputs import kept_parameters, load_ligand
from neulig_ray.stages.merge_inputs import MergeReader
from neulig_ray.stages.merging_costs import buffers_rules, defined, making
from neulig_ray.stages.read_inputs import load_bare_tower, peak_bytes, read_split
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

VERSION = 1


@dataclass(frozen=True)
class ModelJob(Job):
    """The models of one method for one combination, which `evaluation` measures.

    They are made for an evaluation that is missing: what an earlier version measured needs them no more.
    """

    artifact: Artifact
    spec: MethodSpec
    models: ArchModels
    combination: Combination
    reads: tuple[Artifact, ...]
    evaluation: Artifact

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        return self.reads

    @property
    def only_for(self) -> tuple[Artifact, ...]:
        return (self.evaluation,)

    @property
    def about(self) -> ModelOptions:
        return ModelOptions(self.models.arch, self.spec.name, dict(self.spec.options), self.combination)

    def make(self, storage: Storage) -> JobOutput:
        info: dict[str, Any] = {
            "arch": self.models.arch,
            "method": self.spec.name,
            "experts": {key: self.models.experts[key].path for key in self.combination},
        }
        return self._files(storage, info), info

    def _files(self, storage: Storage, info: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
        spent, started = 0.0, time.perf_counter()
        for part in self.files(storage):
            spent += time.perf_counter() - started  # without the time that writing it takes
            yield part
            started = time.perf_counter()
        info |= {"seconds": spent, "peak_memory_bytes": peak_bytes()}

    def files(self, storage: Storage) -> Iterator[tuple[str, bytes]]:
        raise NotImplementedError


@dataclass(frozen=True)
class MethodModelsJob(ModelJob):
    """A method that looks at images, at statistics, or whose options are chosen on val."""

    batchnorm_images: int
    batch_size: int
    seed: int
    val_images: int
    statistics: tuple[Artifact, ...] = ()
    mixed: bool = False
    drawn_by: int | None = None

    def cost(self, sizes: Sizes) -> Cost:
        settings = {"val_images": self.val_images, "batchnorm_images": self.batchnorm_images}
        if not defined(self.spec, self.models.arch, mixed=self.mixed):
            return Cost()
        made = making(sizes, self.spec, self.models, self.about.tasks, settings, mixed=self.mixed)
        n, method = len(self.combination), self.spec.require(MergingMethod)
        each = n if method.planned_granularity == "task" else n + 1 if method.rebuilds else 1  # at most
        return made + Cost(bytes=each * buffers_rules(self.models.arch) * tower_size(self.models.arch))

    def files(self, storage: Storage) -> Iterator[tuple[str, bytes]]:
        method = self.spec.require(MergingMethod)
        reader = MergeReader(
            storage,
            self.models,
            self.combination,
            self.batchnorm_images,
            self.val_images,
            self.seed,
            self.drawn_by,
        )
        try:
            reader.check(method)  # first: a method that is not defined here reads no model
            made = reader.make(self.spec, self.statistics, self.batch_size)
        except NotApplicable as error:
            yield from skipped_files(self.about, str(error)).items()
            return
        served = served_models(made)
        if any(isinstance(one.model, nn.Module) for one in served) and not self._rebuilds(method, served):
            yield from unkept_files(self.about).items()
            return
        yield from model_files(self.about, served, made.selected)

    def _rebuilds(self, method: MergingMethod, served: Sequence[ServedModel]) -> bool:
        """Whether the method makes the one module again; tried here, before somebody needs it."""
        if not (method.rebuilds and len(served) == 1):
            return False
        try:
            return rebuilt(method, self.about, served[0].setting).state_dict().keys() == (
                served[0].model.state_dict().keys()  # type: ignore[union-attr]
            )
        except InputError:
            return False


@dataclass(frozen=True)
class LigandModelsJob(ModelJob):
    """What a gate's betas on val merge: a model for each task, or one for everything, kept as their betas."""

    ligand: Artifact
    granularity: str
    seed: int

    @property
    def needs(self) -> Needs:
        return Needs(gpu=False)

    def files(self, storage: Storage) -> Iterator[tuple[str, bytes]]:
        portland, _ = load_ligand(storage, self.ligand)
        val = read_split(storage, self.models, "val", self.combination, images=False).data
        member = portland.member(self.combination, self.seed)
        method = self.spec.require(GatedMethod)
        weights = task_weights(method, portland, member, val, self.spec.options_with(self.seed))
        rule = RULES[self.granularity].models
        assert rule is not None, f"the images under test decide about the models of {self.granularity}"
        kept = kept_parameters(portland.select(member), self.models.arch, self.granularity)
        names = load_bare_tower(self.models.arch).state_dict()
        buffers = "average" if any(map(is_batchnorm_statistic, names)) else ""
        served = (
            ServedModel(beta, tuple((buffers, task) for task in tasks), self.granularity, kept)
            for tasks, beta in _distinct(rule(Betas({}, weights)))
        )
        return model_files(self.about, served)


def _distinct(betas: Mapping[str, torch.Tensor]) -> Iterator[tuple[list[str], torch.Tensor]]:
    """The tasks of each model, and its beta."""
    tasks_of: dict[int, list[str]] = {}
    for task, beta in betas.items():
        tasks_of.setdefault(id(beta), []).append(task)
    for tasks in tasks_of.values():
        yield tasks, betas[tasks[0]]


def read_model(storage: Storage, artifact: Artifact, stack: ExpertStack | None = None) -> StoredModels:
    """An artifact of kind `model`, modules on the job's device; `stack`: its experts, where it keeps betas.

    Raises InputError for files that are damaged or of another version.
    """
    mix = stack.combine if stack else None
    try:
        found = read_models(functools.partial(storage.load, artifact), f"model {artifact.label}", mix)
    except InputError as error:
        folder = storage.full(artifact.path)
        raise InputError(f"{error}. Or remove the folder {folder}: the same run makes it again") from error
    for by_task in found.models.by_buffers.values():
        for chosen in by_task.values():
            for model in chosen.models.by_task.values():
                if isinstance(model, nn.Module):
                    model.to(device())
    return found


def read_model_betas(storage: Storage, artifact: Artifact) -> dict[str, torch.Tensor]:
    """Task -> the beta (n,) of its model, of an artifact whose models are kept as betas."""
    return read_betas(functools.partial(storage.load, artifact), f"model {artifact.label}")


class Spent(NamedTuple):
    """What making models took: seconds, and the most memory of its process."""

    seconds: float = 0.0
    peak_memory_bytes: int = 0


def spent_on(storage: Storage, artifact: Artifact) -> Spent:
    """What an artifact of kind `model` took."""
    info = storage.manifest(artifact)["info"]
    return Spent(info["seconds"], info["peak_memory_bytes"])
