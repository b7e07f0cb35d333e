"""Stage `joint`: one network fine-tuned on all tasks of a combination, with labels: the bound for merging."""

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from neulig_ray.cluster.cost import TRAINING_PASSES, Cost, Sizes
from neulig_ray.cluster.jobs import JobOutput
from neulig_ray.cluster.train.job import Step, Worker
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.config import Experiment
from neulig_ray.ligand.data import Combination, combination_key, task_of
from neulig_ray.models.archs import ARCHS, FinetuneRecipe
from neulig_ray.models.tower_files import State, describe, read_tower, tower_bytes
from neulig_ray.models.work import forward_flops
from neulig_ray.stages.experts import curve, finetune_recipe, read_lesson, tower_size
from neulig_ray.stages.origins import load_clip
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.training.finetune import finetune

VERSION = 1
FILE = "joint.safetensors"


@dataclass(frozen=True)
class JointJob:
    """An origin's visual tower fine-tuned on the tasks of a combination at once (a TrainJob).

    `epochs`: how often each task's expert sees its train images; so does this network. The recipe's own are
    the most of them: a task with fewer shows a part of its images in each. `heads`, `data` and `epochs` are
    in the order of the combination.
    """

    artifact: Artifact
    arch: str
    combination: Combination
    origin: Artifact
    heads: tuple[Artifact, ...]
    data: tuple[Artifact, ...]
    epochs: tuple[int, ...]
    recipe: FinetuneRecipe
    seed: int
    workers: int

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        return self.origin, *self.heads, *self.data

    def cost(self, sizes: Sizes) -> Cost:
        step = TRAINING_PASSES * forward_flops(self.arch)
        looks = zip(self.data, self.epochs, strict=True)
        passes = (sizes.passes(data, "train", epochs * step) for data, epochs in looks)
        return sum(passes, Cost(bytes=tower_size(self.arch)))

    def steps(self, storage: Storage, worker: Worker, checkpoint: dict[str, Any] | None) -> Iterator[Step]:
        tower = copy.deepcopy(load_clip(storage, self.origin, self.arch).visual)
        lessons = [
            read_lesson(storage, head, data, epochs / self.recipe.epochs)
            for head, data, epochs in zip(self.heads, self.data, self.epochs, strict=True)
        ]
        arch, name = ARCHS[self.arch], self.artifact.label
        how = {**vars(worker), "seed": self.seed, "checkpoint": checkpoint, "name": name}
        yield from curve(finetune(tower, lessons, arch, self.recipe, **how), tower)

    def files(self, last: Step, curve: list[dict[str, float]]) -> JobOutput:
        tasks = list(map(task_of, self.combination))
        metadata = describe(
            ARCHS[self.arch],
            "tower",
            tasks=tasks,
            origin_fingerprint=self.origin.fingerprint,
            seed=self.seed,
            recipe=self.recipe.identity(),
        )
        info = {
            "arch": self.arch,
            "tasks": tasks,
            "origin": self.origin.label,
            "seed": self.seed,
            "curve": curve,
        }
        return {FILE: tower_bytes(last.model.state_dict(), metadata)}, info


def joint_job(experiment: Experiment, models: ArchModels, combination: Combination) -> JointJob:
    """The network for experts of one origin; whether those are fine-tuned here or imported is all the same.

    Its images are those that its experts see, and so are its steps.
    """
    known = models.restricted(combination)
    (origin,) = known.origins.values()
    heads = tuple(known.heads[key] for key in combination)
    data = tuple(known.data[task_of(key)] for key in combination)
    recipes = [finetune_recipe(experiment, models.arch, task_of(key)) for key in combination]
    epochs = tuple(recipe.epochs for recipe in recipes)
    recipe = dataclasses.replace(recipes[0], epochs=max(epochs))
    inputs = {
        "origin": origin,
        "heads": heads,
        "data": data,
        "epochs": epochs,
        "recipe": recipe.identity(),
        "seed": experiment.seed,
        "workers": experiment.finetune.workers,
        "threads": experiment.cluster.cpus_per_worker,
    }
    artifact = Artifact.of("joint", f"{models.arch}.{combination_key(combination)}", VERSION, inputs)
    return JointJob(
        artifact,
        models.arch,
        combination,
        origin,
        heads,
        data,
        epochs,
        recipe,
        experiment.seed,
        experiment.finetune.workers,
    )


def load_joint(storage: Storage, artifact: Artifact, arch: str) -> State:
    """The state of a network's visual tower."""
    return read_tower(storage.load(artifact, FILE), ARCHS[arch], label=f"joint {artifact.label}")[0]
