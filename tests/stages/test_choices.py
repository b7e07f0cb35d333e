"""What is chosen is chosen on val: the test split has no say, and nobody looks at it before."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from evaluations import inputs_of, merge_rows
from small_models import ARCH, SmallTower, make_data, make_images, make_states, make_tower

from neulig_ray.evaluation.context import EvaluationContext, choose
from neulig_ray.evaluation.method_models import Tuning
from neulig_ray.evaluation.method_rows import MethodRows
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.ligand.data import LigandData
from neulig_ray.merging import METHODS
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.stages import merge_inputs
from neulig_ray.stages.merge_inputs import MergeReader
from neulig_ray.stages.read_inputs import SharedSplit
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import Split

KEYS = ("a@seed-0", "b@seed-0")
TASKS = ("a", "b")
STATES = make_states(KEYS)
STACK = ExpertStack.from_states(STATES)
BASE, UNLABELLED = make_tower(8).state_dict(), make_images("train")
CHOOSING = sorted(name for name in METHODS if METHODS[name].grid)


class Watched:
    """Images of a split that write its name down whenever somebody looks at them."""

    def __init__(self, split: str, images: np.ndarray, seen: list[str]) -> None:
        self.split, self._images, self._seen = split, images, seen
        self.shape = images.shape

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Any) -> np.ndarray:
        self._seen.append(self.split)
        return self._images[rows]


def split_data(split: str) -> LigandData:
    """What the experts and the origin see."""
    found = make_data(split, STATES)
    origin = {
        ("seed-0", task): np.full((len(labels), 6), 0.5, np.float32) for task, labels in found.labels.items()
    }
    return replace(found, embeddings={**found.embeddings, **origin})


VAL, TEST = split_data("val"), split_data("test")


def evaluate(method: str, grid: Mapping[str, Any], test: LigandData, seen: list[str]) -> MethodRows:
    val_images, images = (
        {task: Watched(split, found, seen) for task, found in make_images(split).items()}
        for split in ("val", "test")
    )
    return merge_rows(
        METHODS[method],
        KEYS,
        stack=STACK,
        tower=SmallTower(),
        arch=ARCH,
        test=test,
        images=images,  # type: ignore[arg-type]
        base=BASE,
        origin="seed-0",
        unlabelled=UNLABELLED,
        tuning=Tuning(grid, EvaluationContext(KEYS, STACK, SmallTower(), ARCH, VAL, val_images), 30),  # type: ignore[arg-type]
    )


def two_ends(method: str) -> dict[str, tuple[Any, ...]]:
    return {option: (values[0], values[-1]) for option, values in METHODS[method].grid.items()}


@pytest.mark.parametrize("method", CHOOSING)
def test_nobody_looks_at_test_images_before_everything_is_chosen(method: str) -> None:
    seen: list[str] = []
    grid = two_ends(method)
    evaluate(method, grid, TEST, seen)
    rules, tries = 2, int(np.prod([len(values) for values in grid.values()]))
    assert seen == ["val"] * (rules * tries * len(TASKS)) + ["test"] * (rules * len(TASKS))


@pytest.mark.parametrize("method", CHOOSING)
def test_a_test_split_on_which_another_value_is_perfect_changes_no_choice(method: str) -> None:
    grid = two_ends(method)
    chosen = evaluate(method, grid, TEST, []).selected
    bench = EvaluationContext(KEYS, STACK, SmallTower(), ARCH, TEST, make_images("test"))
    settings = Tuning(grid, bench).settings()
    perfect = []
    for setting in settings:
        merged = METHODS[method].run(inputs_of(KEYS, STACK, SmallTower(), BASE), setting)
        labels = {}
        for task in TASKS:
            every = torch.arange(len(bench.images[task]))
            labels[task] = bench.logits(merged.by_task[task], task, every).argmax(-1).numpy()
        found = evaluate(method, grid, replace(TEST, labels={**TEST.labels, **labels}), [])
        assert found.selected == chosen
        averaged = [row["merging_accuracy"] for row in found.rows if row["buffers"] == "average"]
        perfect.append(averaged == [100.0, 100.0])
    assert sum(perfect) < len(settings), "a choice by test would be perfect each time"


# What experiments hand over ---------------------------------------------------------------------------------


@pytest.fixture
def splits_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits in the order in which they are read, out of a storage that is not there."""
    seen: list[str] = []

    def read_split(storage: Storage, models: ArchModels, split: str, keys: Any, images: bool) -> SharedSplit:
        seen.append(split)
        data = split_data(split)
        return SharedSplit(data.embeddings, data.labels, data.heads, make_images(split))

    def load_split(storage: Storage, artifact: Artifact, split: str) -> Split:
        seen.append(split)
        return Split(make_images(split)[artifact.label], split_data(split).labels[artifact.label])

    class Clip:
        visual = make_tower(8)

    monkeypatch.setattr(merge_inputs, "read_split", read_split)
    monkeypatch.setattr(merge_inputs, "load_split", load_split)
    monkeypatch.setattr(merge_inputs, "read_stack", lambda *_: STACK)
    monkeypatch.setattr(merge_inputs, "load_clip", lambda *_: Clip)
    monkeypatch.setattr(merge_inputs, "load_bare_tower", lambda arch: SmallTower())
    monkeypatch.setattr(merge_inputs, "ARCHS", {ARCH.name: ARCH})
    return seen


