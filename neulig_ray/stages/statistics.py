"""Stage `statistics`: what measured methods need to know of each expert, once for all combinations."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch

from neulig_ray.cluster.cost import TRAINING_PASSES, Cost, Sizes
from neulig_ray.cluster.device import device
from neulig_ray.cluster.jobs import Job, JobOutput
from neulig_ray.evaluation.images import TaskImages
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.config import Experiment
from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.ligand.data import task_of
from neulig_ray.merging.declare.measured import MeasuredMethod
from neulig_ray.merging.options import accepted
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.work import forward_flops
from neulig_ray.stages.experts import load_expert
from neulig_ray.stages.heads import FILE as HEAD_FILE
from neulig_ray.stages.read_inputs import load_bare_tower
from neulig_ray.stages.tasks import load_split, read_array
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.weights.metadata import file_metadata
from neulig_ray.weights.sources import Source, StateSource
from neulig_ray.weights.tensor_file import TensorFile
from neulig_ray.weights.tensor_writer import to_bytes

VERSION = 1
FILE = "statistics.safetensors"


@dataclass(frozen=True)
class StatisticsJob(Job):
    """What a measured method needs to know of one expert, over its own task's train images."""

    artifact: Artifact
    method: str
    arch: str
    expert: Artifact
    head: Artifact
    data: Artifact
    options: Mapping[str, Any]

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        return self.expert, self.head, self.data

    def cost(self, sizes: Sizes) -> Cost:
        """Passes over some train images; how large its statistics are is the method's affair."""
        images = int(self.options.get("examples", 0))
        return Cost(TRAINING_PASSES * images * forward_flops(self.arch))

    def make(self, storage: Storage) -> JobOutput:
        tower = copy.deepcopy(load_bare_tower(self.arch))  # on the job's device: there it measures
        tower.load_state_dict(load_expert(storage, self.expert, self.arch))
        images = TaskImages(load_split(storage, self.data, "train").images, ARCHS[self.arch], device())
        head = torch.from_numpy(read_array(storage, self.head, HEAD_FILE))
        measure = MethodSpec(self.method).require(MeasuredMethod).measure
        found = measure(tower.eval(), images, head, **self.options)
        about = {"method": self.method, "arch": self.arch, "expert": self.expert.label}
        return {FILE: to_bytes(found, file_metadata())}, {**about, "options": dict(self.options)}


def statistics_job(experiment: Experiment, spec: MethodSpec, models: ArchModels, key: str) -> StatisticsJob:
    """The statistics of one expert over its own task's train images, without labels."""
    known = models.restricted([key])
    own = (known.experts[key], known.heads[key], known.data[task_of(key)])
    options = measuring_options(spec, experiment.seed)
    identity = {
        "method": spec.name,
        "module": spec.identity["module"],
        "method_version": spec.method.version,
        "options": options,
        "inputs": [artifact.fingerprint for artifact in own],
        "threads": experiment.cluster.cpus_per_worker,
    }
    artifact = Artifact.of("statistics", f"{spec.name}.{models.arch}.{key}", VERSION, identity)
    return StatisticsJob(artifact, spec.name, models.arch, *own, options)


def measuring_options(spec: MethodSpec, seed: int) -> dict[str, Any]:
    """Those of the method's options that decide about its statistics."""
    resolved = {"seed": seed, **spec.method.resolve(dict(spec.options))}
    return accepted(spec.require(MeasuredMethod).measure, resolved)


def open_statistics(storage: Storage, artifact: Artifact) -> Source:
    """An expert's statistics, by slices where the storage is local."""
    if storage.local:
        return TensorFile(storage.place(f"{artifact.path}/{FILE}"))
    return StateSource(safetensors.torch.load(storage.load(artifact, FILE)))
