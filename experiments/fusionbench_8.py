"""FusionBench's eight CLIP experts, imported: our methods on them beside FusionBench's published rows."""

import dataclasses

from neulig_ray.cli import launch
from neulig_ray.config import Cluster, Evaluation, Experiment, Ligand, Search

ARCHS = ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu")
TASKS = ("sun397", "cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")


def methods(density: float) -> tuple[str, ...]:
    """The published rows' methods with FusionBench's settings, and ours."""
    return (
        "zeroshot",
        "expert",
        "average",
        "fisher",
        "regmean:offdiagonal=0.95",
        "regmean-plus-plus:offdiagonal=0.95",
        "task-arithmetic:scaling=0.3",
        f"ties:aggregate=sum,scaling=0.3,density={density}",
        "magmax:scaling=0.6",
        "adamerging:level=task,steps=1000,clamp=false,adapt_on=test",
        "adamerging:steps=1000,clamp=false,adapt_on=test",
        "wemoe:adapt_on=test,routing=batch",
        "tsv-merge:scaling=1.0",
        "iso-c:scaling=1.5",
        "iso-cts:scaling=1.5",
        "emr",
        "ensemble-embedding",
        "ensemble-logit",
        "ensemble-probability",
        "ensemble-vote",
        "ligand",
        "hard-routing",
    )


experiment = Experiment(
    name="fusionbench_8",
    archs=("ViT-B-32-quickgelu",),
    origins=("openai",),
    tasks=TASKS,
    experts=tuple(f"{arch}.{task}@openai" for arch in ARCHS for task in TASKS),
    n=(8,),
    methods=methods(density=0.1991),
    published="fusionbench_8",
    ligand=Ligand(epochs=30),
    search=Search(trials=4, val_images=200),
    evaluation=Evaluation(granularities=("task", "sample", "global"), sample_images=200),
    cluster=Cluster(cpus_per_worker=8, gpus_per_worker=1.0),
)

variants = {
    "vit-b-16": dataclasses.replace(
        experiment, name="fusionbench_8_b16", archs=("ViT-B-16-quickgelu",), methods=methods(density=0.1991)
    ),
    "vit-l-14": dataclasses.replace(
        experiment, name="fusionbench_8_l14", archs=("ViT-L-14-quickgelu",), methods=methods(density=0.1995)
    ),
}

if __name__ == "__main__":
    launch(experiment, variants)
