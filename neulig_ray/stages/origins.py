"""Stage `origins`: the foundation weights: shipped, read from files, downloaded, or pre-trained here."""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neulig_ray.cluster.cost import TRAINING_PASSES, Cost, Sizes
from neulig_ray.cluster.jobs import Job, JobOutput, Needs
from neulig_ray.cluster.run_context import RunContext
from neulig_ray.cluster.train.job import Step, Worker
from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment
from neulig_ray.models import clip as clip_models
from neulig_ray.models import origin_files
from neulig_ray.models.archs import ARCHS, PretrainRecipe, override
from neulig_ray.models.clip import skeleton
from neulig_ray.models.formats.checkpoints import digest
from neulig_ray.models.formats.origins import (
    check_origin,
    foreign_origin_bytes,
    is_ours,
    open_origin,
)
from neulig_ray.models.origin_source import OriginSource, parse_origin
from neulig_ray.models.work import forward_flops
from neulig_ray.stages.tasks import task_artifact
from neulig_ray.storage.artifact import Artifact, fingerprint
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import TASKS
from neulig_ray.training.contrastive import pretrain, pretraining_stream

VERSION = 1
FILE = "origin.safetensors"


@dataclass(frozen=True)
class OriginFile:
    """An origin that is a file here, shipped or given: the driver copies it into the storage."""

    artifact: Artifact
    arch: str
    name: str
    path: Path
    inputs: tuple[Artifact, ...] = ()

    def cost(self, sizes: Sizes) -> Cost:
        return Cost(bytes=self.path.stat().st_size if self.path.is_file() else clip_bytes(self.arch))

    def prepare(self, context: RunContext) -> None:
        """Copy the file, after checking it; every node reads it in the storage. Raises InputError."""
        self.store(context.storage)

    def store(self, storage: Storage) -> None:
        if storage.exists(self.artifact):
            return
        about: dict[str, Any] = {"source": self.path.name}
        if is_ours(self.path):
            data = self.path.read_bytes()
            origin_files.load_origin(data, ARCHS[self.arch], label=str(self.path))
        else:
            source = OriginSource(self.name, "path", str(self.path))
            data, about = foreign_origin_bytes(ARCHS[self.arch], source)
        storage.commit(self.artifact, {FILE: data}, {"arch": self.arch, **about})


@dataclass(frozen=True)
class OriginDownload(Job):
    """A download: a job, so that it happens once, on a node that reaches the hub.

    It is named by arch and tag; the sha256 of what was downloaded stands in the artifact's manifest.
    """

    artifact: Artifact
    arch: str
    source: OriginSource

    @property
    def needs(self) -> Needs:
        return Needs(gpu=False)

    def cost(self, sizes: Sizes) -> Cost:
        return Cost(bytes=clip_bytes(self.arch))

    def make(self, storage: Storage) -> JobOutput:
        data, about = foreign_origin_bytes(ARCHS[self.arch], self.source)
        return {FILE: data}, {"arch": self.arch, **about}


@dataclass(frozen=True)
class Origin:
    """An origin by name, and how it is had: from a file, by a download, a pre-training, or a fusion."""

    arch: str
    name: str
    job: "OriginFile | OriginDownload | PretrainJob | Job"

    @property
    def artifact(self) -> Artifact:
        return self.job.artifact

    @property
    def label(self) -> str:
        return f"{self.arch}/{self.name}"


def plan_origin(experiment: Experiment, arch: str, given: str) -> Origin:
    """Find out how to have an origin; raises InputError for one that there is no way to have."""
    source = parse_origin(given)
    check_origin(ARCHS[arch], source)
    if source.kind in ("tag", "hub"):
        return Origin(arch, source.name, _download(arch, source))
    path = Path(source.place).expanduser() if source.kind == "path" else None
    if source.kind == "seed" and experiment.pretrain.shipped:
        path = origin_files.shipped(arch, source.place)
    if path is not None:
        identity = fingerprint({"arch": _arch_identity(arch), "sha256": digest(path)})
        artifact = Artifact("origin", f"{arch}.{source.name}", identity)
        return Origin(arch, source.name, OriginFile(artifact, arch, source.name, path))
    return Origin(arch, source.name, _pretrain_job(experiment, arch, source))


def _arch_identity(arch: str) -> dict[str, Any]:
    found = ARCHS[arch]
    return {
        "name": arch,
        "module": ARCHS.module(arch),
        "version": found.version,
        "config": dict(found.config),
    }


def _download(arch: str, source: OriginSource) -> OriginDownload:
    inputs = {"arch": _arch_identity(arch), source.kind: source.place}
    return OriginDownload(Artifact.of("origin", f"{arch}.{source.name}", VERSION, inputs), arch, source)


@functools.lru_cache(maxsize=64)
def clip_bytes(arch: str) -> int:
    """Bytes of a whole CLIP in float32."""
    return 4 * sum(p.numel() for p in skeleton(ARCHS[arch]).parameters())


def open_stored(arch: str, given: str, uri: str | None) -> Any:
    """The CLIP model of an origin as `origins` names it, out of the storage `uri` where that has it.

    Raises InputError for an origin that cannot be had.
    """
    source = parse_origin(given)
    if uri is not None and source.kind in ("tag", "hub"):
        artifact, storage = _download(arch, source).artifact, Storage(uri)
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
    workers: int
    inputs: tuple[Artifact, ...] = ()

    def cost(self, sizes: Sizes) -> Cost:
        passes = TRAINING_PASSES * self.recipe.steps * self.recipe.batch_size
        return Cost(passes * forward_flops(self.arch), clip_bytes(self.arch))

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

    def files(self, last: Step, curve: list[dict[str, float]]) -> JobOutput:
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
    artifact = Artifact.of("origin", f"{arch}.{source.name}", VERSION, inputs)
    return PretrainJob(artifact, arch, recipe, streams, seed, e.pretrain.workers)
