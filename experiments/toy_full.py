"""All seven tasks, two to seven collaborators, both origins and pairs of mixed origins.

- Command: `neulig run toy_full`
- Cost and numbers: not measured yet; meant to stay under an hour on 2 CPU cores.
"""

from neulig_ray.cli import launch
from neulig_ray.config import Evaluation, Experiment, Ligand, Search

experiment = Experiment(
    name="toy_full",
    archs=("tiny-vit", "tiny-rn"),
    origins=("seed-0", "seed-1"),
    tasks=("count", "digits", "letters", "mnist-5k", "shapes", "signs", "textures"),
    n=(2, 3, 4, 5, 6, 7),
    combinations=2,
    mixed_origins=(2,),
    ligand=Ligand(epochs=20),
    search=Search(trials=3, val_images=100),
    evaluation=Evaluation(
        granularities=("task", "sample", "batch-first", "batch-mean", "batch-first-mixed", "global"),
        sample_images=200,
    ),
)

if __name__ == "__main__":
    launch(experiment)
