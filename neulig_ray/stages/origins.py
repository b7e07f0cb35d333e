"""Stage `origins`: the foundation weights, shipped, read from a file, or pre-trained on the cluster."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neulig_ray.config import Experiment
from neulig_ray.errors import InputError
from neulig_ray.models import clip as clip_models
from neulig_ray.models import origins as origin_files
from neulig_ray.models.archs import ARCHS, PretrainRecipe
from neulig_ray.stages.artifact import Artifact, fingerprint
from neulig_ray.stages.combinations import origin_name
from neulig_ray.stages.jobs import Made
from neulig_ray.stages.prepare import task_artifact
from neulig_ray.stages.recipes import override
from neulig_ray.stages.storage import Storage
from neulig_ray.stages.training import Step, Worker
from neulig_ray.tasks import TASKS
from neulig_ray.training.contrastive import pretrain, pretraining_stream

VERSION = 1
FILE = "origin.safetensors"


@dataclass(frozen=True)
class Origin:
    """Where an origin comes from: a file (shipped or the user's), or a pre-training."""

    arch: str
    name: str
    artifact: Artifact
    path: Path | None = None
    job: "PretrainJob | None" = None

    @property
    def label(self) -> str:
        return f"{self.arch}/{self.name}"


def plan_origin(experiment: Experiment, arch: str, given: str) -> Origin:
    """Find out how to have an origin; raises InputError for one that there is no way to have."""
    name = origin_name(given)
    path: Path | None
    if given.endswith(".safetensors"):
        path = Path(given)
        if not path.is_file():
            raise InputError(f"origin {given!r}: there is no such file")
    elif _seed(given) is None:
        raise InputError(
            f"unknown origin {given!r} of {arch}. Use seed-K (K = 0, 1, ...: our own pre-training; "
            "seed-0 and seed-1 of the tiny archs are shipped) or an origin's .safetensors file."
        )
    else:
        path = origin_files.shipped(arch, given) if experiment.pretrain.shipped else None
    if path is not None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        identity = fingerprint({"arch": _arch_identity(arch), "sha256": digest})
        return Origin(arch, name, Artifact("origin", f"{arch}.{name}", identity), path)
    job = _pretrain_job(experiment, arch, name)
    return Origin(arch, name, job.artifact, job=job)


def _seed(origin: str) -> int | None:
    prefix, _, number = origin.partition("-")
    return int(number) if prefix == "seed" and number.isdigit() else None


def _arch_identity(arch: str) -> dict[str, Any]:
    found = ARCHS[arch]
    return {
        "name": arch,
        "module": ARCHS.module(arch),
        "version": found.version,
        "config": dict(found.config),
    }


def store_file(origin: Origin, storage: Storage) -> None:
    """Copy a shipped or given origin into the storage, after checking it; every node reads it there."""
    if origin.path is None or storage.exists(origin.artifact):
        return
    data = origin.path.read_bytes()
    origin_files.load_origin(origin.path, ARCHS[origin.arch])
    storage.commit(origin.artifact, {FILE: data}, {"arch": origin.arch, "source": origin.path.name})


@functools.lru_cache(maxsize=2)
def load_clip(storage: Storage, artifact: Artifact, arch: str) -> Any:
    """The CLIP model of an origin; kept in the process: do not train it, copy it first."""
    return origin_files.load_origin(
        storage.load(artifact, FILE), ARCHS[arch], label=f"origin {artifact.label}"
    )


@dataclass(frozen=True)
class PretrainJob:
    """A tiny CLIP trained contrastively on the tasks' captioned streams (a TrainJob)."""

    artifact: Artifact
    arch: str
    recipe: PretrainRecipe
    tasks: tuple[str, ...]
    seed: int
    inputs: tuple[Artifact, ...] = ()

    def steps(self, storage: Storage, worker: Worker, checkpoint: dict[str, Any] | None) -> Iterator[Step]:
        arch = ARCHS[self.arch]
        images, captions = pretraining_stream([TASKS[t] for t in self.tasks], self.seed, self.recipe.images)
        clip = clip_models.build_clip(arch, seed=self.seed)
        for chunk in pretrain(
            clip,
            images,
            captions,
            arch,
            self.recipe,
            seed=self.seed,
            **vars(worker),
            checkpoint=checkpoint,
            name=self.artifact.label,
        ):
            point = {
                "step": chunk.step,
                "loss": chunk.loss,
                "accuracy": chunk.accuracy,
                "seconds": chunk.seconds,
            }
            yield Step(chunk.step == chunk.steps, point, chunk.checkpoint, clip)

    def files(self, last: Step, curve: list[dict[str, float]]) -> Made:
        about = {
            "origin": f"seed-{self.seed}",
            "tasks": list(self.tasks),
            "recipe": dataclasses.asdict(self.recipe),
        }
        data = origin_files.origin_bytes(last.model, ARCHS[self.arch], about)
        return {FILE: data}, {"arch": self.arch, **about, "curve": curve}


def _pretrain_job(e: Experiment, arch: str, name: str) -> PretrainJob:
    seed = _seed(name)
    assert seed is not None
    recipe = override(ARCHS[arch].pretrain, e.pretrain)
    streams = tuple(t for t in e.pretrain.tasks if TASKS[t].pretraining is not None)
    if not streams:
        raise InputError(f"pretrain.tasks {e.pretrain.tasks}: none of them has a pre-training stream")
    inputs = {
        "arch": _arch_identity(arch),
        "recipe": dataclasses.asdict(recipe),
        "streams": [task_artifact(t, seed).fingerprint for t in streams],
        "seed": seed,
        "workers": e.pretrain.workers,
        "threads": e.cluster.cpus_per_worker,
    }
    return PretrainJob(Artifact.of("origin", f"{arch}.{name}", VERSION, inputs), arch, recipe, streams, seed)
