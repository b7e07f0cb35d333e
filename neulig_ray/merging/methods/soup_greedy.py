"""The greedy soup: experts averaged as long as that helps on held-out images."""

from statistics import fmean

import torch

from neulig_ray.merging import trained
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.weights.sources import State


@trained(
    "soup-greedy",
    paper="arXiv 2203.05482 (ICML 2022)",
    needs=("val images", "val labels"),
    symmetric=False,  # experts of equal accuracy are tried in the order in which they are given
)
def soup_greedy(bench: MergeInputs) -> dict[str, torch.Tensor]:
    """The average of the experts that improve it, tried from the best to the worst.

    What counts is the mean over the tasks of the accuracy on val. An expert joins where the average with it
    is strictly better than without, as in the authors' program (their paper's text accepts equal ones);
    2 n - 1 evaluations. Of experts for different tasks, it may well keep only one.
    """

    def accuracy(state: State) -> float:
        return fmean(bench.score(state).values())

    alone = {label: accuracy(state) for label, state in bench.experts.items()}
    first, *others = sorted(alone, key=lambda label: -alone[label])
    soup, best, size = dict(bench.experts[first]), alone[first], 1
    for label in others:
        candidate = _joined(soup, bench.experts[label], 1 / (size + 1))
        reached = accuracy(candidate)
        if reached > best:
            soup, best, size = candidate, reached, size + 1
    return soup


def _joined(soup: State, state: State, share: float) -> dict[str, torch.Tensor]:
    """(1 - share) soup + share state, float32, BatchNorm statistics too; counters are the soup's."""
    return {
        name: torch.lerp(tensor.float(), state[name].float(), share) if tensor.is_floating_point() else tensor
        for name, tensor in soup.items()
    }
