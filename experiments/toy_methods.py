"""Every merging method in one protocol, on the experts of two tiny archs, n = 2 to 5.

- Command: `neulig run toy_methods`
- Cost: 29 minutes on 2 CPU cores, of which 24 for the 580 evaluations (AdaMerging and WeMoE are half of
  that), 2 for the experts; the same rows to the last digit as an earlier run in two pieces.
- Expected (2026-11-22, 2 x86-64 cores, no GPU; test split, merging accuracy, mean of the tasks, for n = 2
  to 4 of two combinations; tiny-rn with BatchNorm re-estimated where nothing else is said; * knows the
  task):

| method | tiny-vit n = 2, 3, 4, 5 | tiny-rn n = 2, 3, 4, 5 | tiny-rn, BN averaged, n = 5 |
|---|---|---|---|
| average | 61.5, 54.8, 54.1, 50.4 | 79.1, 72.8, 75.4, 70.8 | 60.5 |
| soup-greedy | 62.9, 57.9, 53.6, 52.1 | 79.1, 69.8, 74.5, 70.8 | 63.5 |
| task-arithmetic | 61.5, 55.4, 54.7, 52.0 | 78.8, 74.6, 75.3, 72.5 | 60.5 |
| ties | 60.9, 53.2, 51.8, 45.8 | 79.8, 67.1, 70.8, 58.4 | 41.9 |
| ties sum 0.3 | 55.8, 55.2, 56.6, 52.9 | 73.5, 73.8, 75.6, 67.6 | 58.3 |
| dare | 61.1, 55.5, 54.5, 51.9 | 79.6, 75.1, 75.1, 72.7 | 60.0 |
| dare ties | 62.0, 56.8, 54.8, 52.3 | 78.8, 74.5, 74.9, 72.7 | 59.4 |
| breadcrumbs | 59.8, 55.8, 54.7, 51.6 | 74.0, 72.1, 74.4, 71.5 | 60.0 |
| magmax | 63.0, 56.4, 55.1, 52.3 | 78.2, 74.7, 75.3, 72.4 | 59.1 |
| pcb | 59.0, 55.7, 56.2, 52.2 | 79.4, 74.2, 74.7, 67.5 | 59.7 |
| consensus | 61.1, 54.4, 54.9, 52.3 | 77.7, 74.9, 75.6, 72.8 | 61.0 |
| fisher | 69.3, 60.3, 59.3, 55.1 | 76.7, 68.0, 73.3, 64.4 | 60.9 |
| regmean | 71.3, 61.9, 56.4, 52.5 | 73.0, 64.6, 71.4, 66.8 | 64.7 |
| regmean-plus-plus | 69.3, 61.8, 58.4, 53.8 | 71.7, 68.7, 68.6, 64.3 | 61.3 |
| adamerging | 59.7, 54.9, 53.3, 42.8 | 75.3, 72.1, 75.5, 65.5 | 56.8 |
| adamerging task | 63.1, 58.1, 53.8, 51.6 | 77.6, 72.5, 75.7, 70.1 | 60.5 |
| adamerging-plus-plus | 57.3, 55.3, 56.4, 53.4 | 72.9, 72.7, 75.7, 70.1 | 64.7 |
| wemoe | 61.5, 53.8, 53.7, 42.4 | -, -, -, - | - |
| tsv-merge | 66.1, 58.4, 57.8, 53.4 | 79.0, 75.1, 76.1, 71.9 | 59.8 |
| tsv-merge reshape | 65.8, 57.8, 57.2, 53.9 | 76.9, 75.0, 75.1, 70.1 | 53.4 |
| iso-c | 56.5, 53.1, 53.2, 50.9 | 80.2, 75.7, 75.7, 73.2 | 62.2 |
| iso-c reshape | 56.4, 52.3, 53.1, 50.7 | 77.4, 72.7, 73.7, 70.9 | 55.8 |
| iso-cts | 59.5, 55.7, 55.9, 53.0 | 79.9, 75.6, 76.4, 73.4 | 62.0 |
| slerp | 62.3, -, -, - | 79.2, -, -, - | - |
| multi-slerp | 61.9, 55.7, 55.0, 51.2 | 79.0, 72.8, 75.5, 70.7 | 62.4 |
| karcher | 61.9, 55.7, 55.0, 51.2 | 79.0, 72.8, 75.5, 70.6 | 62.4 |
| emr * | 82.9, 80.5, 80.2, 77.4 | 92.8, 90.4, 90.2, 89.2 | 55.5 |
| tall-mask * | 87.4, 86.7, 88.2, 88.3 | 93.8, 93.3, 93.3, 92.7 | 52.9 |
| ligand sup global | 62.5, 54.9, 54.3, 50.5 | 73.2, 61.8, 66.9, 60.5 | 60.5 |
| ligand sup sample | 92.5, 92.0, 91.3, 91.0 | 96.0, 95.5, 95.2, 95.6 | 95.6 |
| ligand sup task * | 92.5, 92.5, 92.6, 92.8 | 97.0, 96.8, 96.5, 96.6 | 96.6 |
| hard-routing sup | 92.6, 91.4, 91.4, 91.4 | 96.8, 95.8, 96.0, 96.0 | 96.0 |

The ligands of these numbers were trained as the paper's are (`--ligand.input raw --ligand.average 0
--ligand.semi entropy`), one seed; today's default is another (docs/ligand.md).

Zero-shot 48.6 (tiny-vit) and 54.6 (tiny-rn), fine-tuned 93.2 and 96.6; the ensemble of embeddings has 56.4
and 53.3 at n = 5. The two combinations of an n differ by 4 points in the middle and 39 at most: do not read
small differences.

What they say. As one static model nothing comes near the experts: the best at n = 5 is 55.1 (fisher) on
tiny-vit and 73.4 (iso-cts, BatchNorm re-estimated) on tiny-rn, averaging has 50.4 and 70.8, and most
methods lie within three points of it: the experts of these tiny models are far apart. BatchNorm matters
more than the method: re-estimating is worth 2 points (regmean) to 40 (tall-mask) on tiny-rn at n = 5.
RegMean helps the ViT (71.3 against 61.5 at n = 2) and hurts the ResNet. TIES takes the smallest scaling of
its authors' grid, 0.8, and would take less; entropy minimisation (adamerging by layer, wemoe) loses 8
points at n = 5 on tiny-vit. What keeps a mask for each task (tall-mask, emr) or chooses the expert (ligand
at `sample` and `task`, hard routing) is near the experts, and needs them, or the task.

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
