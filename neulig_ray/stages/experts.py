"""Stage `experts`: image towers fine-tuned on one task each, under the task's frozen zero-shot head."""

import copy
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from neulig_ray.cluster.cost import TRAINING_PASSES, Cost, Sizes
from neulig_ray.cluster.jobs import JobOutput
from neulig_ray.cluster.train.job import Step, Worker
from neulig_ray.experiment.combinations import collaborator
from neulig_ray.experiment.config import Experiment
from neulig_ray.models.archs import ARCHS, FinetuneRecipe, override
from neulig_ray.models.clip import skeleton
from neulig_ray.models.tower_files import describe, read_tower, tower_bytes
from neulig_ray.models.work import forward_flops
from neulig_ray.stages.heads import FILE as HEAD_FILE
from neulig_ray.stages.origins import Origin, load_clip
from neulig_ray.stages.tasks import load_split, read_array
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.training.finetune import Epoch, finetune
from neulig_ray.training.lessons import Lesson

VERSION = 1
FILE = "expert.safetensors"


@dataclass(frozen=True)
class ExpertJob:
    """An origin's visual tower fine-tuned on one task (a TrainJob)."""

    artifact: Artifact
    arch: str
    key: str
    task: str
    origin: Artifact
    head: Artifact
    data: Artifact
    recipe: FinetuneRecipe
    seed: int
    workers: int

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        return self.origin, self.head, self.data

    def cost(self, sizes: Sizes) -> Cost:
        epoch = TRAINING_PASSES * forward_flops(self.arch)
        looks = sizes.passes(self.data, "train", self.recipe.epochs * epoch)
        return looks + Cost(bytes=tower_size(self.arch))

    def steps(self, storage: Storage, worker: Worker, checkpoint: dict[str, Any] | None) -> Iterator[Step]:
        tower = copy.deepcopy(load_clip(storage, self.origin, self.arch).visual)
        lessons = [read_lesson(storage, self.head, self.data)]
        arch, name = ARCHS[self.arch], self.artifact.label
        how = {**vars(worker), "seed": self.seed, "checkpoint": checkpoint, "name": name}
        yield from curve(finetune(tower, lessons, arch, self.recipe, **how), tower)

    def files(self, last: Step, curve: list[dict[str, float]]) -> JobOutput:
        metadata = describe(
            ARCHS[self.arch],
            "tower",
            task=self.task,
            origin=self.key.rpartition("@")[2],
            origin_fingerprint=self.origin.fingerprint,
            seed=self.seed,
            recipe=self.recipe.identity(),
        )
        info = {
            "arch": self.arch,
            "task": self.task,
            "origin": self.origin.label,
            "seed": self.seed,
            "curve": curve,
        }
        return {FILE: tower_bytes(last.model.state_dict(), metadata)}, info


def read_lesson(storage: Storage, head: Artifact, data: Artifact, share: float = 1.0) -> Lesson:
    """A task as a training takes it."""
    train, val = (load_split(storage, data, split) for split in ("train", "val"))
    return Lesson(torch.from_numpy(read_array(storage, head, HEAD_FILE)), train, val, share)


def curve(epochs: Iterable[Epoch], tower: nn.Module) -> Iterator[Step]:
    """A fine-tuning of `tower` as the cluster sees it."""
    for epoch in epochs:
        point = {
            "epoch": epoch.index,
            "loss": epoch.loss,
            "val_accuracy": epoch.val_accuracy,
            "seconds": epoch.seconds,
            "images_per_second": epoch.images_per_second,
        }
        yield Step(epoch.index == epoch.epochs, point, epoch.checkpoint, tower)


def finetune_recipe(experiment: Experiment, arch: str, task: str) -> FinetuneRecipe:
    """How the experiment fine-tunes an arch on a task."""
    recipe = override(ARCHS[arch].recipe(task), experiment.finetune)
    if experiment.protocol == "paper":
        return dataclasses.replace(recipe, keep_last=True)  # as the reference's loaders
    return recipe


def expert_job(
    experiment: Experiment, origin: Origin, task: str, data: Artifact, head: Artifact
) -> ExpertJob:
    recipe = finetune_recipe(experiment, origin.arch, task)
    inputs = {
        "origin": origin.artifact.fingerprint,
        "head": head.fingerprint,
        "data": data.fingerprint,
        "recipe": recipe.identity(),
        "seed": experiment.seed,
        "workers": experiment.finetune.workers,
        "threads": experiment.cluster.cpus_per_worker,
    }
    key = collaborator(task, origin.name)
    artifact = Artifact.of("expert", f"{origin.arch}.{key}", VERSION, inputs)
    return ExpertJob(
        artifact,
        origin.arch,
        key,
        task,
        origin.artifact,
        head,
        data,
        recipe,
        experiment.seed,
        experiment.finetune.workers,
    )


@functools.lru_cache(maxsize=64)
def tower_size(arch: str) -> int:
    """Bytes of a visual tower's state in float32."""
    return 4 * sum(tensor.numel() for tensor in skeleton(ARCHS[arch]).visual.state_dict().values())


def load_expert(storage: Storage, artifact: Artifact, arch: str) -> Mapping[str, torch.Tensor]:
    """The state of an expert's visual tower."""
    return read_tower(storage.load(artifact, FILE), ARCHS[arch], label=f"expert {artifact.label}")[0]
