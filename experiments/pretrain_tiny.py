"""The shipped origins: two seeds of each tiny arch, pre-trained contrastively on the tasks' streams.

    neulig pretrain pretrain_tiny

The files it makes are those in neulig_ray/models/origins, byte for byte on the machine that made them.
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
