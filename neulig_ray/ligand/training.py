"""Training ligands on stored embeddings, all combinations and seeds of one n in stacked computations."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast, get_args

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel

from neulig_ray.errors import InputError, TrainingDiverged, unknown
from neulig_ray.ligand.data import Combination, LigandData, combination_key, task_of
from neulig_ray.ligand.gate import EXPERTS, GateSpec, width
from neulig_ray.ligand.loss import ligand_loss
from neulig_ray.ligand.portland import Portland
from neulig_ray.ligand.recipe import DEFAULT, LigandRecipe, Objective
from neulig_ray.ligand.schedule import Schedule
from neulig_ray.ligand.stacks import equal_shapes, joined, own_parameters
from neulig_ray.ligand.standardised import StandardisedPortland
from neulig_ray.seeds import stable_generator

CHUNK = 16  # rounds scheduled, and checked for NaN, at a time
DROPOUT, WEIGHT_DECAY = 0.2, 1e-4  # where there is a hidden layer


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What all members of a stack are trained with."""

    objective: Objective
    learning_rate: float
    alignment_weight: float
    batch_size: int
    recipe: LigandRecipe
    gate: GateSpec


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
    recipe: LigandRecipe = DEFAULT,
    gate: GateSpec = EXPERTS,
    seed: int | Sequence[int],
) -> Portland:
    """The trained ligands, with one member for each combination and its seed; see `ligand_rungs`."""
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
        gate=gate,
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
    recipe: LigandRecipe = DEFAULT,
    gate: GateSpec = EXPERTS,
    seed: int | Sequence[int],
) -> Iterator[tuple[int, Portland]]:
    """Train with Adam and yield (epochs, the ligands after so many epochs) for each of the rising `rungs`.

    `data` is the train split, `forms` (members, n, n) the forms Q of L_a. `seed`: of all members, or of each,
    what its weights and its order of images are drawn by. Members share nothing but the arithmetic: each
    equals the member trained alone bit by bit. A learning rate that falls does so until the last rung;
    averages are of the last rounds of each. (A hidden layer of units that are no multiple of 8 rounds by its
    place: there members equal each other up to rounding.)

    Raises InputError for data that do not fit, and TrainingDiverged, naming combination and epoch, when a
    loss becomes NaN or infinite.
    """
    if not combinations or len({len(c) for c in combinations}) != 1:
        raise InputError(f"stacked ligands need combinations of one size, not {list(combinations)}")
    if objective not in get_args(Objective):
        raise unknown("objective", str(objective), get_args(Objective))
    if not rungs or list(rungs) != sorted(set(rungs)) or rungs[0] < 0:
        raise InputError(f"epochs {list(rungs)} must rise from 0 or more")
    recipe.check()
    gate.check()
    for combination in set(combinations):
        data.check(combination)
    n = len(combinations[0])
    seeds = (seed,) * len(combinations) if isinstance(seed, int) else seed
    if forms.shape != (len(combinations), n, n) or len(seeds) != len(combinations):
        raise ValueError(
            f"forms {tuple(forms.shape)} and {len(seeds)} seeds for {len(combinations)} combinations of {n}"
        )
    settings = _Settings(
        objective=objective,
        learning_rate=learning_rate,
        alignment_weight=alignment_weight,
        batch_size=batch_size,
        recipe=recipe,
        gate=gate,
    )
    groups = equal_shapes(combinations, data, batch_size, gate)
    stacks = [
        _stack_rungs(
            [combinations[m] for m in group], [seeds[m] for m in group], data, forms[group], settings, rungs
        )
        for group in groups
    ]
    for rung, parts in zip(rungs, zip(*stacks, strict=True), strict=True):
        yield rung, joined(groups, parts)


def _stack_rungs(
    combinations: Sequence[Combination],
    seeds: Sequence[int],
    data: LigandData,
    forms: torch.Tensor,
    settings: _Settings,
    rungs: Sequence[int],
) -> Iterator[Portland]:
    """The ligands of one stack, of equal shapes and numbers of rounds, after each of the rungs."""
    n, recipe, gate = len(combinations[0]), settings.recipe, settings.gate
    inputs = width(gate.views(combinations[0], data, task_of(combinations[0][0])))
    normalised = recipe.input == "normalised"
    portland = Portland.initialised(combinations, inputs, seeds, gate=gate, normalised=normalised)
    if recipe.input == "standardised":
        portland = StandardisedPortland(portland, data)
    decay = WEIGHT_DECAY if gate.hidden else 0.0
    parameters = own_parameters(portland)
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, weight_decay=decay, fused=True)
    slots = [_Slot(combinations, data, gate, slot) for slot in range(n)]
    schedules = [
        Schedule(c, [len(s.labels[m]) for s in slots], settings.batch_size, seed)
        for m, (c, seed) in enumerate(zip(combinations, seeds, strict=True))
    ]
    dropout = _Dropout(combinations, seeds, gate.hidden) if gate.hidden else None
    rounds = schedules[0].rounds
    last = rungs[-1] * rounds
    averages = {rung: AveragedModel(portland) for rung in rungs if recipe.average and rung}
    waiting = list(rungs)
    if waiting[0] == 0:
        waiting.pop(0)
        yield portland.finished(portland.state())

    done = 0
    for images, weights in _chunks(schedules, last):
        losses = torch.empty(len(images), n, len(combinations))
        for at in range(len(images)):
            for slot in range(n):
                views, embeddings, labels = slots[slot].batch(images[at, slot])
                keep = dropout.draw(views.shape[1]) if dropout else None
                loss = ligand_loss(
                    portland.logits(views, keep),
                    embeddings,
                    slots[slot].heads,
                    labels,
                    weights[at, slot],
                    forms,
                    own=slot,
                    objective=settings.objective,
                    semi=recipe.semi,
                    alignment_weight=settings.alignment_weight,
                )
                if recipe.rate == "cosine":
                    gone = (done * n + slot) / (last * n)
                    rate = settings.learning_rate * (1 + math.cos(math.pi * gone)) / 2
                    optimizer.param_groups[0]["lr"] = rate
                portland.zero_grad(set_to_none=False)  # own parameters see these gradients
                torch.autograd.backward(loss.sum())
                optimizer.step()
                losses[at, slot] = loss.detach()
            done += 1
            for rung, averaged in averages.items():
                left = rung * rounds - done
                if 0 <= left < max(1, recipe.average * rung * rounds):
                    averaged.update_parameters(portland)
            if waiting and waiting[0] * rounds == done:
                _check(losses[: at + 1], combinations, rounds, done - at - 1, rungs[-1])
                rung = waiting.pop(0)
                reached = cast("Portland", averages[rung].module) if rung in averages else portland
                state = reached.state()
                _check_weights(state, combinations, rung)
                yield portland.finished(state)
        _check(losses, combinations, rounds, done - len(images), rungs[-1])


