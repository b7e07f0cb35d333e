"""Which images are in which split: the paper's sizes, and val carved from train."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_folders import folder
from rich.console import Console

from neulig_ray.cluster.progress import Reporter
from neulig_ray.cluster.run_context import RunContext
from neulig_ray.cluster.session import ClusterSession
from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment, check_values
from neulig_ray.pipeline.pipeline import Pipeline
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.report.html import render
from neulig_ray.results.schema import frame as results_frame
from neulig_ray.stages.tasks import task_artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import TASKS
from neulig_ray.tasks.reading.files import pictures
from neulig_ray.tasks.reading.protocols import paper_rows, standard_rows
from neulig_ray.tasks.reading.splits import with_every_class

# The published sizes: train, test, val (the reference's "shadow").
PAPER = {
    "gtsrb": (7005, 7005, 12630),
    "mnist": (25000, 25000, 10000),
    "resisc45": (6300, 6300, 6300),
    "svhn": (23612, 23613, 26032),
    "stl10": (1700, 1700, 1600),
    "cifar100": (20000, 20000, 10000),
    "cifar10": (20000, 20000, 10000),
    "oxford-iiit-pet": (1140, 1140, 1400),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_sizes_from_full_size_index_lists(name: str) -> None:
    files = TASKS[name].files
    total, held_out = files.num_images["train"], files.held_out or files.num_images["test"]
    rows = paper_rows(total, held_out)
    assert tuple(len(rows[split]) for split in ("train", "test", "val")) == PAPER[name]
    assert np.array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(total))


def test_the_papers_rows_are_torchs_random_split_of_seed_0() -> None:
    lengths = [2350, 2351, 300]
    parts = torch.utils.data.random_split(range(5001), lengths, generator=torch.Generator().manual_seed(0))
    rows = paper_rows(5001, 300)
    for split, part in zip(("train", "test", "val"), parts, strict=True):
        assert rows[split].tolist() == list(part.indices)


@given(total=st.integers(1, 300), held_out=st.integers(0, 320))
def test_paper_rows_divide_all_images_or_say_why_not(total: int, held_out: int) -> None:
    if held_out < 1 or total - held_out < 2:
        with pytest.raises(InputError, match=f"of {total} training images {held_out} go to val"):
            paper_rows(total, held_out)
        return
    rows = paper_rows(total, held_out)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(total))
    assert 0 <= len(rows["test"]) - len(rows["train"]) <= 1


@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=6), seed=st.integers(0, 5))
def test_val_is_a_tenth_of_every_class(counts: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    if len(labels) < 2:
        return
    rows = standard_rows("any", seed, labels)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(labels)))
    assert len(rows["val"]) == max(1, round(len(labels) / 10))
    share = np.bincount(labels[rows["val"]], minlength=len(counts)) - np.array(counts) * len(
        rows["val"]
    ) / len(labels)
    assert np.abs(share).max() < 2
    again = standard_rows("any", seed, labels)
    assert all(np.array_equal(rows[split], again[split]) for split in rows)


def test_val_has_at_most_5000_images() -> None:
    assert len(standard_rows("any", 0, np.arange(73257) % 10)["val"]) == 5000


def test_a_drawn_task_has_the_papers_splits_by_the_same_rule() -> None:
    drawn, paper = (pictures(TASKS["digits"], 0, protocol) for protocol in ("standard", "paper"))
    assert {split: len(part) for split, part in drawn.items()} == {"train": 900, "val": 297, "test": 600}
    assert {split: len(part) for split, part in paper.items()} == {"train": 298, "test": 299, "val": 600}
    pool = {np.asarray(drawn[s].read(i)).tobytes() for s in ("train", "val") for i in range(len(drawn[s]))}
    assert all(np.asarray(paper["test"].read(i)).tobytes() in pool for i in range(0, 299, 50))


# Protocols in an experiment

TOY = Experiment(name="p", archs=("tiny-rn",), tasks=("digits", "shapes"), n=(2,))


def test_a_protocol_is_part_of_a_tasks_name() -> None:
    names = {
        task_artifact("digits", 0).fingerprint,
        task_artifact("digits", 0, "paper").fingerprint,
        task_artifact("digits", 0, "paper", views=2).fingerprint,
        task_artifact("digits", 0, "paper", size=32).fingerprint,
        task_artifact("digits", 1, "paper").fingerprint,
    }
    assert len(names) == 5
    assert task_artifact("digits", 0, "paper").label == "digits.s0.paper"
    standard, paper = make_plan(TOY), make_plan(dataclasses.replace(TOY, protocol="paper"))
    assert standard.tasks.keys() == paper.tasks.keys()
    assert not {j.artifact for j in standard.tasks.values()} & {j.artifact for j in paper.tasks.values()}


def test_the_size_of_the_models_counts_only_where_images_are_fitted_to_it() -> None:
    def same(name: str) -> bool:
        return task_artifact(name, 0, size=224) == task_artifact(name, 0, size=336)

    assert same("digits")  # drawn
    assert same("cifar10")  # 32x32 all of them
    assert not same("gtsrb")  # of many sizes
    assert not same("resisc45")  # 256x256: larger than the one, smaller than the other


def test_tasks_without_the_papers_splits_refuse_them() -> None:
    with pytest.raises(InputError, match=r"'dtd' has no splits of protocol 'paper'.*digits.*gtsrb.*svhn"):
        make_plan(dataclasses.replace(TOY, tasks=("digits", "dtd"), protocol="paper"))


def test_views_belong_to_the_paper() -> None:
    with pytest.raises(InputError, match="views 3 is of protocol paper alone"):
        check_values(dataclasses.replace(TOY, views=3))
    with pytest.raises(InputError, match="views -1 must not be negative"):
        check_values(dataclasses.replace(TOY, protocol="paper", views=-1))
    check_values(dataclasses.replace(TOY, protocol="paper", views=0))


def test_a_folder_goes_by_its_name_in_a_plan(tmp_path: Path) -> None:
    path = folder(tmp_path / "pets")
    plan = make_plan(dataclasses.replace(TOY, tasks=("digits", f"folder:{path}")))
    assert list(plan.tasks) == ["digits", "pets"]
    assert plan.tasks["pets"].needs.on_driver
    assert not plan.tasks["digits"].needs.on_driver
    assert {"pets", "digits"} == {e.task for e in plan.experts}
    assert all("folder" not in a.path for found in plan.artifacts().values() for a in found)
    assert plan.experiment.tasks == ("digits", f"folder:{path}")
    heads = [job for job in plan.heads if job.task == "pets"]
    assert heads[0].class_names == ("cat", "dog house", "emu")
    with pytest.raises(InputError, match=r"two of them are called 'pets'.*NAME="):
        make_plan(dataclasses.replace(TOY, tasks=(f"folder:{path}", f"pets=folder:{path}")))


def test_data_that_cannot_be_had_stops_a_run_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEULIG_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = make_plan(dataclasses.replace(TOY, tasks=("digits", "cifar10")))
    cluster = ClusterSession(None, ())
    monkeypatch.setattr(cluster, "start", lambda: pytest.fail("the cluster was started"))
    reporter = Reporter(Console(), quiet=True)
    pipeline = Pipeline(plan, RunContext(Storage(str(tmp_path / "storage")), cluster, reporter))
    with pytest.raises(InputError, match=r"cifar10.*By hand: place cifar-10-batches-py/"):
        pipeline.run("evaluate")
    assert not (tmp_path / "storage/artifacts").exists()


def test_the_report_says_what_the_papers_test_images_are() -> None:
    def page(**configuration: object) -> str:
        frame = results_frame([])
        return render({"x": frame}, {"x": {"configuration": configuration}})

    assert "Protocol paper" not in page(protocol="standard", views=1)
    assert "in 2 views each" in page(protocol="paper", views=2)
    assert "evaluation transform" in page(protocol="paper", views=0)


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=8), seed=st.integers(0, 5))
def test_val_has_every_class_that_has_two_images(counts: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = with_every_class(standard_rows("any", seed, labels), labels, small="val", large="train")
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(labels)))
    have = [set(labels[rows[split]]) for split in ("train", "val")]
    for label, count in enumerate(counts):
        assert count < 2 or all(label in found for found in have)


def test_no_image_moves_where_every_class_has_one() -> None:
    labels = np.arange(500) % 10
    before = standard_rows("any", 0, labels)
    after = with_every_class(before, labels, small="val", large="train")
    assert all(np.array_equal(before[split], after[split]) for split in before)
