"""Every merging method in one protocol, on the experts of two tiny archs, n = 2 to 5.

- Command: `neulig run toy_methods`
- Cost and numbers: being measured.

Two seeded combinations for each n of 2 to 4, one for n = 5. Scalings and mask thresholds are chosen on val,
for each combination by itself. Steps: adamerging 300 (the authors: 500), wemoe 300 (1000), each of 16
unlabelled val images of every task; statistics over 256 train images (fisher 128).
"""

from neulig_ray.cli import launch
from neulig_ray.config import Evaluation, Experiment, Ligand, Search

experiment = Experiment(
    name="toy_methods",
    archs=("tiny-vit", "tiny-rn"),
    tasks=("count", "letters", "mnist-5k", "signs", "textures"),
    n=(2, 3, 4, 5),
    combinations=2,
    methods=(
        "zeroshot",
        "expert",
        "average",
        "soup-greedy",
        "task-arithmetic",
        "ties",
        "ties:aggregate=sum,scaling=0.3",
        "dare",
        "dare:then=ties",
        "breadcrumbs",
        "magmax",
        "pcb",
        "emr",
        "tall-mask",
        "consensus",
        "fisher:examples=128",
        "regmean",
        "regmean-plus-plus",
        "adamerging:steps=300",
        "adamerging:steps=300,level=task",
        "adamerging-plus-plus:steps=300",
        "wemoe:steps=300",
        "tsv-merge",
        "tsv-merge:convolutions=reshape",
        "iso-c",
        "iso-c:convolutions=reshape",
        "iso-cts",
        "slerp",
        "multi-slerp",
        "karcher",
        "ensemble-embedding",
        "ensemble-logit",
        "ensemble-probability",
        "ensemble-vote",
        "ligand",
        "hard-routing",
    ),
    ligand=Ligand(epochs=30),
    search=Search(trials=4, val_images=200),
    evaluation=Evaluation(
        granularities=("task", "sample", "global"), sample_images=200, batchnorm_images=240
    ),
)

if __name__ == "__main__":
    launch(experiment)
