"""An experiment's configuration under the name that files of experiments import it by."""

from neulig_ray.experiment.config import (
    Cluster,
    Evaluation,
    Experiment,
    Finetune,
    Ligand,
    Pretrain,
    Search,
)

__all__ = ["Cluster", "Evaluation", "Experiment", "Finetune", "Ligand", "Pretrain", "Search"]
