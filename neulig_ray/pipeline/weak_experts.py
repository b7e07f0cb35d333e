"""Warnings of experts that have learned nothing: whatever is made of them, the table says little."""

from collections.abc import Iterator

from neulig_ray.errors import TrainingDiverged
from neulig_ray.evaluation.metrics import accuracy
from neulig_ray.evaluation.weakness import weakness
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.combinations import origin_of
from neulig_ray.ligand.data import LigandData, task_of
from neulig_ray.models.logits import head_logits
from neulig_ray.pipeline.plan import Plan
from neulig_ray.stages.embeddings import load_embeddings
from neulig_ray.stages.heads import FILE as HEAD_FILE
from neulig_ray.stages.tasks import read_array
from neulig_ray.storage.storage import Storage


def weak_experts(plan: Plan, storage: Storage) -> list[str]:
    """A sentence for each expert that is no better on val than its origin is without training, or at chance.

    Experts that were not made, or have no accuracy, are told with what failed.
    """
    imported = {expert.artifact.fingerprint for expert in plan.imported}
    found = []
    every = [(seed, arch, models) for seed, own in plan.models.items() for arch, models in own.items()]
    looked: set[str] = set()
    for seed, arch, models in every:
        beside = f" (seed {seed})" if len(plan.models) > 1 else ""
        for key, reason in _weak(models, storage):
            if models.experts[key].fingerprint in looked:  # an imported one stands beside every seed
                continue
            looked.add(models.experts[key].fingerprint)
            if models.experts[key].fingerprint in imported:
                remedy = "look whether it is an expert of this task, arch and origin"
            else:
                remedy = "look at its curve; finetune.epochs and finetune.learning_rate change it"
            found.append(f"expert {arch}.{key}{beside} is {reason}: {remedy}")
    return found


def _weak(models: ArchModels, storage: Storage) -> Iterator[tuple[str, str]]:
    for key in models.experts:
        known, task = models.restricted([key]), task_of(key)
        if not all(map(storage.exists, (*known.embeddings.values(), known.heads[key], known.data[task]))):
            continue
        val = LigandData(
            load_embeddings(storage, known.embeddings, "val"),
            {task: read_array(storage, known.data[task], "val-labels.npy")},  # the images are not needed
            {key: read_array(storage, known.heads[key], HEAD_FILE)},
        )
        try:
            reached, before = (_accuracy(model, key, val) for model in (key, origin_of(key)))
        except TrainingDiverged:
            continue
        if reason := weakness(reached, before, val.label(task).numpy(), len(val.head(key))):
            yield key, reason


def _accuracy(model: str, key: str, val: LigandData) -> float:
    task = task_of(key)
    scores = head_logits(val.embedding(model, task), val.head(key))
    return accuracy(scores, val.label(task), f"{model} on {task}")
