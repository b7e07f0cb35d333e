"""docs/paper.md names every difference from the reference, and what it says of our code is so."""

import dataclasses

import pytest
import torch
from conftest import REPOSITORY

from neulig_ray.cli.experiments import load_file
from neulig_ray.experiment.combinations import groups
from neulig_ray.experiment.config import Ligand
from neulig_ray.ligand.data import task_of
from neulig_ray.ligand.recipe import PAPER, LigandRecipe
from neulig_ray.ligand.schedule import Schedule
from neulig_ray.ligand.weighted_offset import Offsets
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.merging.prediction import head_logits
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.tasks import TASKS
from neulig_ray.tasks.reading.protocols import paper_rows

pytestmark = pytest.mark.usefixtures("in_repository")


@pytest.mark.parametrize("name", ["paper_table2", "paper_scaling"])
def test_the_papers_experts_are_trained_as_the_reference_trains_them(name: str) -> None:
    recipes = [expert.recipe for expert in make_plan(load_file(name).experiment).experts]
    assert {(r.precision, r.keep_last, r.batch_size, r.warmup) for r in recipes} == {
        ("float32", True, 32, 500)
    }
    standard = dataclasses.replace(load_file(name).experiment, protocol="standard")
    assert not any(expert.recipe.keep_last for expert in make_plan(standard).experts)


@pytest.mark.parametrize("name", ["paper_table2", "paper_scaling"])
def test_the_papers_ligand_is_trained_on_raw_embeddings_at_a_constant_rate(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ligand = load_file(name).experiment.ligand
    assert (ligand.input, ligand.rate, ligand.average) == ("raw", "constant", 0.0)
    monkeypatch.setattr("neulig_ray.experiment.config.DEFAULT", LigandRecipe(input="standardised"))
    assert Ligand().recipe("standard").input == "standardised"
    assert Ligand().recipe("paper") == ligand.recipe("standard") == PAPER
    assert Ligand(input="normalised").recipe("paper").input == "normalised"


# A difference from the reference -> the sentence of docs/paper.md that names it.
DIFFERENCES = {
    "fresh crops": "each image has one stored embedding",
    "precision": "In float32",
    "last batch": "The last, smaller batch of an epoch is kept",
    "class names": "CIFAR-100's prompts",
    "order of images": "RESISC45's order",
    "order of tasks": "in alphabetical order",
    "L_a": "Here both are float64",
    "test loader": "shuffles the test images anew",
    "norms": "the norm is at least 1e-12",
}


@pytest.mark.parametrize("words", DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_the_page_names_every_difference(words: str) -> None:
    page = " ".join((REPOSITORY / "docs/paper.md").read_text(encoding="utf-8").split())
    assert words in page.partition("## Table 2 and Figure 3")[2].partition("### What to expect")[0]


def test_what_the_page_says_of_our_code() -> None:
    combination = groups(load_file("paper_table2").experiment)[0].combinations[0]
    assert [*map(task_of, combination)] == ["cifar10", "cifar100", "gtsrb", "mnist", "resisc45"]
    spoken = TASKS["cifar100"].class_names
    assert "aquarium fish" in spoken
    assert sum(" " in name for name in spoken) == 9
    states = {key: {"w": torch.full((4,), value)} for key, value in (("a@o", 0.1), ("b@o", 0.3))}
    assert Offsets.measure(ExpertStack.from_states(states)).sums.dtype == torch.float64
    assert torch.equal(head_logits(torch.zeros(1, 4), torch.ones(3, 4)), torch.zeros(1, 3))
    official = paper_rows(18900, 6300)
    assert [len(official[split]) for split in ("train", "val", "test")] == [6300, 6300, 6300]
    schedule = iter(Schedule(combination, [300] * 5, 128, 0))
    used = [int((weights > 0).sum()) for _, weights in (next(schedule) for _ in range(3))]
    assert used == [5 * 128, 5 * 128, 5 * 44], "the last batch of a pass is smaller, and counts"
