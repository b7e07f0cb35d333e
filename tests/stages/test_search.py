"""A trial trains the ligand that its experiment asks for."""

from typing import Any

import numpy as np
import pytest
import torch
from small_models import ARCH, KEYS, SmallTower, make_data, make_images, make_states

from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.config import Experiment, Ligand
from neulig_ray.experiment.search_space import Setting
from neulig_ray.ligand.data import LigandData
from neulig_ray.ligand.files import read_ligand
from neulig_ray.ligand.recipe import DEFAULT, PAPER, LigandRecipe
from neulig_ray.ligand.training import train_ligands
from neulig_ray.ligand.weighted_offset import Offsets
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.stages import search
from neulig_ray.stages.read_inputs import SharedSplit
from neulig_ray.storage.artifact import Artifact


def split(data: LigandData, images: dict[str, np.ndarray]) -> SharedSplit:
    return SharedSplit(data.embeddings, data.labels, data.heads, images)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, DEFAULT),
        ({"input": "raw", "average": 0.0, "semi": "entropy"}, PAPER),
        (
            {"input": "standardised", "rate": "cosine", "average": 0.5},
            LigandRecipe(input="standardised", rate="cosine", average=0.5),
        ),
        ({"input": "normalised"}, LigandRecipe(input="normalised")),
    ],
    ids=["default", "paper", "standardised", "normalised"],
)
def test_a_trial_trains_by_the_recipe_of_its_experiment(
    given: dict[str, Any], expected: LigandRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "load_bare_tower", lambda arch: SmallTower())
    monkeypatch.setattr(search, "ARCHS", {ARCH.name: ARCH})
    states = make_states()
    stack, train = ExpertStack.from_states(states), make_data("train", states)
    offsets, setting = Offsets.measure(stack), Setting(1e-2, 0.1)
    experiment = Experiment(name="e", ligand=Ligand(epochs=2, batch_size=16, **given))
    trial = search.Trial(
        Artifact("trial", "t", "0"), ARCH.name, (KEYS,), "sup", setting, experiment, (),
        ArchModels(ARCH.name), Artifact("ligand", "l", "0"),
    )  # fmt: skip
    files, about = search.train_trial(
        trial, split(train, {}), split(make_data("val", states), make_images("val")), offsets, stack
    )
    straight = train_ligands(
        [KEYS], train, offsets.form(KEYS, "scalar")[None], objective="sup", learning_rate=1e-2,
        alignment_weight=0.1, epochs=2, batch_size=16, recipe=expected, seed=0,
    )  # fmt: skip
    assert about["status"] == "ok"
    made = read_ligand(files[search.LIGAND_FILE])
    assert made.normalised == straight.normalised
    assert torch.equal(made.weight, straight.weight)