class _Slot:
    """The images that are slot k's own task's, for every member."""

    def __init__(
        self, combinations: Sequence[Combination], data: LigandData, gate: GateSpec, slot: int
    ) -> None:
        own = [c[slot] for c in combinations]
        self.heads = torch.stack([data.head(c) for c in own])
        self.labels = [data.label(task_of(c)) for c in own]
        self._experts = [
            [data.embedding(c, task_of(mine)) for c in combination]
            for mine, combination in zip(own, combinations, strict=True)
        ]
        self._views = [
            gate.views(combination, data, task_of(mine))
            for mine, combination in zip(own, combinations, strict=True)
        ]
        self._sees_experts = gate.sees == "experts"

    def batch(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of images (members, batch): views (members, batch, inputs), the experts' embeddings
        (members, batch, n, d), labels (members, batch).

        Gathered from the shared arrays: no member has a copy of its embeddings.
        """
        concatenated = self._gathered(self._experts, images)
        views = concatenated if self._sees_experts else self._gathered(self._views, images)
        labels = [label.index_select(0, rows) for label, rows in zip(self.labels, images, strict=True)]
        embeddings = concatenated.view(*concatenated.shape[:2], len(self._experts[0]), -1)
        return views, embeddings, torch.stack(labels)

    @staticmethod
    def _gathered(sources: Sequence[Sequence[torch.Tensor]], images: torch.Tensor) -> torch.Tensor:
        parts = [
            torch.cat([source.index_select(0, rows) for source in own], 1)
            for own, rows in zip(sources, images, strict=True)
        ]
        return torch.stack(parts)


class _Dropout:
    """What hidden units are multiplied by, each member's from a stream of its own."""

    def __init__(self, combinations: Sequence[Combination], seeds: Sequence[int], hidden: int) -> None:
        self._hidden = hidden
        self._streams = [
            stable_generator("dropout", seed, combination_key(c))
            for seed, c in zip(seeds, combinations, strict=True)
        ]

    def draw(self, batch: int) -> torch.Tensor:
        """(members, batch, hidden): 0, or 1 / (1 - DROPOUT)."""
        drawn = np.stack([s.random((batch, self._hidden), np.float32) for s in self._streams])
        return torch.from_numpy((drawn >= DROPOUT).astype(np.float32)) / (1 - DROPOUT)


def _chunks(schedules: Sequence[Schedule], last: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`last` rounds of all members, some at a time: images and weights (rounds, n, members, batch)."""
    streams = [iter(schedule) for schedule in schedules]
    for start in range(0, last, CHUNK):
        parts = [list(islice(stream, min(CHUNK, last - start))) for stream in streams]
        images = np.stack([np.stack([i for i, _ in part]) for part in parts], 2)
        weights = np.stack([np.stack([w for _, w in part]) for part in parts], 2)
        yield torch.from_numpy(images), torch.from_numpy(weights)


def _check(
    losses: torch.Tensor, combinations: Sequence[Combination], rounds: int, start: int, epochs: int
) -> None:
    """Raises TrainingDiverged for a member's loss (rounds, n, members) that is not finite."""
    for at, _, member in (~losses.isfinite()).nonzero().tolist():
        raise TrainingDiverged(
            f"the ligand of {combination_key(combinations[member])}: its loss is not finite in epoch "
            f"{(start + at) // rounds + 1} of {epochs}; use a smaller learning rate or look for NaN in the "
            "embeddings"
        )


def _check_weights(state: dict[str, torch.Tensor], combinations: Sequence[Combination], epochs: int) -> None:
    """Raises TrainingDiverged for a member whose very last step was not finite."""
    for member, combination in enumerate(combinations):
        if not all(tensor[member].isfinite().all() for tensor in state.values()):
            raise TrainingDiverged(
                f"the ligand of {combination_key(combination)}: its weights are not finite at epoch {epochs}"
            )
