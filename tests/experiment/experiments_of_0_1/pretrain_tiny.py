"""The shipped origins: two seeds of each tiny arch, pre-trained contrastively on the tasks' streams.

- Command: `neulig pretrain pretrain_tiny`, then `python scripts/ship_origins.py neulig-storage`.
- Cost: 7 min 18 s on 2 busy CPU cores (2026-11-22).

The files are those in neulig_ray/models/origins; their recipes and zero-shot accuracies stand beside them.
"""

from neulig_ray.cli import launch
from neulig_ray.config import Experiment, Pretrain

experiment = Experiment(
    name="pretrain_tiny",
    archs=("tiny-vit", "tiny-rn"),
    origins=("seed-0", "seed-1"),
    pretrain=Pretrain(shipped=False),
)

if __name__ == "__main__":
    launch(experiment)
