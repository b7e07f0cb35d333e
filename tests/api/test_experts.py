"""`nl.load_experts` and `nl.evaluate`, on experts that were never trained: seconds, and no cluster."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import neulig_ray as nl
from neulig_ray.errors import TrainingDiverged
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_clip, embed
from neulig_ray.models.tower_files import describe, tower_bytes
from neulig_ray.stages.experts import FILE
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import TASKS

ARCH = ARCHS["tiny-rn"]


def tower(seed: int, arch: str = "tiny-rn") -> torch.nn.Module:
    found: torch.nn.Module = build_clip(ARCHS[arch], seed=seed).visual
    return found


def expert_bytes(seed: int, task: str, origin: str = "seed-0", arch: str = "tiny-rn") -> bytes:
    about = describe(ARCHS[arch], "tower", task=task, origin=origin)
    return tower_bytes(tower(seed, arch).state_dict(), about)


def store(storage: Storage, seed: int, task: str, origin: str = "seed-0", arch: str = "tiny-rn") -> Artifact:
    artifact = Artifact.of("expert", f"{arch}.{task}@{origin}", 1, {"seed": seed})
    info = {"arch": arch, "task": task, "origin": f"{arch}.{origin}"}
    storage.commit(artifact, {FILE: expert_bytes(seed, task, origin, arch)}, info)
    return artifact


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Three experts of two origins, and one that was never finished."""
    made = Storage(str(tmp_path_factory.mktemp("storage")))
    store(made, 1, "textures")
    store(made, 2, "digits")
    store(made, 3, "digits", "seed-1")
    made.write("artifacts/expert/tiny-rn.signs@seed-0-0123456789abcdef/expert.safetensors", b"begun")
    return made


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [
        ({}, ["digits@seed-0", "digits@seed-1", "textures@seed-0"]),
        ({"origin": "seed-0"}, ["digits@seed-0", "textures@seed-0"]),
        ({"tasks": ("digits",)}, ["digits@seed-0", "digits@seed-1"]),
        ({"tasks": ["textures"], "arch": "tiny-rn"}, ["textures@seed-0"]),
    ],
)
def test_the_finished_experts_of_a_storage_are_found(
    wanted: dict[str, Any], labels: list[str], storage: Storage
) -> None:
    experts = nl.load_experts(storage.uri, **wanted)
    assert list(experts) == labels
    for label, expert in experts.items():
        assert (expert.label, f"{expert.task}@{expert.origin}", expert.arch.name) == (label, label, "tiny-rn")


def test_an_expert_is_its_file(storage: Storage) -> None:
    expert = nl.load_experts(storage.uri)["digits@seed-0"]
    expected = tower(2)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(expert.state()[name], tensor)
    images = TASKS["digits"].splits(0)["val"].images[:5]
    assert np.array_equal(expert.embed(images), embed(expected, images, ARCH))
    assert expert.head().shape == (10, 128)
    assert expert.head("textures").shape == (len(TASKS["textures"].class_names), 128)


def test_experts_are_merged_from_their_files(storage: Storage, tmp_path: Path) -> None:
    import json

    from safetensors import safe_open

    experts = nl.load_experts(storage.uri)
    out = nl.merge("average", experts, out=tmp_path / "m.safetensors")
    with safe_open(out, "pt") as file:
        about = json.loads(file.metadata()["neulig"])
    assert (about["kind"], about["arch"]) == ("tower", "tiny-rn")
    assert [record["label"] for record in about["experts"]] == list(experts)
    assert all(len(record["sha256"]) == 64 for record in about["experts"])
    merged = nl.merge("average", {label: expert.state() for label, expert in experts.items()})
    assert all(torch.equal(merged[name], t) for name, t in nl.merge("average", experts).items())


