"""Which members are trained in one stacked computation: those whose tensors have the same shapes."""

from collections.abc import Sequence

import torch
from torch import nn

from neulig_ray.ligand.data import Combination, LigandData, task_of
from neulig_ray.ligand.portland import Portland
from neulig_ray.ligand.schedule import Schedule


def equal_shapes(combinations: Sequence[Combination], data: LigandData, batch_size: int) -> list[list[int]]:
    """The members in groups of equal numbers of classes, slot by slot, and of rounds in an epoch.

    A head that is padded to its neighbours' classes is multiplied and summed in another order. In such a
    group there is nothing to pad, so that a member's numbers do not depend on who stands beside it.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for member, combination in enumerate(combinations):
        sizes = [len(data.label(task_of(c))) for c in combination]
        rounds = Schedule(combination, sizes, batch_size, seed=0).rounds
        groups.setdefault((rounds, *(len(data.head(c)) for c in combination)), []).append(member)
    return list(groups.values())


def joined(groups: Sequence[Sequence[int]], parts: Sequence[Portland]) -> Portland:
    """One Portland of the groups' trained members, in the order of their numbers."""
    chosen = {
        member: part.select(at)
        for group, part in zip(groups, parts, strict=True)
        for at, member in enumerate(group)
    }
    ordered = [chosen[member] for member in range(len(chosen))]
    return Portland(
        [one.combinations[0] for one in ordered],
        torch.cat([one.weight.detach() for one in ordered]),
        torch.cat([one.bias.detach() for one in ordered]),
        normalised=parts[0].normalised,
    )


def own_parameters(portland: Portland) -> list[nn.Parameter]:
    """Views of each member's weight and bias, and of their gradients, for an optimiser.

    An optimiser's vector loop rounds the first numbers of a tensor and its last few differently: in one
    tensor of all members a bias would depend on its place.
    """
    views = []
    for parameter in portland.parameters():
        parameter.grad = torch.zeros_like(parameter)
        for value, gradient in zip(parameter.data, parameter.grad, strict=True):
            view = nn.Parameter(value)
            view.grad = gradient
            views.append(view)
    return views
