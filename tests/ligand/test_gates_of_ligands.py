"""What gates see, hidden layers, seeds: members are what they are alone, files say whose views they want."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import neulig_ray as nl
from neulig_ray.errors import InputError
from neulig_ray.ligand.coopvec import coopvecs, routing_accuracy
from neulig_ray.ligand.data import LigandData
from neulig_ray.ligand.files import ligand_bytes, read_ligand
from neulig_ray.ligand.gate import EXPERTS, GateSpec
from neulig_ray.ligand.portland import Portland
from neulig_ray.ligand.recipe import DEFAULT, LigandRecipe
from neulig_ray.ligand.standardised import StandardisedPortland
from neulig_ray.ligand.training import train_ligands
from neulig_ray.merging import METHODS

DIM, SEEN = 6, 9
ORIGINS = ("o", "p", "q")
GATES = [
    EXPERTS,
    GateSpec(hidden=8),
    GateSpec(sees="origin"),
    GateSpec(sees="origin-blocks"),
    GateSpec(sees="origin-blocks", hidden=8),
]


def make_data(tasks: str = "abc", size: int = 48, seed: int = 0) -> LigandData:
    """Every task around a point of its own, as seen by experts of three origins and by these."""
    rng = np.random.default_rng(seed)
    labels = {t: rng.integers(0, 3, size) for t in tasks}
    keys = [f"{t}@{o}" for t in tasks for o in ORIGINS]
    heads = {key: rng.standard_normal((3, DIM)).astype(np.float32) for key in keys}

    def seen(width: int) -> np.ndarray:
        return (3 * rng.standard_normal(width) + rng.standard_normal((size, width))).astype(np.float32)

    embeddings = {(model, t): seen(DIM) for model in (*keys, *ORIGINS) for t in tasks}
    return LigandData(embeddings, labels, heads, {(o, t): seen(SEEN) for o in ORIGINS for t in tasks})


def train(chosen: list[tuple[str, ...]], data: LigandData, gate: GateSpec, **changes: Any) -> Portland:
    n = len(chosen[0])
    form = torch.full((n, n), -0.5).fill_diagonal_(0.5).expand(len(chosen), n, n)
    given = {"objective": "route", "learning_rate": 1e-2, "alignment_weight": 0.1, "epochs": 3, "seed": 4}
    return train_ligands(chosen, data, form, gate=gate, batch_size=16, **{**given, **changes})


MIXED = [("a@o", "b@o", "c@o"), ("a@o", "b@p", "c@o"), ("a@o", "b@p", "c@q")]


def test_each_origin_is_seen_once() -> None:
    gate = GateSpec(sees="origin")
    assert [gate.sources(c) for c in MIXED] == [("o",), ("o", "p"), ("o", "p", "q")]
    assert [EXPERTS.sources(c) for c in MIXED] == MIXED
    data = make_data()
    assert torch.equal(gate.views(MIXED[1], data, "b")[1], data.embedding("p", "b"))
    blocks = GateSpec(sees="origin-blocks").views(MIXED[1], data, "b")
    assert torch.equal(blocks[0], data.feature("o", "b"))


@pytest.mark.parametrize("gate", GATES, ids=str)
@pytest.mark.parametrize("recipe", [DEFAULT, LigandRecipe(input="normalised")], ids=["default", "normalised"])
def test_members_of_other_seeds_and_origins_are_what_they_are_alone(
    gate: GateSpec, recipe: LigandRecipe
) -> None:
    data, seeds = make_data(), [4, 4, 4, 7, 7, 7]
    together = train([*MIXED, *MIXED], data, gate, recipe=recipe, seed=seeds)
    for m, seed in enumerate(seeds):
        alone = train([MIXED[m % 3]], data, gate, recipe=recipe, seed=seed)
        member = together.select(together.member(MIXED[m % 3], seed))
        assert member.state().keys() == alone.state().keys()
        for name, tensor in alone.state().items():
            assert torch.equal(member.state()[name], tensor), (m, name)
        for task in "abc":
            beta = coopvecs(together, m, data, task)
            assert torch.equal(beta, coopvecs(alone, 0, data, task))
            torch.testing.assert_close(beta.sum(-1), torch.ones(48))


@pytest.mark.parametrize("gate", GATES, ids=str)
def test_a_file_says_what_its_gate_sees(gate: GateSpec, tmp_path: Path) -> None:
    data = make_data()
    trained = train(MIXED, data, gate, seed=[1, 2, 3])
    read = read_ligand(ligand_bytes(trained, {}))
    assert (read.gate, read.seeds, read.combinations) == (gate, (1, 2, 3), tuple(MIXED))
    for member in range(3):
        assert torch.equal(coopvecs(read, member, data, "c"), coopvecs(trained, member, data, "c"))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(GATES))
def test_folded_into_views_as_they_are_the_gate_is_the_same(seed: int, gate: GateSpec) -> None:
    data, combination = make_data(size=20, seed=seed), MIXED[1]
    views = {task: torch.cat(gate.views(combination, data, task), 1).unsqueeze(0) for task in "abc"}
    start = Portland.initialised([combination], views["a"].shape[-1], seed, gate=gate)
    trained = StandardisedPortland(start, data)
    folded = trained.finished(trained.state())
    for view in views.values():
        torch.testing.assert_close(folded(view), trained(view), atol=1e-5, rtol=0)


@pytest.mark.parametrize("gate", GATES, ids=str)
def test_route_teaches_every_gate_which_task_an_image_is_of(gate: GateSpec) -> None:
    data = make_data()
    portland = train([MIXED[0]], data, gate, epochs=30, alignment_weight=0.0)
    found = [routing_accuracy(coopvecs(portland, 0, data, task), own) for own, task in enumerate("abc")]
    assert min(found) > 90


def test_route_looks_at_no_label() -> None:
    data = make_data()
    other = LigandData(
        data.embeddings, {t: np.zeros_like(y) for t, y in data.labels.items()}, data.heads, data.features
    )
    one, two = (train([MIXED[0]], each, EXPERTS) for each in (data, other))
    assert torch.equal(one.weight, two.weight)


def test_a_gate_without_block_features_is_told(tmp_path: Path) -> None:
    data = make_data()
    bare = LigandData(data.embeddings, data.labels, data.heads)
    with pytest.raises(InputError, match="no block features of"):
        train([MIXED[0]], bare, GateSpec(sees="origin-blocks"))


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (GateSpec(sees="orign"), "gate 'orign'. Did you mean 'origin'"),  # type: ignore[arg-type]
        (GateSpec(hidden=-1), "hidden -1 units"),
    ],
    ids=str,
)
def test_what_no_gate_is_is_refused(gate: GateSpec, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train([MIXED[0]], make_data(), gate)


def test_a_ligand_is_chosen_from_a_file_by_combination_and_seed(tmp_path: Path) -> None:
    data, pairs = make_data(), [*combinations(("a@o", "b@o", "c@o"), 2)][:2]
    trained = train([*pairs, *pairs], data, EXPERTS, seed=[0, 0, 5, 5])
    file = tmp_path / "ligands.safetensors"
    file.write_bytes(ligand_bytes(trained, {}))
    first, other = (nl.load_ligand(file, pairs[1], seed=seed) for seed in (None, 5))
    assert torch.equal(first.portland.weight[0], trained.weight[1])
    assert torch.equal(other.portland.weight[0], trained.weight[3])
    with pytest.raises(InputError, match=r"unknown seed of .* Known: 0, 5"):
        nl.load_ligand(file, pairs[1], seed=3)
    with pytest.raises(InputError, match="has ligands of 2 combinations"):
        nl.load_ligand(file)


def test_a_gate_of_origins_asks_for_their_views(tmp_path: Path) -> None:
    data, gate = make_data(), GateSpec(sees="origin")
    file = tmp_path / "ligand.safetensors"
    file.write_bytes(ligand_bytes(train([MIXED[1]], data, gate), {}))
    read = nl.load_ligand(file)
    assert read.sources == ("o", "p")
    beta = read.beta({o: data.embeddings[o, "a"] for o in ("o", "p")})
    assert beta.shape == (48, 3)
    with pytest.raises(InputError, match="of 2 origins"):
        read.beta(np.zeros((3, 4, DIM)))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 10**6))
def test_top_k_keeps_the_largest_betas(n: int, images: int, seed: int) -> None:
    beta = torch.rand(images, n, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    method = METHODS["ligand"]
    for k in (1, 2):
        kept = method.weights(beta, {"top_k": str(k)})
        torch.testing.assert_close(kept.sum(-1), torch.ones(images))
        assert ((kept > 0).sum(-1) == min(k, n)).all()
        assert (kept.argmax(-1) == beta.argmax(-1)).all()
    assert torch.equal(method.weights(beta, {}), beta)
