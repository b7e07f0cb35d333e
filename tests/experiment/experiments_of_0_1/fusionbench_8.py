"""FusionBench's eight CLIP experts, imported: our methods on them beside FusionBench's published rows.

- Commands, the import once:

      while read task name; do
        neulig import hf-hub:tanganke/clip-vit-base-patch32_$name --arch ViT-B-32-quickgelu --task $task \\
          --origin openai --storage ./neulig-storage
      done <<< "sun397 sun397
      cars stanford-cars
      resisc45 resisc45
      eurosat eurosat
      svhn svhn
      gtsrb gtsrb
      mnist mnist
      dtd dtd"
      neulig run fusionbench_8

  `--vit-b-16` and `--vit-l-14` take the experts of clip-vit-base-patch16_* and clip-vit-large-patch14_*
  (experiments of their own names).
- Needs: eight experts (2.6 GiB), OpenAI's checkpoint, the data of eight tasks (17 GiB to download, 14 of
  them SUN397), 27 GiB of storage.
- Cost, estimated by `--dry-run` and not measured: 0.6 GPU hours for embeddings and as many for the
  merged models, most of them choices on val and the adaptation of AdaMerging and WEMoE; 0.6 CPU core hours
  for the search.
- Expected: the published numbers below; ours have not been measured.

Published means of eight tasks in percent (FusionBench's documentation):

|                      | ViT-B-32 | ViT-B-16 | ViT-L-14 |
|----------------------|----------|----------|----------|
| zero-shot, experts   | 48.2, 90.3 |        | 64.6, 94.3 |
| average              | 66.5     | 72.3     | 80.0     |
| Fisher               | 70.6     | 74.2     | 80.3     |
| RegMean, RegMean++   | 82.4, 84.4 | 86.0, 87.2 | 90.4, 91.0 |
| task arithmetic, 0.3 | 68.0     | 77.1     | 80.7     |
| TIES, sum, 0.3       | 72.2     | 77.5     | 84.0     |
| MagMax, 0.6          | 71.1     |          |          |
| AdaMerging           | 82.6     | 85.0     | 91.0     |
| WEMoE                | 89.2     | 91.5     | 93.8     |
| Iso-C, Iso-CTS, 1.5  | 82.8, 82.7 |        |          |

Checkpoint families are never mixed: the imported experts' sources must tell this one family. FusionBench
merges transformers' CLIPVisionModel, which ends before the projection: TIES keeps 0.2 of 87,456,000 entries
there. Ours has the projection too, the origin's, whose task vector is zero, so the density that keeps the
same entries is 0.1991 (0.1995 of ViT-L-14).
"""

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
