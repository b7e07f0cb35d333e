"""TALL-masks' twenty CLIP experts, imported: our methods on them beside the published rows of that family.

- Commands: import each `nonlinear_finetuned.pt` of hub nik-dim/tall_masks, downloaded to ./tall, under its
  task's name here, once:

      neulig import tall/ViT-B-32/SUN397Val/nonlinear_finetuned.pt --arch ViT-B-32-quickgelu --task sun397 \\
        --origin openai --storage ./neulig-storage
      ...
      neulig run tall_20

  `--eight` takes the first eight tasks, `--vit-l-14` and `--eight-vit-l-14` the experts of ViT-L-14
  (experiments of their own names). EMNIST is `emnist-digits`.
- Needs: twenty experts (6.5 GiB as ViT-B-32), OpenAI's checkpoint, the data of twenty tasks (34 GiB to
  download, 14 of them SUN397, and one data set of unknown size), 108 GiB of storage.
- Cost, estimated by `--dry-run` and not measured: 6 GPU hours for embeddings, 0.6 for the merged models,
  0.4 CPU core hours for the search.
- Expected: the published numbers below, all transcribed from notes on the papers; ours have not been
  measured.

Published means in percent, 8 and 20 tasks (single-task 92.8 with ViT-B-32 and 95.8 with ViT-L-14, 8 tasks):

|                 | ViT-B-32 8 | ViT-B-32 20 | ViT-L-14 8 | ViT-L-14 20 |
|-----------------|------------|-------------|------------|-------------|
| average         | 66.3       |             | 79.56      | 71.60       |
| task arithmetic | 70.79      | 60.52       | 84.93      | 74.01       |
| Consensus TA    | 75.03      | 65.43       | 86.34      | 79.00       |
| TSV-M           | 85.86      |             | 93.0       | 87.7        |
| Iso-CTS         |            |             | 94.7       | 90.1        |

DTD's test accuracy is 98 % for this family's experts and its val accuracy 79 %, most likely because val
images were trained on. That lifts every mean of 8 tasks by about two points: compare within the family.
Families are never mixed: the imported experts' sources must tell this one.

TIES' published density of 0.2 counts the frozen text entries of the vector that was merged there: of ViT-B-32
113,448,705 entries, 25.6 million of which never change. The 22,689,741 that it keeps are all in the visual
tower's 87,849,216: 0.258 of it, which is the density here (0.225 of ViT-L-14).
"""

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
