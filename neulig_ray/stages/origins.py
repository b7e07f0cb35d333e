"""Stage `origins`: the foundation weights: shipped, read from files, downloaded, or pre-trained here."""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neulig_ray.cluster.jobs import Job, Made
from neulig_ray.cluster.train.job import Step, Worker
from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment
from neulig_ray.models import clip as clip_models
from neulig_ray.models import origin_files
from neulig_ray.models.archs import ARCHS, PretrainRecipe
from neulig_ray.models.formats.checkpoints import digest
from neulig_ray.models.formats.origins import (
    check_origin,
    foreign_origin_bytes,
    is_ours,
    open_origin,
)
from neulig_ray.models.origin_source import OriginSource, parse_origin
from neulig_ray.models.work import forward_flops
from neulig_ray.stages.recipe_changes import override
from neulig_ray.stages.tasks import task_artifact
from neulig_ray.storage.artifact import Artifact, fingerprint
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import TASKS
from neulig_ray.training.contrastive import pretrain, pretraining_stream

VERSION = 1
FILE = "origin.safetensors"


@dataclass(frozen=True)
class Origin:
    """Where an origin comes from: a path (shipped or the user's), a download, or a pre-training."""

    arch: str
    name: str
    artifact: Artifact
    path: Path | None = None
    job: "PretrainJob | None" = None
    fetch: Job | None = None

    @property
    def label(self) -> str:
        return f"{self.arch}/{self.name}"


def plan_origin(experiment: Experiment, arch: str, given: str) -> Origin:
    """Find out how to have an origin; raises InputError for one that there is no way to have."""
    source = parse_origin(given)
    check_origin(ARCHS[arch], source)
    if source.kind in ("tag", "hub"):
        return _fetched(arch, source)
    path = Path(source.place).expanduser() if source.kind == "path" else None
    if source.kind == "seed" and experiment.pretrain.shipped:
        path = origin_files.shipped(arch, source.place)
    if path is not None:
        identity = fingerprint({"arch": _arch_identity(arch), "sha256": digest(path)})
        return Origin(arch, source.name, Artifact("origin", f"{arch}.{source.name}", identity), path)
    job = _pretrain_job(experiment, arch, source)
    return Origin(arch, source.name, job.artifact, job=job)


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
    about: dict[str, Any] = {"source": origin.path.name}
    if is_ours(origin.path):
        data = origin.path.read_bytes()
        origin_files.load_origin(data, ARCHS[origin.arch], label=str(origin.path))
    else:
        source = OriginSource(origin.name, "path", str(origin.path))
        data, about = foreign_origin_bytes(ARCHS[origin.arch], source)
    storage.commit(origin.artifact, {FILE: data}, {"arch": origin.arch, **about})


def _fetched(arch: str, source: OriginSource) -> Origin:
    """A download: a job, so that it happens once, on a node that reaches the hub.

    It is named by arch and tag; the sha256 of what was downloaded stands in the artifact's manifest.
    """
    inputs = {"arch": _arch_identity(arch), source.kind: source.place}
    artifact = Artifact.of("origin", f"{arch}.{source.name}", VERSION, inputs)
    job = Job(artifact, _fetch, {"arch": arch, "source": source})
    return Origin(arch, source.name, artifact, fetch=job)


def _fetch(storage: Storage, arch: str, source: OriginSource) -> Made:
    data, about = foreign_origin_bytes(ARCHS[arch], source)
    return {FILE: data}, {"arch": arch, **about}


def open_stored(arch: str, given: str, uri: str | None) -> Any:
    """The CLIP model of an origin as `origins` names it, out of the storage `uri` where that has it.

    Raises InputError for an origin that cannot be had.
    """
    source = parse_origin(given)
    if uri is not None and source.kind in ("tag", "hub"):
        artifact, storage = _fetched(arch, source).artifact, Storage(uri)
        if storage.exists(artifact):
            return load_clip(storage, artifact, arch)
    return open_origin(ARCHS[arch], source).clip


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

    def cost(self, storage: Storage) -> float:
        return float(self.recipe.steps * self.recipe.batch_size * forward_flops(self.arch))

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


def _pretrain_job(e: Experiment, arch: str, source: OriginSource) -> PretrainJob:
    seed = source.seed
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
    return PretrainJob(
        Artifact.of("origin", f"{arch}.{source.name}", VERSION, inputs), arch, recipe, streams, seed
    )
