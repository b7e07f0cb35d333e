"""Which members are trained in one stacked computation: those whose tensors have the same shapes."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import pad

from neulig_ray.ligand.data import Combination, LigandData, task_of
from neulig_ray.ligand.gate import EXPERTS, GateSpec, width
from neulig_ray.ligand.portland import HIDDEN, LINEAR, Portland
from neulig_ray.ligand.schedule import Schedule


def equal_shapes(
    combinations: Sequence[Combination], data: LigandData, batch_size: int, gate: GateSpec = EXPERTS
) -> list[list[int]]:
    """The members in groups of equal numbers of classes, slot by slot, of inputs, and of rounds in an epoch.

    A head that is padded to its neighbours' classes is multiplied and summed in another order. In such a
    group there is nothing to pad, so that a member's numbers do not depend on who stands beside it.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for member, combination in enumerate(combinations):
        sizes = [len(data.label(task_of(c))) for c in combination]
        rounds = Schedule(combination, sizes, batch_size, seed=0).rounds
        inputs = width(gate.views(combination, data, task_of(combination[0])))
        shape = (rounds, inputs, *(len(data.head(c)) for c in combination))
        groups.setdefault(shape, []).append(member)
    return list(groups.values())


def joined(groups: Sequence[Sequence[int]], parts: Sequence[Portland]) -> Portland:
    """One Portland of the groups' trained members, in the order of their numbers."""
    chosen = {
        member: part.select(at)
        for group, part in zip(groups, parts, strict=True)
        for at, member in enumerate(group)
    }
    ordered = [chosen[member] for member in range(len(chosen))]
    most = max(one.inputs for one in ordered)
    first = (HIDDEN if ordered[0].gate.hidden else LINEAR)[0]
    states = [
        {
            name: pad(tensor, (0, most - one.inputs)) if name == first else tensor
            for name, tensor in one.state().items()
        }
        for one in ordered
    ]
    state = {name: torch.cat([own[name] for own in states]) for name in states[0]}
    about = {**ordered[0].about, "seeds": [one.seeds[0] for one in ordered]}
    return Portland.from_state([one.combinations[0] for one in ordered], state, **about)


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
