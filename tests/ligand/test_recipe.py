"""What the linear map sees, how its weights come to rest, and that members do not depend on neighbours."""

import math
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
from neulig_ray.ligand.coopvec import coopvecs
from neulig_ray.ligand.data import Combination, LigandData, task_of
from neulig_ray.ligand.files import ligand_bytes, read_ligand
from neulig_ray.ligand.gate import EXPERTS
from neulig_ray.ligand.portland import Portland
from neulig_ray.ligand.recipe import PAPER, LigandRecipe
from neulig_ray.ligand.schedule import Schedule
from neulig_ray.ligand.stacks import equal_shapes
from neulig_ray.ligand.standardised import StandardisedPortland, standardisation
from neulig_ray.ligand.training import ligand_rungs, train_ligands

DIM = 8
SETTINGS: dict[str, Any] = {"learning_rate": 1e-2, "alignment_weight": 0.1, "batch_size": 16, "seed": 5}
OTHERS = [
    LigandRecipe(input="standardised"),
    LigandRecipe(input="normalised", average=0.5),
    LigandRecipe(rate="cosine"),
    LigandRecipe(input="standardised", rate="cosine", average=0.4),
]


def make_data(
    classes: str | dict[str, int], size: int = 40, *, middle: float = 1.0, seed: int = 0
) -> LigandData:
    """Experts that know their own task; embeddings of lengths from 20 on, around a point for each task."""
    rng = np.random.default_rng(seed)
    classes = dict.fromkeys(classes, 4) if isinstance(classes, str) else classes
    labels = {task: rng.integers(0, c, size) for task, c in classes.items()}
    heads = {f"{t}@o": 10 * rng.standard_normal((c, DIM)).astype(np.float32) for t, c in classes.items()}
    embeddings = {}
    for expert in heads:
        for task in classes:
            z = 2 * rng.standard_normal((size, DIM)) + middle * rng.standard_normal(DIM)
            if task == task_of(expert):
                z += 0.1 * heads[expert][labels[task]]
            embeddings[expert, task] = (10 * rng.uniform(0.5, 2) * z).astype(np.float32)
    return LigandData(embeddings, labels, heads)


def form(members: int, n: int = 2) -> torch.Tensor:
    return torch.full((n, n), -0.5).fill_diagonal_(0.5).expand(members, n, n)


def train(chosen: list[Combination], data: LigandData, recipe: LigandRecipe, **changes: Any) -> Portland:
    options = {"objective": "sup", "epochs": 3, **SETTINGS, **changes}
    return train_ligands(chosen, data, form(len(chosen), len(chosen[0])), recipe=recipe, **options)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 30), st.integers(2, 4))
def test_folded_into_raw_embeddings_the_map_is_the_same(seed: int, middle: float, n: int) -> None:
    data = make_data("abcd"[:n], 20, middle=middle, seed=seed)
    combination = tuple(data.heads)
    trained = StandardisedPortland(Portland.initialised([combination], n * DIM, seed), data)
    folded = trained.finished(trained.state())
    assert type(folded) is Portland
    for task in data.labels:
        z = torch.cat(list(data.stacked(combination, task)), 1).unsqueeze(0)
        torch.testing.assert_close(folded(z), trained(z), atol=1e-5, rtol=0)


def test_every_feature_has_mean_0_and_deviation_1_and_every_task_counts_the_same() -> None:
    data = make_data("ab")
    more = {key: np.tile(z, (5, 1)) if key[1] == "b" else z for key, z in data.embeddings.items()}
    pair = ("a@o", "b@o")
    mean, scale = standardisation(EXPERTS, pair, LigandData(more, data.labels, data.heads))
    z = torch.cat([torch.cat(list(data.stacked(pair, task)), 1) for task in "ab"])
    seen = (z - mean) * scale
    torch.testing.assert_close(seen.mean(0), torch.zeros(2 * DIM), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(2 * DIM), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, 7.3])
def test_a_feature_that_is_constant_in_training_is_left_out(value: float) -> None:
    data = make_data("ab")
    for (expert, _), z in data.embeddings.items():
        if expert == "a@o":
            z[:, 3] = value
    portland = train([("a@o", "b@o")], data, LigandRecipe(input="standardised"))
    assert portland.weight.isfinite().all()
    assert (portland.weight[0, :, 3] == 0).all()
    assert (portland.weight[0].detach().abs().sum(0) > 0).sum() == 2 * DIM - 1


