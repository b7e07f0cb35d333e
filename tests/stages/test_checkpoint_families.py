"""Imported experts by name alone, and families of checkpoints, which no table mixes."""

import dataclasses
from pathlib import Path

import pytest
from foreign import ARCH, moved

from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment
from neulig_ray.models.tower_files import describe, tower_bytes
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.stages.checkpoint_families import (
    FUSIONBENCH,
    TALL_MASKS,
    TASK_VECTORS,
    check_families,
    family_of,
)
from neulig_ray.stages.imported_experts import store_bytes, store_expert, stored_name, with_stored
from neulig_ray.storage.storage import Storage

SOURCES = {
    FUSIONBENCH: "hf-hub:tanganke/clip-vit-base-patch32_sun397",
    TALL_MASKS: "SUN397Val/nonlinear_finetuned.pt",
    TASK_VECTORS: "SUN397/finetuned.pt",
}
NAMES = ("tiny-vit.digits@seed-0", "tiny-vit.textures@seed-0")
EXPERIMENT = Experiment(
    name="families", archs=("tiny-vit",), tasks=("digits", "textures"), n=(2,), experts=NAMES
)


def expert(task: str, source: str, seed: int = 1) -> bytes:
    state, _ = moved(seed=seed)
    about = {"source": source, "source_sha256": "0" * 64, "source_layout": "open_clip"}
    return tower_bytes(state, describe(ARCH, "tower", task=task, origin="seed-0", **about))


def anything(source: str) -> bool:
    return False


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "storage"))


@pytest.mark.parametrize(
    ("source", "family"),
    [
        *((source, family) for family, source in SOURCES.items()),
        ("models/clip-vit-large-patch14_stanford-cars", FUSIONBENCH),
        ("hf-hub:nik-dim/tall_masks", TALL_MASKS),
        ("hf-hub:openai/clip-vit-base-patch32", None),
        ("mine/digits.safetensors", None),
        ("", None),
    ],
)
def test_a_source_tells_its_family(source: str, family: str | None) -> None:
    assert family_of(source) == family


def test_a_name_without_fingerprint_means_the_one_in_the_storage(storage: Storage) -> None:
    artifact = store_bytes(expert("digits", "mine/a.safetensors"), storage)
    found = with_stored(EXPERIMENT, storage, anything)
    assert found.experts == (stored_name(artifact), NAMES[1])
    plan = make_plan(found)
    assert plan.imported[0].artifact == artifact
    assert not plan.experts  # what is named and not there is not fine-tuned instead
    with pytest.raises(InputError, match=rf"{NAMES[1]}' is not in .*neulig import SOURCE.*--task textures"):
        store_expert(plan.imported[1], storage)


def test_an_expert_fine_tuned_here_is_not_an_imported_one(storage: Storage) -> None:
    job = make_plan(dataclasses.replace(EXPERIMENT, experts=())).experts[0]
    storage.commit(job.artifact, {"expert.safetensors": b"x"}, {"arch": "tiny-vit", "seed": 0})
    assert with_stored(EXPERIMENT, storage, anything).experts == NAMES


def test_several_of_one_name_are_chosen_by_family_or_refused(storage: Storage) -> None:
    wanted = store_bytes(expert("digits", SOURCES[TALL_MASKS]), storage)
    store_bytes(expert("digits", SOURCES[FUSIONBENCH], seed=2), storage)
    found = with_stored(EXPERIMENT, storage, lambda source: family_of(source) == TALL_MASKS)
    assert found.experts[0] == stored_name(wanted)
    with pytest.raises(
        InputError, match=rf"means several in the storage.*{stored_name(wanted)} \(of SUN397Val"
    ):
        with_stored(EXPERIMENT, storage, anything)


def test_two_families_are_never_mixed(storage: Storage) -> None:
    for task, family in (("digits", FUSIONBENCH), ("textures", TALL_MASKS)):
        store_bytes(expert(task, SOURCES[family]), storage)
    plan = make_plan(with_stored(EXPERIMENT, storage, anything))
    with pytest.raises(
        InputError, match=r"digits@seed-0 is of FusionBench; .*textures@seed-0 is of TALL-masks"
    ):
        check_families(plan.imported, storage)


def test_files_are_held_to_their_family_as_well(storage: Storage, tmp_path: Path) -> None:
    for task, family in (("digits", FUSIONBENCH), ("textures", TASK_VECTORS)):
        (tmp_path / f"{task}.safetensors").write_bytes(expert(task, SOURCES[family]))
    files = tuple(str(tmp_path / f"{task}.safetensors") for task in ("digits", "textures"))
    with pytest.raises(InputError, match="experts of 2 families"):
        check_families(make_plan(dataclasses.replace(EXPERIMENT, experts=files)).imported, storage)


def test_published_rows_of_another_family_are_refused(storage: Storage) -> None:
    for task in ("digits", "textures"):
        store_bytes(expert(task, SOURCES[FUSIONBENCH]), storage)
    plan = make_plan(with_stored(EXPERIMENT, storage, anything))
    check_families(plan.imported, storage, FUSIONBENCH)
    with pytest.raises(InputError, match=r"published rows are of the family TALL-masks, but .*FusionBench"):
        check_families(plan.imported, storage, TALL_MASKS)


def test_experts_of_no_known_family_stand_beside_any(storage: Storage) -> None:
    for task, source in (("digits", "mine/a.safetensors"), ("textures", SOURCES[FUSIONBENCH])):
        store_bytes(expert(task, source), storage)
    check_families(make_plan(with_stored(EXPERIMENT, storage, anything)).imported, storage, FUSIONBENCH)
