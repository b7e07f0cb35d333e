"""CoopVecs of trained ligands: for every image, for a task, for everything; and what they look like."""

from collections.abc import Sequence

import torch

from neulig_ray.ligand.data import LigandData, task_of
from neulig_ray.ligand.portland import Portland

CHUNK = 8192  # images at a time: bounds the copy that concatenation makes


def coopvecs(portland: Portland, member: int, data: LigandData, task: str) -> torch.Tensor:
    """beta (N, n) float32 of every image of `task` in the split, for one member's combination."""
    single = portland.select(member)
    return betas(single, single.gate.views(single.combinations[0], data, task))


def betas(single: Portland, sources: Sequence[torch.Tensor]) -> torch.Tensor:
    """beta (N, n) of N images by a ligand of one member; `sources`: what its gate sees, (N, width) each."""
    with torch.no_grad():
        parts = [
            single(torch.cat([s[at : at + CHUNK] for s in sources], 1).unsqueeze(0))[0, :, 0]
            for at in range(0, len(sources[0]), CHUNK)
        ]
    return torch.cat(parts)


def task_beta(portland: Portland, member: int, val: LigandData, task: str) -> torch.Tensor:
    """One beta (n,) for a task: the mean over its val images."""
    return coopvecs(portland, member, val, task).mean(0)


def global_beta(portland: Portland, member: int, val: LigandData) -> torch.Tensor:
    """One beta (n,) for everything: the mean of the tasks' betas, so that every task counts the same."""
    tasks = [task_of(c) for c in portland.combinations[member]]
    return torch.stack([task_beta(portland, member, val, task) for task in tasks]).mean(0)


def entropy(beta: torch.Tensor) -> float:
    """Mean entropy of beta (N, n) over log n: 0 for one expert alone, 1 for equal weights; 0 for n = 1."""
    n = beta.shape[-1]
    if n == 1:
        return 0.0
    nats = torch.special.entr(beta.double()).sum(-1).mean()
    return float(nats / torch.tensor(float(n)).double().log())


def routing_accuracy(beta: torch.Tensor, own: int) -> float:
    """Percentage of images whose largest beta (N, n) is the expert of their own task, number `own`."""
    return 100.0 * float((beta.argmax(-1) == own).double().mean())


def own_slot(combination: Sequence[str], task: str) -> int:
    """Which collaborator of the combination is the expert of `task`."""
    return [task_of(c) for c in combination].index(task)