def test_experts_are_loaded_from_paths_names_and_folders(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").write_bytes(expert_bytes(1, "signs"))
    save_file(tower(2).state_dict(), tmp_path / "foreign.safetensors")
    found = nl.load_experts(
        [tmp_path / "one.safetensors", tmp_path / "foreign.safetensors", "expert:tiny-rn.digits@seed-1"],
        storage=storage.uri,
    )
    assert list(found) == ["digits@seed-1", "foreign", "signs@seed-0"]
    assert list(nl.load_experts(tmp_path)) == ["foreign", "signs@seed-0"]
    assert list(nl.load_experts(tmp_path, tasks=["signs"])) == ["signs@seed-0"]
    for read in ("arch", "task", "origin"):
        with pytest.raises(
            nl.InputError, match=f"foreign.safetensors does not say its {read}.*neulig import"
        ):
            getattr(found["foreign"], read)


def test_what_cannot_be_told_apart_is_asked_for(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(nl.InputError, match=r"no such expert in .*neulig finetune"):
        nl.load_experts(storage.uri)
    twins = [store(storage, seed, "digits") for seed in (1, 2)]
    with pytest.raises(nl.InputError, match="has 2 experts digits@seed-0: name") as refused:
        nl.load_experts(storage.uri)
    names = [f"expert:{twin.path.rpartition('/')[2]}" for twin in twins]
    assert all(name in str(refused.value) for name in names)
    assert list(nl.load_experts(names[:1], storage=storage.uri)) == ["digits@seed-0"]
    store(storage, 1, "textures", arch="tiny-vit")
    with pytest.raises(nl.InputError, match="experts of tiny-rn and tiny-vit: give arch="):
        nl.load_experts(storage.uri)
    assert list(nl.load_experts(storage.uri, arch="tiny-vit")) == ["textures@seed-0"]


# Evaluation -------------------------------------------------------------------------------------------------


def test_models_of_every_kind_have_the_same_accuracy(storage: Storage, tmp_path: Path) -> None:
    experts = nl.load_experts(storage.uri)
    expert = experts["digits@seed-0"]
    module = tower(2).train()
    models = {
        "expert": expert,
        "path": expert.path,
        "name": f"expert:{expert.path.parent.name}",
        "state": expert.state(),
        "module": module,
    }
    found = nl.evaluate(models, "digits", arch="tiny-rn", origin="seed-0", images=64, storage=storage.uri)
    assert list(found["model"]) == list(models)
    assert found["accuracy"].nunique() == 1
    assert module.training
    assert not next(iter(module.state_dict().values())).isnan().any()
    alone = nl.evaluate(expert, "digits", images=64, storage=storage.uri)
    assert alone["accuracy"].tolist() == found["accuracy"].tolist()[:1]
    assert alone["model"].tolist() == ["digits@seed-0"]


def test_accuracy_is_the_percentage_of_right_scores(storage: Storage) -> None:
    expert = nl.load_experts(storage.uri)["digits@seed-0"]
    found = nl.evaluate({"one": expert}, ("digits", "textures"), split="val", storage=storage.uri)
    assert found.columns.tolist() == ["model", "task", "split", "num_samples", "accuracy"]
    for row in found.itertuples():
        data = TASKS[row.task].splits(0)["val"]
        z = expert.embed(data.images).astype(np.float64)
        scores = (z / np.linalg.norm(z, axis=1, keepdims=True)) @ expert.head(row.task).T.astype(np.float64)
        assert row.num_samples == len(data)
        assert row.accuracy == pytest.approx(
            100 * (scores.argmax(1) == data.labels).mean(), abs=100.1 / len(data)
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": "digit"}, "unknown task 'digit'.*'digits'"),
        ({"split": "tset"}, "unknown split 'tset'.*'test'"),
        ({"arch": None}, "the model does not say its arch: give arch="),
        ({"origin": None}, "the model does not say its origin: give origin="),
        ({"arch": "tiny-nr"}, "unknown arch 'tiny-nr'.*'tiny-rn'"),
        ({"arch": "tiny-vit"}, "the model lacks .* name a file of the right arch"),
        ({"origin": "sead-0"}, "unknown origin 'sead-0'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(changes: dict[str, Any], words: str) -> None:
    arguments = {"tasks": "digits", "arch": "tiny-rn", "origin": "seed-0", "images": 8}
    with pytest.raises(nl.InputError, match=words):
        nl.evaluate(dict(tower(1).state_dict()), **(arguments | changes))  # type: ignore[arg-type]


def test_a_file_of_another_arch_is_not_taken_for_this_one(storage: Storage) -> None:
    expert = nl.load_experts(storage.uri)["digits@seed-0"]
    with pytest.raises(nl.InputError, match="arch is 'tiny-rn', but 'tiny-vit' is asked"):
        nl.evaluate(expert, "digits", arch="tiny-vit", images=8)


def test_a_model_of_nan_has_no_accuracy() -> None:
    broken = tower(1)
    torch.nn.init.constant_(next(iter(broken.parameters())), torch.nan)
    with pytest.raises(TrainingDiverged, match="the model on digits: the logits of 8 of 8 images are NaN"):
        nl.evaluate(broken, "digits", arch="tiny-rn", origin="seed-0", images=8)


def test_an_expert_cannot_be_changed(storage: Storage) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        nl.load_experts(storage.uri)["digits@seed-0"].label = "x"  # type: ignore[misc]