@pytest.mark.parametrize(
    ("recipe", "objective"), [*zip(OTHERS, ("sup", "semi", "sup", "semi"), strict=True)], ids=str
)
@pytest.mark.parametrize("classes", [(4, 4, 4, 4, 4), (3, 3, 7, 26, 26)], ids=["equal", "different"])
def test_members_stacked_are_bit_by_bit_what_they_are_alone(
    recipe: LigandRecipe, objective: str, classes: tuple[int, ...]
) -> None:
    data = make_data(dict(zip("abcde", classes, strict=True)))
    pairs = [*combinations(data.heads, 2)]  # ten, with twenty biases: more than one vector of any CPU
    together = train(pairs, data, recipe, objective=objective)
    assert together.combinations == tuple(pairs)
    for m in (0, 4, 7, 9):
        alone = train([pairs[m]], data, recipe, objective=objective)
        assert torch.equal(together.weight[m], alone.weight[0]), pairs[m]
        assert torch.equal(together.bias[m], alone.bias[0]), pairs[m]


def test_only_members_of_equal_shapes_are_stacked() -> None:
    data = make_data({"a": 3, "b": 3, "c": 7})
    labels = {**data.labels, "b": data.labels["b"][:10]}
    shorter = {key: z[:10] if key[1] == "b" else z for key, z in data.embeddings.items()}
    pairs = [("a@o", "b@o"), ("a@o", "c@o"), ("b@o", "c@o"), ("b@o", "a@o")]
    assert equal_shapes(pairs, data, 16) == [[0, 3], [1, 2]]
    assert equal_shapes(pairs, LigandData(shorter, labels, data.heads), 16) == [[0, 3], [1], [2]]


