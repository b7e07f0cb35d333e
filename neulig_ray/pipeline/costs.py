"""What the missing artifacts of a plan will cost: work and bytes, counted before anything is started.

Work is floating-point operations of the image towers: forward passes (models/work.py) times images times
epochs, a training step being three forward passes. Left out are decoding, the heads' text towers, the
training of ligands (linear layers on stored embeddings), and merging itself, which is reading memory.
"""

from dataclasses import dataclass
from typing import Final

from neulig_ray.cluster.cost import Cost
from neulig_ray.cluster.jobs import is_done
from neulig_ray.pipeline.plan import Plan
from neulig_ray.pipeline.stages import GPU_FLOAT32_FLOPS, STAGES
from neulig_ray.storage.storage import Storage

CPU_FLOPS: Final = 5e10  # a second and core, sustained, float32


@dataclass(frozen=True)
class StageCost:
    """Of one stage's missing artifacts. `gpu`: FLOP/s of the GPU that it has, or 0."""

    cost: Cost
    gpu: float = 0.0

    @property
    def hours(self) -> float:
        """GPU hours, or hours of one CPU core."""
        return self.cost.flops / (self.gpu or CPU_FLOPS) / 3600


def estimate(plan: Plan, storage: Storage) -> dict[str, StageCost]:
    """Stage -> what its missing artifacts cost."""
    sizes = plan.sizes(storage)
    found = {}
    for stage in STAGES:
        missing = [job for job in stage.jobs(plan) if not is_done(storage, job)]
        rate = stage.flops
        if stage.finetunes and plan.experiment.finetune.precision == "float32":
            rate = min(rate, GPU_FLOAT32_FLOPS)
        gpu = rate if stage.gpus(plan.experiment.cluster) else 0.0
        found[stage.name] = StageCost(sum((job.cost(sizes) for job in missing), Cost()), gpu)
    return found
