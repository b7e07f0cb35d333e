"""`nl.train_ligand`, `nl.load_ligand` and the gate that both give."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import KEYS, make_data, make_states, make_tower

import neulig_ray as nl
from neulig_ray.ligand.coopvec import coopvecs
from neulig_ray.ligand.data import LigandData, task_of
from neulig_ray.ligand.files import ligand_bytes
from neulig_ray.ligand.training import train_ligands
from neulig_ray.ligand.weighted_offset import Offsets
from neulig_ray.merging.parameters import ExpertStack

TASKS = tuple(map(task_of, KEYS))
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def data() -> LigandData:
    return make_data("train", make_states())


def heads_of(data: LigandData) -> dict[str, np.ndarray]:
    return {task_of(key): head for key, head in data.heads.items()}


def train(data: LigandData, **changes: Any) -> nl.Gate:
    arguments = {"embeddings": data.embeddings, "labels": data.labels, "heads": heads_of(data)}
    return nl.train_ligand(**(arguments | SETTINGS | changes))


@pytest.mark.parametrize("objective", ["sup", "semi"])
@pytest.mark.parametrize("form", ["scalar", "gram"])
def test_it_is_the_pipelines_ligand_bit_by_bit(data: LigandData, objective: Any, form: Any) -> None:
    offsets = Offsets.measure(ExpertStack.from_states(make_states()))
    expected = train_ligands(
        [KEYS],
        data,
        offsets.form(KEYS, form)[None],
        objective=objective,
        alignment_weight=0.3,
        seed=5,
        **SETTINGS,
    )
    gate = train(
        data, objective=objective, alignment_form=form, alignment_weight=0.3, experts=make_states(), seed=5
    )
    assert gate.experts == KEYS
    for name, tensor in expected.state().items():
        assert torch.equal(gate.portland.state()[name], tensor), name
    seen = {key: data.embeddings[key, "a"] for key in KEYS}
    assert torch.equal(gate.beta(seen), coopvecs(expected, 0, data, "a"))
    assert torch.equal(gate.beta(np.stack([seen[key] for key in KEYS])), gate.beta(seen))


def test_neither_the_order_of_the_dicts_nor_the_kind_of_the_arrays_matters(data: LigandData) -> None:
    expected = train(data).portland.state()
    backwards = dict(reversed(data.embeddings.items()))
    tensors = {key: torch.tensor(array) for key, array in data.embeddings.items()}
    lists = {task: array.tolist() for task, array in data.labels.items()}
    for changes in ({"embeddings": backwards}, {"embeddings": tensors}, {"labels": lists}):
        for name, tensor in train(data, **changes).portland.state().items():
            assert torch.equal(tensor, expected[name])


def test_the_alignment_weight_is_the_references_where_the_experts_are_given(data: LigandData) -> None:
    plain, given = train(data), train(data, experts=make_states())
    assert (plain.about["alignment_weight"], given.about["alignment_weight"]) == (0.0, 0.01)
    assert not torch.equal(plain.portland.weight, given.portland.weight)


def test_labels_are_not_needed_without_labels(data: LigandData) -> None:
    with_labels, without = train(data, objective="semi"), train(data, objective="semi", labels=None)
    assert torch.equal(with_labels.portland.weight, without.portland.weight)
    with pytest.raises(nl.InputError, match="labels is None, but the objective 'sup'"):
        train(data, labels=None)


def without(mapping: Any, *keys: Any) -> dict[Any, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


def with_nan(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed[0, 0] = np.nan
    return changed


REFUSED = {
    "one expert": (lambda d: {"embeddings": {(KEYS[0], "a"): d.embeddings[KEYS[0], "a"]}}, "of 1 experts"),
    "no experts": (lambda d: {"embeddings": {}}, "of 0 experts"),
    "no labels": (lambda d: {"labels": without(d.labels, "b")}, "labels lack the task 'b' of the expert 'b@"),
    "no head": (lambda d: {"heads": without(heads_of(d), "c")}, "heads lack the task 'c'"),
    "odd names": (
        lambda d: {"embeddings": {(k.upper(), t): z for (k, t), z in d.embeddings.items()}},
        "labels lack the task 'A' .* are called TASK or TASK@ORIGIN",
    ),
    "no embeddings": (
        lambda d: {"embeddings": without(d.embeddings, (KEYS[1], "c"))}, r"lack \('b@seed-0', 'c'\)",
    ),
    "NaN": (
        lambda d: {"embeddings": {**d.embeddings, (KEYS[0], "b"): with_nan(d.embeddings[KEYS[0], "b"])}},
        r"embeddings\['a@seed-0', 'b'\] holds NaN",
    ),
    "flat": (
        lambda d: {"embeddings": {**d.embeddings, (KEYS[0], "b"): d.embeddings[KEYS[0], "b"].ravel()}},
        r"is of shape \(360,\): give \(N, d\)",
    ),
    "another dimension": (
        lambda d: {"embeddings": {**d.embeddings, (KEYS[0], "b"): d.embeddings[KEYS[0], "b"][:, :4]}},
        r"different dimensions \[4, 6\]",
    ),
    "fewer images": (
        lambda d: {"embeddings": {**d.embeddings, (KEYS[0], "b"): d.embeddings[KEYS[0], "b"][1:]}},
        "59 embeddings by 'a@seed-0', but 60 labels",
    ),
    "labels beyond the head": (
        lambda d: {"labels": {**d.labels, "a": d.labels["a"] + 1}}, "head of 'a@seed-0' has 3 classes",
    ),
    "labels that are numbers": (
        lambda d: {"labels": {**d.labels, "a": d.labels["a"] / 2}}, r"labels\['a'\] are float64",
    ),
    "one-hot labels": (
        lambda d: {"labels": {**d.labels, "a": np.eye(3, dtype=int)[d.labels["a"]]}}, r"shape \(37, 3\)",
    ),
    "no weights": (lambda d: {"alignment_weight": 0.1}, "made of the experts' weights: give experts="),
    "an expert short": (
        lambda d: {"experts": without(make_states(), KEYS[2]), "alignment_weight": 0.1},
        "unknown expert 'c@seed-1'",
    ),
    "objective": (lambda d: {"objective": "supervised"}, "unknown objective 'supervised'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_arrays_that_do_not_fit_are_refused_by_name(case: str, data: LigandData) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(nl.InputError, match=words):
        train(data, **changes(data))


# The gate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merging_is_the_weighted_sum_in_the_experts_dtypes(
    data: LigandData, dtype: torch.dtype, tmp_path: Path
) -> None:
    gate = train(data)
    beta = gate.beta({key: data.embeddings[key, "a"] for key in KEYS}).mean(0)
    experts = {
        key: {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
        for key, state in make_states().items()
    }
    merged = gate.merge(dict(reversed(experts.items())), beta)
    for name, tensor in experts[KEYS[0]].items():
        assert merged[name].dtype == tensor.dtype
        if tensor.is_floating_point():
            exact = sum(float(b) * experts[key][name].double() for b, key in zip(beta, KEYS, strict=True))
            torch.testing.assert_close(
                merged[name].double(), exact, rtol=1e-3 if dtype.itemsize < 4 else 1e-6, atol=1e-6
            )
        else:
            assert torch.equal(merged[name], tensor)
    expected = ExpertStack.from_states({key: experts[key] for key in KEYS}).combine(beta)
    assert all(torch.equal(merged[name], expected[name].to(merged[name].dtype)) for name in merged)
    modules = {key: make_tower(seed) for seed, key in enumerate(KEYS)}
    if dtype == torch.float32:
        assert torch.equal(gate.merge(modules, beta.tolist())["proj.weight"], merged["proj.weight"])


@pytest.mark.parametrize(
    ("beta", "words"),
    [
        ([0.5, 0.5], r"of shape \(2,\)"),
        (np.full((4, 3), 1 / 3), r"of shape \(4, 3\).*beta.mean\(0\)"),
        ([0.5, 0.6, 0.2], "not in the simplex"),
        ([1.5, -0.5, 0.0], "not in the simplex"),
        ([np.nan, 0.5, 0.5], "not in the simplex"),
    ],
)
def test_a_beta_that_is_none_is_refused(beta: Any, words: str, data: LigandData) -> None:
    with pytest.raises(nl.InputError, match=words):
        train(data).merge(make_states(), beta)


@pytest.mark.parametrize(
    ("z", "words"),
    [
        (lambda z: without(z, KEYS[1]), "unknown expert 'b@seed-0'"),
        (lambda z: {**z, KEYS[0]: z[KEYS[0]][1:]}, "of shapes"),
        (lambda z: {key: value[:, :5] for key, value in z.items()}, r"each expert gives \(N, 6\)"),
        (lambda z: np.stack(list(z.values()))[:2], r"give \(n, N, d\) of 3 experts"),
        (lambda z: np.concatenate(list(z.values()), 1), r"give \(n, N, d\) of 3 experts"),
        (lambda z: {**z, KEYS[0]: with_nan(z[KEYS[0]])}, "holds NaN"),
    ],
)
def test_embeddings_that_do_not_fit_the_gate_are_refused(z: Any, words: str, data: LigandData) -> None:
    seen = {key: data.embeddings[key, "a"] for key in KEYS}
    with pytest.raises(nl.InputError, match=words):
        train(data).beta(z(seen))


def test_models_that_lack_an_expert_are_refused(data: LigandData) -> None:
    with pytest.raises(nl.InputError, match="unknown expert 'c@seed-1'"):
        train(data).merge(without(make_states(), "c@seed-1"), [1 / 3] * 3)


# Files ------------------------------------------------------------------------------------------------------


def test_a_gate_is_saved_and_read(data: LigandData, tmp_path: Path) -> None:
    gate = train(data, seed=3)
    read = nl.load_ligand(gate.save(tmp_path / "gate.safetensors"))
    assert (read.experts, read.about) == (gate.experts, gate.about)
    assert read.about["seed"] == 3
    seen = {key: data.embeddings[key, "b"] for key in KEYS}
    assert torch.equal(read.beta(seen), gate.beta(seen))
    assert (
        read.save(tmp_path / "again.safetensors").read_bytes() == (tmp_path / "gate.safetensors").read_bytes()
    )


def test_of_a_file_with_several_combinations_one_is_named(data: LigandData, tmp_path: Path) -> None:
    pairs = [(KEYS[0], KEYS[1]), (KEYS[0], KEYS[2])]
    trained = train_ligands(
        pairs, data, torch.zeros(2, 2, 2), objective="sup", alignment_weight=0, seed=0, **SETTINGS
    )
    file = tmp_path / "pairs.safetensors"
    file.write_bytes(ligand_bytes(trained, {}))
    gate = nl.load_ligand(file, [KEYS[2], KEYS[0]])
    assert gate.experts == pairs[1]
    seen = {key: data.embeddings[key, "a"] for key in pairs[1]}
    assert torch.equal(gate.beta(seen), coopvecs(trained, 1, data, "a"))
    with pytest.raises(
        nl.InputError, match=r"2 combinations, experts= is one of: a@seed-0, b@seed-0; a@seed-0"
    ):
        nl.load_ligand(file)
    with pytest.raises(nl.InputError, match="no ligand of b@seed-0, c@seed-1, but of"):
        nl.load_ligand(file, KEYS[1:])


@pytest.mark.parametrize("fault", ["no ligand", "truncated", "combinations", "shape", "NaN", "missing"])
def test_what_is_no_ligand_is_refused(fault: str, data: LigandData, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = train(data).save(tmp_path / "gate.safetensors")
    state = load_file(file)
    header = '{"kind": "ligand", "format": 1, "combinations": [["a", "b", "c"]]}'
    if fault == "no ligand":
        save_file(state, file)
    elif fault == "truncated":
        file.write_bytes(file.read_bytes()[:-8])
    elif fault == "missing":
        file = tmp_path / "gaet.safetensors"
    elif fault == "combinations":
        save_file(state, file, {"neulig": header.replace('[["a", "b", "c"]]', "7")})
    elif fault == "shape":
        save_file(state, file, {"neulig": header.replace('"a", ', "")})
    else:
        save_file(state | {"bias": torch.full_like(state["bias"], torch.nan)}, file, {"neulig": header})
    words = {
        "no ligand": "is no ligand",
        "truncated": "truncated",
        "NaN": "NaN",
        "missing": "Did you mean .*gate",
    }
    with pytest.raises(nl.InputError, match=words.get(fault, "is damaged")):
        nl.load_ligand(file)