def reader_of(storage: Storage) -> MergeReader:
    origin = Artifact("origin", "seed-0", "0")
    data = {task: Artifact("task", task, task) for task in TASKS}
    return MergeReader(storage, ArchModels(ARCH.name, {"seed-0": origin}, data=data), KEYS, 20, 30, 4)


def test_scalings_are_tried_on_val(splits_read: list[str], tmp_path: Any) -> None:
    tuning = reader_of(Storage(str(tmp_path))).tuning(MethodSpec.parse("task-arithmetic"))
    assert splits_read == ["val"]
    assert tuning is not None
    assert all(np.array_equal(tuning.val.images[task], make_images("val")[task]) for task in TASKS)
    assert all(np.array_equal(tuning.val.data.labels[task], VAL.labels[task]) for task in TASKS)
    assert reader_of(Storage(str(tmp_path))).tuning(MethodSpec.parse("task-arithmetic:scaling=0.3")) is None


@pytest.mark.parametrize(
    ("method", "split"),
    [
        ("soup-greedy", "val"),
        ("adamerging", "val"),
        ("adamerging:adapt_on=test", "test"),
        ("regmean-plus-plus", "train"),
    ],
)
def test_methods_that_look_at_images_see_their_split(
    method: str, split: str, splits_read: list[str], tmp_path: Any
) -> None:
    """Test images are for the one option that says so, and then without labels."""
    spec, reader = MethodSpec.parse(method), reader_of(Storage(str(tmp_path)))
    inputs = reader.inputs(spec)
    assert splits_read == [], "nothing before it is asked for"
    wanted = make_images(split)
    for key, images in inputs.images.items():
        assert np.array_equal(images.images, wanted[key[0]])  # type: ignore[attr-defined]
    assert splits_read == [split, split]
    assert inputs.heads.keys() == set(KEYS)
    assert all(torch.equal(inputs.heads[key], VAL.head(key)) for key in KEYS)
    reached = inputs.score(STATES["b@seed-0"])
    assert splits_read == [split, split, "val"]
    assert reader.unlabelled().keys() == set(TASKS)
    assert splits_read == [split, split, "val", "train", "train"]
    judge = EvaluationContext(KEYS, STACK, SmallTower(), ARCH, VAL, make_images("val"))
    for key, accuracy in reached.items():
        rows = choose(len(judge.images[key[0]]), 30, 4, key[0])
        right = judge.logits(STATES["b@seed-0"], key[0], rows).argmax(-1) == judge.labels(key[0], rows)
        assert accuracy == pytest.approx(100 * float(right.double().mean()))
    assert "test" not in splits_read or split == "test"
