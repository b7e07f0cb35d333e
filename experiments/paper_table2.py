"""The paper's Table 2 (arXiv 2503.01268): five CLIP experts, merged and ensembled, RN50 and ViT-B-32."""

import dataclasses

from neulig_ray.cli import launch
from neulig_ray.config import Cluster, Evaluation, Experiment, Finetune, Ligand, Search

experiment = Experiment(
    name="paper_table2",
    archs=("RN50-quickgelu", "ViT-B-32-quickgelu"),
    origins=("openai",),
    tasks=("gtsrb", "cifar100", "resisc45", "cifar10", "mnist"),
    n=(5,),
    methods=(
        "zeroshot",
        "expert",
        "average",
        "task-arithmetic",
        "ties",
        "regmean",
        "adamerging:adapt_on=test",
        "wemoe:adapt_on=test",
        "ensemble-embedding",
        "ensemble-logit",
        "ensemble-probability",
        "ensemble-vote",
        "ligand",
        "hard-routing",
    ),
    protocol="paper",
    published="neulig_table2",
    finetune=Finetune(batch_size=32),
    ligand=Ligand(epochs=1000, batch_size=128),
    search=Search(trials=8, val_images=200),
    evaluation=Evaluation(
        granularities=("batch-first", "task", "sample", "batch-first-mixed", "global"), sample_images=200
    ),
    cluster=Cluster(cpus_per_worker=8, gpus_per_worker=1.0),
)

variants = {
    "pairs": dataclasses.replace(
        experiment,
        name="paper_figure3",
        n=(2,),
        methods=(
            "zeroshot",
            "expert",
            "average",
            "task-arithmetic",
            "ties",
            "regmean",
            "adamerging:adapt_on=test",
            "ligand",
            "hard-routing",
        ),
        published="neulig_figure3",
        evaluation=Evaluation(granularities=("batch-first", "task", "sample"), sample_images=200),
    )
}

if __name__ == "__main__":
    launch(experiment, variants)