def test_training_equals_a_plain_loop_on_standardised_embeddings() -> None:
    data, pair, epochs, rounds = make_data("ab"), ("a@o", "b@o"), 4, 3
    recipe = LigandRecipe(input="standardised", rate="cosine", average=0.5)
    trained = train([pair], data, recipe, epochs=epochs)
    start = Portland.initialised([pair], 2 * DIM, seed=5)
    gate = torch.nn.Linear(2 * DIM, 2)
    gate.load_state_dict({"weight": start.weight[0].detach(), "bias": start.bias[0].detach()})
    adam = torch.optim.Adam(gate.parameters(), lr=SETTINGS["learning_rate"])
    mean, scale = standardisation(EXPERTS, pair, data)
    s, steps, last = torch.tensor([1.0, -1.0]) / math.sqrt(2), 0, []
    stream = iter(Schedule(pair, (40, 40), 16, seed=5))
    for done in range(epochs * rounds):
        images, weights = next(stream)
        for slot, task in enumerate("ab"):
            rows = images[slot][weights[slot] > 0]
            z = [torch.tensor(data.embeddings[expert, task][rows]) for expert in pair]
            beta = gate((torch.cat(z, 1) - mean) * scale).softmax(-1)
            ensembled = beta[:, :1] * z[0] + beta[:, 1:] * z[1]
            logits = torch.nn.functional.normalize(ensembled) @ torch.tensor(data.heads[pair[slot]]).T
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(data.labels[task][rows]))
            loss = loss + SETTINGS["alignment_weight"] * (beta @ s).square().mean()
            falling = (1 + math.cos(math.pi * steps / (epochs * rounds * 2))) / 2
            adam.param_groups[0]["lr"] = SETTINGS["learning_rate"] * falling
            adam.zero_grad()
            loss.backward()
            adam.step()
            steps += 1
        if done >= epochs * rounds / 2:
            last.append((gate.weight.detach().clone(), gate.bias.detach().clone()))
    weight, bias = (torch.stack(values).mean(0) for values in zip(*last, strict=True))
    torch.testing.assert_close(trained.weight[0], weight * scale, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(trained.bias[0], bias - (weight * scale) @ mean, atol=1e-4, rtol=1e-4)


def test_rungs_average_the_last_rounds_of_each_and_a_falling_rate_is_at_rest_at_the_last() -> None:
    data, pairs = make_data("abc"), [("a@o", "b@o"), ("a@o", "c@o")]
    options = {"objective": "sup", **SETTINGS}
    for recipe, equal in ((OTHERS[1], (0, 1, 4)), (OTHERS[3], (0, 4))):
        rungs = dict(ligand_rungs(pairs, data, form(2), rungs=(0, 1, 4), recipe=recipe, **options))
        for epochs in equal:
            straight = train(pairs, data, recipe, epochs=epochs)
            assert torch.equal(rungs[epochs].weight, straight.weight), epochs


def test_the_smallest_share_is_the_last_round() -> None:
    data, pair = make_data("ab"), ("a@o", "b@o")
    last, tiny = (train([pair], data, LigandRecipe(rate="cosine", average=a)) for a in (0.0, 1e-30))
    assert torch.equal(tiny.weight, last.weight)


def moved(portland: Portland, seed: int) -> Portland:
    """A copy with every weight at the next float below or above, or left alone; with seed 0 all are."""
    rng, state = np.random.default_rng(seed), {}
    for name, tensor in portland.state().items():
        array, step = tensor.numpy(), rng.integers(-1, 2, tensor.shape) * (seed > 0)
        towards = np.where(step == 0, array, np.where(step > 0, np.float32(np.inf), np.float32(-np.inf)))
        state[name] = torch.from_numpy(np.nextafter(array, towards))
    return Portland.from_state(portland.combinations, state)


def test_an_ulp_in_the_initial_weights_is_forgotten_on_standardised_embeddings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, triple = make_data("abc", 200), ("a@o", "b@o", "c@o")
    start, spread = Portland.initialised([triple], 3 * DIM, seed=5), {}
    for recipe in (PAPER, LigandRecipe(input="standardised")):
        betas = []
        for seed in range(3):
            first = moved(start, seed)
            monkeypatch.setattr(Portland, "initialised", lambda *_, first=first, **__: first)
            options = {"batch_size": 32, "epochs": 8, "alignment_weight": 0.0}
            portland = train([triple], data, recipe, **options)
            betas.append(torch.stack([coopvecs(portland, 0, data, task) for task in "abc"]))
        spread[recipe.input] = max(float((beta - betas[0]).abs().max()) for beta in betas[1:])
    assert spread["standardised"] < 1e-3
    assert spread["raw"] > 0.1


def test_normalised_a_gate_does_not_see_how_long_an_embedding_is() -> None:
    data, pair = make_data("ab"), ("a@o", "b@o")
    gate = train([pair], data, LigandRecipe(input="normalised"))
    z = torch.cat(list(data.stacked(pair, "a")), 1).unsqueeze(0)
    longer = torch.cat([7 * z[..., :DIM], 0.1 * z[..., DIM:]], -1)
    torch.testing.assert_close(gate(longer), gate(z))
    assert gate.select(0).normalised
    raw = train([pair], data, PAPER)
    assert not torch.allclose(raw(longer), raw(z))


@pytest.mark.parametrize("recipe", [PAPER, *OTHERS], ids=str)
def test_a_file_says_whether_its_map_is_of_embeddings_of_length_1(
    recipe: LigandRecipe, tmp_path: Path
) -> None:
    data, pair = make_data("ab"), ("a@o", "b@o")
    trained = train([pair], data, recipe)
    file = tmp_path / "ligand.safetensors"
    file.write_bytes(ligand_bytes(trained, {}))
    assert (b"normalised" in file.read_bytes()) == (recipe.input == "normalised")
    expected = coopvecs(trained, 0, data, "a")
    assert torch.equal(coopvecs(read_ligand(file.read_bytes()), 0, data, "a"), expected)
    assert torch.equal(nl.load_ligand(file).beta(np.stack([data.embeddings[e, "a"] for e in pair])), expected)


def test_a_header_that_says_neither_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "ligand.safetensors"
    file.write_bytes(ligand_bytes(Portland.initialised([("a", "b")], 8, seed=0), {"normalised": "yes"}))
    with pytest.raises(InputError, match=r"is damaged: its header has normalised 'yes'"):
        nl.load_ligand(file)


@pytest.mark.parametrize("recipe", OTHERS, ids=str)
def test_a_gate_from_python_is_the_pipelines_and_remembers_its_recipe(
    recipe: LigandRecipe, tmp_path: Path
) -> None:
    data, pair = make_data("ab"), ("a@o", "b@o")
    heads = {task_of(key): head for key, head in data.heads.items()}
    options = {**SETTINGS, "alignment_weight": 0.0, "epochs": 2}
    gate = nl.train_ligand(
        data.embeddings, data.labels, heads,
        input=recipe.input, rate=recipe.rate, average=recipe.average, semi=recipe.semi, **options,
    )  # fmt: skip
    assert torch.equal(gate.portland.weight, train([pair], data, recipe, **options).weight)
    saved = nl.load_ligand(gate.save(tmp_path / "gate.safetensors"))
    assert saved.about == gate.about
    assert recipe.identity.items() <= saved.about.items()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": "standardized"}, "ligand.input 'standardized'. Did you mean 'standardised'"),
        ({"input": "normalized"}, "ligand.input 'normalized'. Did you mean 'normalised'"),
        ({"rate": "cos"}, "ligand.rate 'cos'. Did you mean 'cosine'"),
        ({"semi": "entrop"}, "ligand.semi 'entrop'. Did you mean 'entropy'"),
        ({"average": 1.5}, "ligand.average 1.5 must lie in 0..1"),
        ({"average": float("nan")}, "ligand.average nan must lie"),
    ],
)
def test_what_there_is_not_is_refused_with_its_near_misses(changes: dict[str, Any], message: str) -> None:
    data = make_data("ab")
    with pytest.raises(InputError, match=message):
        train([("a@o", "b@o")], data, LigandRecipe(**changes))
    with pytest.raises(InputError, match=message):
        nl.run("smallest", ligand=changes)
