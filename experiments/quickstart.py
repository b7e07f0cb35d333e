"""Merging against ensembling on two tiny archs and five tasks: the first thing to run.

neulig run quickstart
neulig run quickstart --archs tiny-rn          one arch
"""

from neulig_ray.cli import launch
from neulig_ray.config import Evaluation, Experiment, Ligand, Search

experiment = Experiment(
    name="quickstart",
    archs=("tiny-vit", "tiny-rn"),
    tasks=("count", "letters", "mnist-5k", "signs", "textures"),
    n=(2, 5),
    combinations=5,
    ligand=Ligand(epochs=30),
    search=Search(trials=6, val_images=200),
    evaluation=Evaluation(sample_images=200),
)

if __name__ == "__main__":
    launch(experiment)
