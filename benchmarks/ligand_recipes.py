"""How much a ligand's accuracy moves with rounding, with its seed, and with who stands beside it, by recipe.

    python benchmarks/ligand_recipes.py --storage ./neulig-storage [quickstart --n 5 --FIELD VALUE ...]

Trains the ligands of an experiment on its stored embeddings, with the reference's setting, by each recipe and
objective: five seeds, three times with every initial weight moved to the next float above or below, or left
alone, and each once stacked with all others and once alone. Prints a table of percent, and checks what the
default recipe promises: exit status 1 where it does not hold. Accuracies are the ensemble's on test images,
which no choice looks at; |gap| is not measured here.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from unittest import mock

import numpy as np
import torch

from neulig_ray.cli.experiments import load
from neulig_ray.cli.options import parse
from neulig_ray.experiment.search_space import REFERENCE
from neulig_ray.ligand.coopvec import coopvecs
from neulig_ray.ligand.data import Combination, LigandData, task_of
from neulig_ray.ligand.gate import EXPERTS, GateSpec
from neulig_ray.ligand.portland import Portland
from neulig_ray.ligand.recipe import DEFAULT, PAPER, LigandRecipe, Objective
from neulig_ray.ligand.training import train_ligands
from neulig_ray.ligand.weighted_offset import Offsets
from neulig_ray.merging.prediction import ensemble_logits
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.stages.read_inputs import collaborators, read_split, read_stack
from neulig_ray.storage.storage import Storage

SEEDS, MOVES = (0, 1, 2, 3, 4), (1, 2, 3)
RECIPES: Mapping[str, tuple[LigandRecipe, GateSpec]] = {
    "the paper's (raw)": (PAPER, EXPERTS),
    "default": (DEFAULT, EXPERTS),
    "default, gate=origin-blocks": (DEFAULT, GateSpec(sees="origin-blocks")),
}


@dataclass(frozen=True)
class Cell:
    """The ligands of one arch and n: train and test split, the forms of L_a."""

    arch: str
    combinations: Sequence[Combination]
    train: LigandData
    test: LigandData
    forms: torch.Tensor

    def right(self, portland: Portland, member: int) -> dict[str, np.ndarray]:
        """Task -> the class (N,) that the ensemble predicts for each of its test images."""
        combination, found = portland.combinations[member], {}
        for own in combination:
            beta = coopvecs(portland, member, self.test, task_of(own))
            z = self.test.stacked(combination, task_of(own))
            found[task_of(own)] = ensemble_logits(beta, z, self.test.head(own)).argmax(-1).numpy()
        return found

    def reached(self, predicted: Mapping[str, np.ndarray]) -> float:
        return fmean(100 * float((p == self.test.label(t).numpy()).mean()) for t, p in predicted.items())


@dataclass(frozen=True)
class Found:
    """Of one recipe, objective and cell, in percent: of each seed the mean over combinations and tasks."""

    by_seed: tuple[float, ...]
    largest_move: float
    differ_alone: float

    def __str__(self) -> str:
        low, high = min(self.by_seed), max(self.by_seed)
        return (
            f"{fmean(self.by_seed):.2f} [{low:.2f}, {high:.2f}] | {self.largest_move:.2f} | "
            f"{self.differ_alone:.3f}"
        )


def measure(
    cell: Cell, objective: Objective, recipe: LigandRecipe, gate: GateSpec, epochs: int, batch_size: int
) -> Found:
    every = [(c, seed) for seed in SEEDS for c in cell.combinations]
    forms = cell.forms.repeat(len(SEEDS), 1, 1)

    def trained(members: Sequence[int]) -> list[dict[str, np.ndarray]]:
        portland = train_ligands(
            [every[m][0] for m in members], cell.train, forms[list(members)],
            objective=objective, learning_rate=REFERENCE[0], alignment_weight=REFERENCE[1], epochs=epochs,
            batch_size=batch_size, recipe=recipe, gate=gate, seed=[every[m][1] for m in members],
        )  # fmt: skip
        return [cell.right(portland, member) for member in range(len(members))]

    def means(predicted: Sequence[Mapping[str, np.ndarray]]) -> tuple[float, ...]:
        reached = [cell.reached(one) for one in predicted]
        size = len(cell.combinations)
        return tuple(fmean(reached[at : at + size]) for at in range(0, len(reached), size))

    whole = trained(range(len(every)))
    by_seed = means(whole)
    moves = []
    for seed in MOVES:
        with mock.patch.object(Portland, "initialised", _moved(seed)):
            moves.append(abs(fmean(means(trained(range(len(every))))) - fmean(by_seed)))
    differ = [
        100 * float((whole[m][task] != alone[task]).mean())
        for m in range(len(every))
        for (alone,) in [trained([m])]
        for task in alone
    ]
    return Found(by_seed, max(moves), fmean(differ))


def _moved(seed: int):  # type: ignore[no-untyped-def]
    """`Portland.initialised` with every weight at the next float below or above, or as it was."""
    whole = Portland.initialised
    rng = np.random.default_rng(seed)

    def initialised(*given, **more):  # type: ignore[no-untyped-def]
        start, state = whole(*given, **more), {}
        for name, tensor in start.state().items():
            array, step = tensor.numpy(), rng.integers(-1, 2, tensor.shape)
            ends = np.where(step > 0, np.float32(np.inf), np.float32(-np.inf))
            state[name] = torch.from_numpy(np.where(step == 0, array, np.nextafter(array, ends)))
        return start.finished(state)

    return initialised


def cells(plan, storage: Storage) -> list[Cell]:  # type: ignore[no-untyped-def]
    found = []
    for group in plan.groups:
        models, keys = plan.models[plan.experiment.drawn_by][group.arch], collaborators(group.combinations)
        variants = [job.models for job in plan.variants if job.group == group and job.models.blocks]
        models = variants[0] if variants else models
        train, test = (read_split(storage, models, s, keys, images=False).data for s in ("train", "test"))
        offsets = Offsets.measure(read_stack(storage, models, keys))
        form = plan.experiment.ligand.alignment_form
        forms = torch.stack([offsets.form(c, form) for c in group.combinations])
        found.append(Cell(f"{group.arch} n={group.n}", group.combinations, train, test, forms))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("experiment", nargs="?", default="quickstart")
    parser.add_argument("--storage", default="./neulig-storage")
    given, flags = parser.parse_known_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    experiment = parse(load(given.experiment)[0], flags, prog="ligand_recipes", description="")[0]
    plan, ligand, failed = make_plan(experiment), experiment.ligand, []
    print("| cell | objective | recipe | mean of five seeds [least, most] | moved by an ulp | differ alone |")
    print("|---|---|---|---|---|---|")
    for cell in cells(plan, Storage(given.storage)):
        for objective in ("sup", "semi", "route"):
            told: dict[str, Found] = {}
            for name, (recipe, gate) in RECIPES.items():
                if gate.sees == "origin-blocks" and not cell.train.features:
                    continue
                told[name] = measure(cell, objective, recipe, gate, ligand.epochs, ligand.batch_size)
                print(f"| {cell.arch} | {objective} | {name} | {told[name]} |", flush=True)
            raw, ours = told["the paper's (raw)"], told["default"]
            if ours.largest_move > 0.2:
                failed.append(f"{cell.arch} {objective}: an ulp moves the mean by {ours.largest_move:.2f}")
            if ours.differ_alone > 0.1:
                failed.append(f"{cell.arch} {objective}: {ours.differ_alone:.3f} % differ alone")
            if fmean(ours.by_seed) < fmean(raw.by_seed) - 0.3:
                failed.append(f"{cell.arch} {objective}: below the paper's recipe by more than 0.3")
            if objective != "semi" and max(ours.by_seed) - min(ours.by_seed) > 0.5:
                failed.append(f"{cell.arch} {objective}: five seeds lie more than 0.5 apart")
    print("\n".join(failed) or "the default recipe holds what it promises")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
