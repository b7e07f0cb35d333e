"""Training ligands on stored embeddings, the combinations of one n in stacked computations."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import cast

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel

from neulig_ray.errors import InputError, TrainingDiverged
from neulig_ray.ligand.data import Combination, LigandData, combination_key, task_of
from neulig_ray.ligand.loss import Objective, StackedHeads, ligand_loss
from neulig_ray.ligand.portland import Portland
from neulig_ray.ligand.recipe import PAPER, LigandRecipe
from neulig_ray.ligand.schedule import Schedule
from neulig_ray.ligand.stacks import equal_shapes, joined, own_parameters
from neulig_ray.ligand.standardised import StandardisedPortland

CHUNK = 16  # rounds scheduled, and checked for NaN, at a time


def train_ligands(
    combinations: Sequence[Combination],
    data: LigandData,
    forms: torch.Tensor,
    *,
    objective: Objective,
    learning_rate: float,
    alignment_weight: float,
    epochs: int,
    batch_size: int = 128,
    recipe: LigandRecipe = PAPER,
    seed: int,
) -> Portland:
    """The trained ligand, with one member for each combination; see `ligand_rungs`."""
    rungs = ligand_rungs(
        combinations,
        data,
        forms,
        objective=objective,
        learning_rate=learning_rate,
        alignment_weight=alignment_weight,
        rungs=(epochs,),
        batch_size=batch_size,
        recipe=recipe,
        seed=seed,
    )
    return next(rungs)[1]


def ligand_rungs(
    combinations: Sequence[Combination],
    data: LigandData,
    forms: torch.Tensor,
    *,
    objective: Objective,
    learning_rate: float,
    alignment_weight: float,
    rungs: Sequence[int],
    batch_size: int = 128,
    recipe: LigandRecipe = PAPER,
    seed: int,
) -> Iterator[tuple[int, Portland]]:
    """Train with Adam and yield (epochs, the ligand after so many epochs) for each of the rising `rungs`.

    `data` is the train split, `forms` (members, n, n) the forms Q of L_a. Members share nothing but the
    arithmetic: each has its own initialisation, images and number of steps, and equals the member trained
    alone: up to float rounding with the paper's recipe, bit by bit with any other. A learning rate that falls
    does so until the last rung; averages are of the last rounds of each.

    Raises InputError for data that do not fit, and TrainingDiverged, naming combination and epoch, when a
    loss becomes NaN or infinite.
    """
    if not combinations or len({len(c) for c in combinations}) != 1:
        raise InputError(f"stacked ligands need combinations of one size, not {list(combinations)}")
    if objective not in ("sup", "semi"):
        raise InputError(f"unknown objective {objective!r}: use sup or semi")
    if not rungs or list(rungs) != sorted(set(rungs)) or rungs[0] < 0:
        raise InputError(f"epochs {list(rungs)} must rise from 0 or more")
    recipe.check()
    for combination in combinations:
        data.check(combination)
    n = len(combinations[0])
    if forms.shape != (len(combinations), n, n):
        raise ValueError(f"forms {tuple(forms.shape)} for {len(combinations)} combinations of {n}")
    everyone = [[*range(len(combinations))]]
    groups = everyone if recipe == PAPER else equal_shapes(combinations, data, batch_size)
    stacks = [
        _stack_rungs(
            [combinations[member] for member in group],
            data,
            forms[group],
            objective=objective,
            learning_rate=learning_rate,
            alignment_weight=alignment_weight,
            rungs=rungs,
            batch_size=batch_size,
            recipe=recipe,
            seed=seed,
        )
        for group in groups
    ]
    for rung, parts in zip(rungs, zip(*stacks, strict=True), strict=True):
        yield rung, joined(groups, parts)


def _stack_rungs(
    combinations: Sequence[Combination],
    data: LigandData,
    forms: torch.Tensor,
    *,
    objective: Objective,
    learning_rate: float,
    alignment_weight: float,
    rungs: Sequence[int],
    batch_size: int,
    recipe: LigandRecipe,
    seed: int,
) -> Iterator[Portland]:
    """The ligand of one stack after each of the rungs.

    With the paper's recipe members may have different shapes, as they had before there were others. One whose
    epochs have fewer steps then goes on while the others finish, and what it was at its own end of each rung
    is what is yielded.
    """
    n = len(combinations[0])
    dim = data.embedding(combinations[0][0], task_of(combinations[0][0])).shape[1]
    portland = Portland.initialised(combinations, dim, seed, normalised=recipe.input == "normalised")
    if recipe.input == "standardised":
        portland = StandardisedPortland(portland, data)
    loss_of = partial(
        ligand_loss, portland, forms=forms, objective=objective, alignment_weight=alignment_weight
    )
    parameters = [*portland.parameters()] if recipe == PAPER else own_parameters(portland)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    slots = [_Slot(combinations, data, slot) for slot in range(n)]
    schedules = [
        Schedule(c, [len(s.labels[m]) for s in slots], batch_size, seed) for m, c in enumerate(combinations)
    ]
    rounds = [schedule.rounds for schedule in schedules]
    snapshots = {rung: portland.state() for rung in rungs}
    due = [(rung * rounds[m], rung, m) for rung in rungs for m in range(len(combinations))]
    averages = {rung: AveragedModel(portland) for rung in rungs if recipe.average}
    waiting = list(rungs)
    if waiting[0] == 0:
        yield portland.finished(snapshots[waiting.pop(0)])

    done, last = 0, rungs[-1] * max(rounds)
    for images, weights in _chunks(schedules, last):
        losses = torch.empty(len(images), n, len(combinations))
        for at in range(len(images)):
            for slot in range(n):
                z, labels = slots[slot].batch(images[at, slot])
                loss = (loss_of(z, slots[slot].heads, labels) * weights[at, slot]).sum(-1)
                if recipe.rate == "cosine":
                    gone = (done * n + slot) / (last * n)
                    optimizer.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * gone)) / 2
                portland.zero_grad(set_to_none=recipe == PAPER)  # own parameters see these gradients
                torch.autograd.backward(loss.sum())
                optimizer.step()
                losses[at, slot] = loss.detach()
            done += 1
            for rung, averaged in averages.items():
                left = rung * max(rounds) - done
                if 0 <= left < max(1, recipe.average * rung * max(rounds)):
                    averaged.update_parameters(portland)
            for _, rung, member in (d for d in due if d[0] == done):
                reached = cast("Portland", averages[rung].module) if averages else portland
                for name, tensor in reached.state().items():
                    snapshots[rung][name][member] = tensor[member]
        _check(losses, combinations, rounds, done - len(images), rungs[-1])
        while waiting and waiting[0] * max(rounds) <= done:
            rung = waiting.pop(0)
            _check_weights(snapshots[rung]["weight"], combinations, rung)
            yield portland.finished(snapshots[rung])


class _Slot:
    """The images that are slot k's own task's, for every member."""

    def __init__(self, combinations: Sequence[Combination], data: LigandData, slot: int) -> None:
        own = [c[slot] for c in combinations]
        self.heads = StackedHeads.of([data.head(c) for c in own])
        self.labels = [data.label(task_of(c)) for c in own]
        self._sources = [
            [data.embedding(c, task_of(mine)) for c in combination]
            for mine, combination in zip(own, combinations, strict=True)
        ]

    def batch(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z (members, batch, n d) and labels (members, batch) of images (members, batch).

        Gathered from the shared arrays: no member has a copy of its embeddings.
        """
        z = [
            torch.cat([source.index_select(0, rows) for source in sources], 1)
            for sources, rows in zip(self._sources, images, strict=True)
        ]
        labels = [label.index_select(0, rows) for label, rows in zip(self.labels, images, strict=True)]
        return torch.stack(z), torch.stack(labels)


