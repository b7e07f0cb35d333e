"""Two to seven collaborators on three CLIP archs, and pairs of experts from different foundation models.

- Command: `neulig run paper_scaling`, or one arch: `neulig run paper_scaling --archs RN50-quickgelu`.
- Needs: the data of the paper's seven tasks, six checkpoints (8.6 GiB to download in all), 86 GiB of
  storage, a cluster with a GPU and 8 CPUs for each worker.
- Cost, estimated by `--dry-run` and not measured: 36 GPU hours for 42 experts and their embeddings, 142
  for the merged models' evaluation, most of them ViT-L-14's, and 250 CPU core hours for the search. Begin
  with RN50, or with `--combinations 1`.
- Expected: no numbers are published to hold this against. The paper claims up to seven collaborators without
  giving them, and its code says of diverse origins that earlier methods are near chance there. Ours have not
  been measured; on the toy suite (experiments/toy_full.py) merging keeps up from n = 3 to 7 within one
  origin, and not over two.

Seven seeded combinations for each n, so that every task occurs equally often. The second origin of each arch
is one that has its activation, as merging over two activations would mean nothing: LAION-400M for ViT-B-32,
YFCC-15M for RN50 (open_clip has no ResNet of LAION), MetaCLIP-400M for ViT-L-14 (LAION's has plain GELU). In
pairs of different origins each image is judged by the head of its own expert's origin; methods that need one
base are left out of these, and the report says so.
"""

from neulig_ray.cli import launch
from neulig_ray.config import Cluster, Evaluation, Experiment, Finetune, Ligand, Search

experiment = Experiment(
    name="paper_scaling",
    archs=("ViT-B-32-quickgelu", "RN50-quickgelu", "ViT-L-14-quickgelu"),
    origins=(
        "openai",
        "ViT-B-32-quickgelu:laion400m_e32",
        "RN50-quickgelu:yfcc15m",
        "ViT-L-14-quickgelu:metaclip_400m",
    ),
    tasks=("gtsrb", "cifar100", "resisc45", "cifar10", "mnist", "stl10", "svhn"),
    n=(2, 3, 4, 5, 6, 7),
    combinations=7,
    mixed_origins=(2,),
    methods=(
        "zeroshot",
        "expert",
        "average",
        "task-arithmetic",
        "ties",
        "ensemble-embedding",
        "ensemble-logit",
        "ensemble-probability",
        "ensemble-vote",
        "ligand",
        "hard-routing",
    ),
    protocol="paper",
    finetune=Finetune(batch_size=32, precision="float32"),
    ligand=Ligand(epochs=1000, batch_size=128, input="raw", rate="constant", average=0.0, semi="entropy"),
    search=Search(trials=4, val_images=100),
    evaluation=Evaluation(granularities=("batch-first", "task", "sample"), sample_images=200),
    cluster=Cluster(cpus_per_worker=8, gpus_per_worker=1.0),
)

if __name__ == "__main__":
    launch(experiment)
