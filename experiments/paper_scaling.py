"""Two to seven collaborators on three CLIP archs, and pairs of experts from different foundation models."""

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
    finetune=Finetune(batch_size=32),
    ligand=Ligand(epochs=1000, batch_size=128),
    search=Search(trials=4, val_images=100),
    evaluation=Evaluation(granularities=("batch-first", "task", "sample"), sample_images=200),
    cluster=Cluster(cpus_per_worker=8, gpus_per_worker=1.0),
)

if __name__ == "__main__":
    launch(experiment)
