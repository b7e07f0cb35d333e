"""The whole pipeline in a minute: one arch, two tasks, one pair of experts.

- Command: `neulig run smallest`
- Cost: under 90 s on 2 CPU cores. It is what the fault tests run.

Its experts are trained for two epochs only: the numbers say nothing.
"""

from neulig_ray.cli import launch
from neulig_ray.config import Evaluation, Experiment, Finetune, Ligand, Search

experiment = Experiment(
    name="smallest",
    archs=("tiny-rn",),
    tasks=("digits", "textures"),
    n=(2,),
    finetune=Finetune(epochs=2),
    ligand=Ligand(epochs=3),
    search=Search(trials=3, val_images=100),
    evaluation=Evaluation(sample_images=200, order_seeds=5),
)

if __name__ == "__main__":
    launch(experiment)
