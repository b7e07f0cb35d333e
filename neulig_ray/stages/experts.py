"""Stages `heads` and `experts`: the frozen zero-shot classifiers, and the towers fine-tuned under them."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from neulig_ray.cluster.jobs import Job, Made
from neulig_ray.cluster.train.job import Step, Worker
from neulig_ray.experiment.combinations import collaborator
from neulig_ray.experiment.config import Experiment
from neulig_ray.models.archs import ARCHS, FinetuneRecipe
from neulig_ray.models.heads import zero_shot_head
from neulig_ray.models.tower_files import describe, read_tower, tower_bytes
from neulig_ray.models.work import forward_flops
from neulig_ray.stages.origins import Origin, load_clip
from neulig_ray.stages.recipe_changes import override
from neulig_ray.stages.tasks import array_bytes, load_split, read_array
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import Task
from neulig_ray.training.finetune import finetune

VERSION = 1
FILE = "expert.safetensors"
HEAD_FILE = "head.npy"


def head_job(origin: Origin, task: Task) -> Job:
    """The zero-shot head (C, d) of a task, written by the origin's text tower.

    The job carries the names and templates: a task in a folder is not known on other nodes.
    """
    texts = {"class_names": task.class_names, "templates": task.templates}
    inputs = {"origin": origin.artifact.fingerprint, **texts}
    artifact = Artifact.of("head", f"{origin.arch}.{task.name}@{origin.name}", VERSION, inputs)
    return Job(
        artifact,
        _make_head,
        {"origin": origin.artifact, "arch": origin.arch, "task": task.name, **texts},
        inputs=(origin.artifact,),
    )


def _make_head(
    storage: Storage,
    origin: Artifact,
    arch: str,
    task: str,
    class_names: tuple[str, ...],
    templates: tuple[str, ...],
) -> Made:
    head = zero_shot_head(load_clip(storage, origin, arch), ARCHS[arch], class_names, templates)
    return {HEAD_FILE: array_bytes(head.numpy())}, {"arch": arch, "task": task, "class_names": class_names}


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

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        return self.origin, self.head, self.data

    def cost(self, storage: Storage) -> float:
        images = storage.manifest(self.data)["info"]["images"]["train"]
        return float(self.recipe.epochs * images * forward_flops(self.arch))

    def steps(self, storage: Storage, worker: Worker, checkpoint: dict[str, Any] | None) -> Iterator[Step]:
        tower = copy.deepcopy(load_clip(storage, self.origin, self.arch).visual)
        for epoch in finetune(
            tower,
            torch.from_numpy(read_array(storage, self.head, HEAD_FILE)),
            load_split(storage, self.data, "train"),
            load_split(storage, self.data, "val"),
            ARCHS[self.arch],
            self.recipe,
            seed=self.seed,
            **vars(worker),
            checkpoint=checkpoint,
            name=self.artifact.label,
        ):
            point = {
                "epoch": epoch.index,
                "loss": epoch.loss,
                "val_accuracy": epoch.val_accuracy,
                "seconds": epoch.seconds,
                "images_per_second": epoch.images_per_second,
            }
            yield Step(epoch.index == epoch.epochs, point, epoch.checkpoint, tower)

    def files(self, last: Step, curve: list[dict[str, float]]) -> Made:
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


def expert_job(
    experiment: Experiment, origin: Origin, task: str, data: Artifact, head: Artifact
) -> ExpertJob:
    recipe = override(ARCHS[origin.arch].recipe(task), experiment.finetune)
    if experiment.protocol == "paper":
        recipe = dataclasses.replace(recipe, keep_last=True)  # as the reference's loaders
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
    return ExpertJob(artifact, origin.arch, key, task, origin.artifact, head, data, recipe, experiment.seed)


def load_expert(storage: Storage, artifact: Artifact, arch: str) -> Mapping[str, torch.Tensor]:
    """The state of an expert's visual tower."""
    return read_tower(storage.load(artifact, FILE), ARCHS[arch], label=f"expert {artifact.label}")[0]