def _chunks(schedules: Sequence[Schedule], last: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`last` rounds of all members, some at a time: images and weights (rounds, n, members, batch)."""
    streams = [iter(schedule) for schedule in schedules]
    for start in range(0, last, CHUNK):
        parts = [list(islice(stream, min(CHUNK, last - start))) for stream in streams]
        images = np.stack([np.stack([i for i, _ in part]) for part in parts], 2)
        weights = np.stack([np.stack([w for _, w in part]) for part in parts], 2)
        yield torch.from_numpy(images), torch.from_numpy(weights)


def _check(
    losses: torch.Tensor, combinations: Sequence[Combination], rounds: Sequence[int], start: int, epochs: int
) -> None:
    """Raises TrainingDiverged for a member's loss (rounds, n, members) that is not finite before its end."""
    for at, _, member in (~losses.isfinite()).nonzero().tolist():
        epoch = (start + at) // rounds[member]
        if epoch < epochs:
            raise TrainingDiverged(
                f"the ligand of {combination_key(combinations[member])}: its loss is not finite in epoch "
                f"{epoch + 1} of {epochs}; use a smaller learning rate or look for NaN in the embeddings"
            )


def _check_weights(weight: torch.Tensor, combinations: Sequence[Combination], epochs: int) -> None:
    """Raises TrainingDiverged for a member whose very last step was not finite."""
    for member, combination in enumerate(combinations):
        if not weight[member].isfinite().all():
            raise TrainingDiverged(
                f"the ligand of {combination_key(combination)}: its weights are not finite at epoch {epochs}"
            )
