"""Stage `statistics`: what measured methods need to know of each expert, once for all combinations."""

import copy
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch

from neulig_ray.cluster.device import device
from neulig_ray.cluster.jobs import Job, Made
from neulig_ray.evaluation.images import TaskImages
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.config import Experiment
from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.ligand.data import task_of
from neulig_ray.merging._options import accepted
from neulig_ray.models.archs import ARCHS
from neulig_ray.stages.experts import HEAD_FILE, load_expert
from neulig_ray.stages.read_inputs import load_bare_tower
from neulig_ray.stages.tasks import load_split, read_array
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.weights.sources import Source, StateSource
from neulig_ray.weights.tensor_file import TensorFile, file_metadata, to_bytes

VERSION = 1
FILE = "statistics.safetensors"


def statistics_job(experiment: Experiment, spec: MethodSpec, models: ArchModels, key: str) -> Job:
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
    arguments = {"method": spec.name, "arch": models.arch, "own": own, "options": options}
    return Job(artifact, _make, arguments, own)


def measuring_options(spec: MethodSpec, seed: int) -> dict[str, Any]:
    """Those of the method's options that decide about its statistics."""
    assert spec.method.measure is not None
    resolved = {"seed": seed, **spec.method.resolve(dict(spec.options))}
    return accepted(spec.method.measure, resolved)


def _make(
    storage: Storage,
    method: str,
    arch: str,
    own: tuple[Artifact, Artifact, Artifact],
    options: Mapping[str, Any],
) -> Made:
    expert, head, data = own
    tower = copy.deepcopy(load_bare_tower(arch))  # on the job's device: there it measures
    tower.load_state_dict(load_expert(storage, expert, arch))
    images = TaskImages(load_split(storage, data, "train").images, ARCHS[arch], device())
    measure = MethodSpec(method).method.measure
    assert measure is not None
    found = measure(tower.eval(), images, torch.from_numpy(read_array(storage, head, HEAD_FILE)), **options)
    info = {"method": method, "arch": arch, "expert": expert.label, "options": dict(options)}
    return {FILE: to_bytes(found, file_metadata())}, info


def open_statistics(storage: Storage, artifact: Artifact) -> Source:
    """An expert's statistics, by slices where the storage is local."""
    if storage.local:
        return TensorFile(storage.place(f"{artifact.path}/{FILE}"))
    return StateSource(safetensors.torch.load(storage.load(artifact, FILE)))
