"""What the missing artifacts of a plan will cost: work and bytes, counted before anything is started.

Work is floating-point operations of the image towers: forward passes (models/work.py) times images times
epochs, a training step being three forward passes. Left out are decoding, the heads' text towers, the
training of ligands (linear layers on stored embeddings), and merging itself, which is reading memory.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import skeleton
from neulig_ray.models.work import forward_flops
from neulig_ray.pipeline.plan import Plan
from neulig_ray.stages import evaluation_jobs as measurements
from neulig_ray.stages.evaluations import Evaluation
from neulig_ray.stages.ligands import Trial
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import Task, find_task
from neulig_ray.tasks._base import SPLITS, Protocol
from neulig_ray.tasks._files import stored_size
from neulig_ray.tasks._protocols import MOST_VAL, VAL_SHARE

GPU_FLOPS: Final = 6e13  # a second, sustained: a fifth of an A100's peak in bfloat16
GPU_FLOAT32_FLOPS: Final = 1.2e13  # the same of float32, without gradients: three fifths of its peak
CPU_FLOPS: Final = 5e10  # a second and core, sustained, float32
TRAINING: Final = 3  # forward passes that a step costs: forward, and twice that backward
EVALUATING: Final = ("statistics", "evaluations")  # stages whose jobs may share a GPU
# FLOP/s of the stages whose towers move to a GPU where their workers have one; training is in bfloat16 there
# unless it is told to be in float32.
ON_GPU: Final = {
    "origins": GPU_FLOPS,
    "sources": GPU_FLOPS,
    "experts": GPU_FLOPS,
    "embeddings": GPU_FLOAT32_FLOPS,
    "statistics": GPU_FLOAT32_FLOPS,
    "evaluations": GPU_FLOAT32_FLOPS,
}


@dataclass
class Cost:
    """Of one stage's missing artifacts. `gpu`: FLOP/s of the GPU that it has, or 0.

    `unknown`: pieces that could not be counted.
    """

    flops: float = 0.0
    bytes: int = 0
    gpu: float = 0.0
    unknown: int = 0

    @property
    def hours(self) -> float:
        """GPU hours, or hours of one CPU core."""
        return self.flops / (self.gpu or CPU_FLOPS) / 3600


def split_sizes(task: Task, protocol: Protocol, views: int = 1) -> dict[str, int] | None:
    """Images of each split of a task that is read from files, as it will be stored; None where not known.

    `views` of protocol `paper`: how often each test image is stored, 0 counting as once.
    """
    official = task.files.num_images if task.files else {}
    if "train" not in official or "test" not in official:
        return None
    train, val, test = official["train"], official.get("val"), official["test"]
    if protocol == "paper":
        assert task.files is not None
        pool, held_out = train + (val or 0), task.files.held_out or test
        half = (pool - held_out) // 2
        return {"train": half, "val": held_out, "test": (pool - held_out - half) * max(1, views)}
    if val is None:
        val = min(MOST_VAL, max(1, round(VAL_SHARE * train)))
        train -= val
    return {"train": train, "val": val, "test": test}


def estimate(plan: Plan, storage: Storage) -> dict[str, Cost]:
    """Stage -> what its missing artifacts cost, by the names of `Plan.artifacts`."""
    counter, cluster = _Counter(plan, storage), plan.experiment.cluster
    found: dict[str, Cost] = {}
    for stage, artifacts in plan.artifacts().items():
        gpus = cluster.evaluation_gpus if stage in EVALUATING else cluster.gpus_per_worker
        rate = ON_GPU.get(stage, 0.0)
        if stage in ("sources", "experts") and plan.experiment.finetune.precision == "float32":
            rate = GPU_FLOAT32_FLOPS
        cost = Cost(gpu=rate if gpus else 0.0)
        for artifact in artifacts:
            if not storage.exists(artifact):
                counter.add(cost, stage, artifact)
        found[stage] = cost
    return found


def work(plan: Plan, storage: Storage, stage: str) -> dict[str, float]:
    """Fingerprint -> floating-point operations of what is missing of a stage; its inputs are known."""
    counter, found = _Counter(plan, storage), {}
    for artifact in plan.artifacts()[stage]:
        if not storage.exists(artifact):
            cost = Cost()
            counter.add(cost, stage, artifact)
            found[artifact.fingerprint] = cost.flops
    return found


class _Counter:
    """Adds up artifacts, which it knows by their fingerprints."""

    def __init__(self, plan: Plan, storage: Storage) -> None:
        self._plan = plan
        self._storage = storage
        self._sizes: dict[str, dict[str, int] | None] = {}
        self._tasks = {job.artifact.fingerprint: job for job in plan.all_tasks}
        self._origins = {origin.artifact.fingerprint: origin for origin in plan.all_origins}
        self._experts = {
            job.artifact.fingerprint: job for job in (*plan.experts, *plan.sources.experts.values())
        }
        self._imported = {expert.artifact.fingerprint: expert for expert in plan.imported}
        self._embeddings = {job.artifact.fingerprint: job for job in plan.embeddings}
        self._trials = {trial.artifact.fingerprint: trial for cell in plan.cells for trial in cell.trials}
        self._statistics = {job.artifact.fingerprint: job for job in plan.statistics}
        self._evaluations = {e.job.artifact.fingerprint: e for e in plan.evaluations}
        self._by_stage: Mapping[str, Callable[[Cost, str], None]] = {
            "tasks": self._task,
            "sources": self._expert,
            "origins": self._origin,
            "experts": self._expert,
            "embeddings": self._embedding,
            "search": self._trial,
            "statistics": self._measuring,
            "evaluations": self._evaluation,
        }

    def add(self, cost: Cost, stage: str, artifact: Artifact) -> None:
        if stage in self._by_stage:
            self._by_stage[stage](cost, artifact.fingerprint)

    def sizes(self, data: Artifact) -> dict[str, int] | None:
        """Images of each split of a prepared task, or of one that will be."""
        if data.fingerprint not in self._sizes:
            job = self._tasks[data.fingerprint]
            if self._storage.exists(data):
                found = self._storage.manifest(data)["info"]["images"]
            else:
                found = split_sizes(
                    find_task(job.arguments["entry"]), job.arguments["protocol"], job.arguments["views"]
                )
            self._sizes[data.fingerprint] = found
        return self._sizes[data.fingerprint]

    def _images(self, cost: Cost, data: Artifact, split: str, most: int | None = None) -> int:
        sizes = self.sizes(data)
        if sizes is None:
            cost.unknown += 1
            return 0
        return min(sizes[split], most) if most else sizes[split]

    def _task(self, cost: Cost, fingerprint: str) -> None:
        job = self._tasks[fingerprint]
        task, sizes = find_task(job.arguments["entry"]), self.sizes(job.artifact)
        if sizes is None:
            cost.unknown += 1
            return
        largest = job.arguments["size"]
        side = stored_size(task, largest)
        native = math.prod((task.files and task.files.native) or (largest, largest))
        shown = job.arguments["protocol"] == "paper" and job.arguments["views"]
        for split in SPLITS:
            fitted = largest if shown and split == "test" else side
            cost.bytes += sizes[split] * 3 * (fitted * fitted if fitted else native)

    def _origin(self, cost: Cost, fingerprint: str) -> None:
        origin = self._origins[fingerprint]
        if origin.path is not None:
            cost.bytes += origin.path.stat().st_size if origin.path.is_file() else clip_bytes(origin.arch)
            return
        cost.bytes += clip_bytes(origin.arch)
        if origin.job is not None:
            cost.flops += TRAINING * origin.job.cost(self._storage)

    def _expert(self, cost: Cost, fingerprint: str) -> None:
        if fingerprint in self._imported:
            cost.bytes += tower_bytes(self._imported[fingerprint].arch)
        if fingerprint in self._experts:
            job = self._experts[fingerprint]
            images = self._images(cost, job.data, "train")
            cost.flops += TRAINING * job.recipe.epochs * images * forward_flops(job.arch)
            cost.bytes += tower_bytes(job.arch)

    def _embedding(self, cost: Cost, fingerprint: str) -> None:
        arguments = self._embeddings[fingerprint].arguments
        sizes = self.sizes(arguments["data"])
        if sizes is None:
            cost.unknown += 1
            return
        images = sum(sizes[split] for split in SPLITS)
        cost.flops += images * forward_flops(arguments["arch"])
        cost.bytes += 4 * images * ARCHS[arguments["arch"]].config["embed_dim"]

    def _trial(self, cost: Cost, fingerprint: str) -> None:
        trial: Trial = self._trials[fingerprint]
        data, limit = self._plan.models[trial.arch].data, self._plan.experiment.search.val_images
        for combination in trial.combinations:
            for key in combination:
                images = self._images(cost, data[key.partition("@")[0]], "val", limit)
                cost.flops += images * forward_flops(trial.arch)
            width = len(combination) * ARCHS[trial.arch].config["embed_dim"]
            cost.bytes += 4 * (width + 1) * len(combination)

    def _measuring(self, cost: Cost, fingerprint: str) -> None:
        """Passes of an expert over some train images; how large its statistics are is the method's affair."""
        arguments = self._statistics[fingerprint].arguments
        images = int(arguments["options"].get("examples", 0))
        cost.flops += TRAINING * images * forward_flops(arguments["arch"])

    def _evaluation(self, cost: Cost, fingerprint: str) -> None:
        evaluation: Evaluation = self._evaluations[fingerprint]
        job = evaluation.job
        spec: MethodSpec = job.arguments["spec"]
        models, settings = job.arguments["models"], job.arguments["settings"]
        passes = 0.0
        if "granularity" in settings:
            limit = settings.get("sample_images")
            orders = settings.get("order_seeds", 1) if settings["granularity"] in measurements.MIXED else 1
            passes = orders * sum(self._images(cost, models.data[t], "test", limit) for t in evaluation.tasks)
        elif job.arguments["measure"] is measurements.merge:
            passes = self._merging(cost, spec, models.data, evaluation, settings)
        cost.flops += passes * forward_flops(models.arch)

    def _merging(
        self,
        cost: Cost,
        spec: MethodSpec,
        data: Mapping[str, Artifact],
        evaluation: Evaluation,
        settings: Mapping[str, Any],
    ) -> float:
        """Forward passes of one merge: its training, its choices on val, the test split.

        Where the tower has BatchNorm, all but the training is done twice, once with statistics made anew.
        """
        tasks = evaluation.tasks
        refuses = spec.method.refuses(_tower(evaluation.common["arch"])) is not None
        mixed = "," in str(evaluation.common["origin"])
        if refuses or (spec.method.needs_base and mixed):
            return 0.0
        tries = math.prod(map(len, spec.grid.values())) if spec.grid else 0
        rules = 2 if _has_batchnorm(evaluation.common["arch"]) else 1
        val = tries and sum(self._images(cost, data[t], "val", settings["val_images"]) for t in tasks)
        passes = float(rules * (tries * val + sum(self._images(cost, data[t], "test") for t in tasks)))
        passes += (rules - 1) * (tries + 1) * len(tasks) * settings["batchnorm_images"]
        options = spec.method.resolve(dict(spec.options))
        if {"steps", "batch_size"} <= options.keys():
            passes += TRAINING * options["steps"] * options["batch_size"] * len(tasks)
        return passes


@functools.lru_cache(maxsize=64)
def clip_bytes(arch: str) -> int:
    """Bytes of a whole CLIP in float32."""
    return 4 * sum(p.numel() for p in skeleton(ARCHS[arch]).parameters())


@functools.lru_cache(maxsize=64)
def tower_bytes(arch: str) -> int:
    """Bytes of a visual tower's state in float32."""
    return 4 * sum(tensor.numel() for tensor in _tower(arch).state_dict().values())


@functools.lru_cache(maxsize=64)
def _tower(arch: str) -> Any:
    return skeleton(ARCHS[arch]).visual


@functools.lru_cache(maxsize=64)
def _has_batchnorm(arch: str) -> bool:
    return any(name.endswith("running_mean") for name in _tower(arch).state_dict())
