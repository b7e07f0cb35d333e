"""TALL-masks' twenty CLIP experts, imported: our methods on them beside the published rows of that family."""

import dataclasses

from neulig_ray.cli import launch
from neulig_ray.config import Cluster, Evaluation, Experiment, Ligand, Search

ARCHS = ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu")
EIGHT = ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "svhn", "sun397")
FOURTEEN = (*EIGHT, "stl10", "oxford-iiit-pet", "flowers102", "cifar100", "pcam", "fer2013")
TWENTY = (*FOURTEEN, "cifar10", "food101", "fashion-mnist", "rendered-sst2", "emnist-digits", "kmnist")


def methods(density: float) -> tuple[str, ...]:
    """`density` of the visual tower: what TIES with 0.2 of the published vector keeps of it."""
    return (
        "zeroshot",
        "expert",
        "average",
        "task-arithmetic",
        f"ties:density={density}",
        "consensus",
        "tall-mask",
        "emr",
        "tsv-merge",
        "iso-c",
        "iso-cts",
        "ensemble-embedding",
        "ensemble-logit",
        "ensemble-probability",
        "ensemble-vote",
        "ligand",
        "hard-routing",
    )


experiment = Experiment(
    name="tall_20",
    archs=("ViT-B-32-quickgelu",),
    origins=("openai",),
    tasks=TWENTY,
    experts=tuple(f"{arch}.{task}@openai" for arch in ARCHS for task in TWENTY),
    n=(20,),
    methods=methods(density=0.258),
    alignment=("sup",),
    published="tall_20",
    ligand=Ligand(epochs=10),
    search=Search(trials=4, val_images=100),
    evaluation=Evaluation(granularities=("task", "sample", "global"), sample_images=200),
    cluster=Cluster(cpus_per_worker=8, gpus_per_worker=1.0),
)

_eight = dataclasses.replace(experiment, tasks=EIGHT, n=(8,))
_large = methods(density=0.225)
variants = {
    "eight": dataclasses.replace(_eight, name="tall_8"),
    "vit-l-14": dataclasses.replace(
        experiment, name="tall_20_l14", archs=("ViT-L-14-quickgelu",), methods=_large
    ),
    "eight-vit-l-14": dataclasses.replace(
        _eight, name="tall_8_l14", archs=("ViT-L-14-quickgelu",), methods=_large
    ),
}

if __name__ == "__main__":
    launch(experiment, variants)
