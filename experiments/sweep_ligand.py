"""The ligand's search alone, over archs and numbers of collaborators: Ray Tune, one search for each cell.

- Command: `neulig search sweep_ligand --archs tiny-rn --n 2 3 4`;
  `neulig run sweep_ligand --n 5 --search.trials 64` measures the chosen ligands on test as well.

A cell is (arch, origin, n, objective). Each trial trains the ligands of all combinations of its n, stacked,
with one (learning rate, alignment weight); the settings are a seeded quasi-random list, so that the same
command gives the same choice. Trials are child runs (tag stage=search) of their cell in MLflow.
"""

from neulig_ray.cli import launch
from neulig_ray.config import Evaluation, Experiment, Ligand, Search

experiment = Experiment(
    name="sweep_ligand",
    archs=("tiny-vit", "tiny-rn"),
    tasks=("count", "letters", "mnist-5k", "signs", "textures"),
    n=(2, 3, 4, 5),
    combinations=5,
    methods=("zeroshot", "expert", "average", "hard-routing", "ligand"),
    ligand=Ligand(epochs=30),
    search=Search(trials=16, val_images=150),
    evaluation=Evaluation(granularities=("task", "sample", "global")),
)

if __name__ == "__main__":
    launch(experiment)
