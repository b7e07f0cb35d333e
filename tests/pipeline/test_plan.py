"""Fingerprints: what a change of the configuration makes anew, and what it leaves."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Cluster, Evaluation, Experiment, Finetune, Ligand, Search
from neulig_ray.pipeline.plan import Plan, make_plan
from neulig_ray.plugins import load_plugins, read_plugins
from neulig_ray.results.granularities import OWN
from neulig_ray.tasks import TASKS

BASE = Experiment(
    name="plan", archs=("tiny-rn",), tasks=("digits", "textures"), n=(2,), search=Search(trials=3)
)
ALL = {"tasks", "origins", "heads", "experts", "embeddings", "search", "ligands", "models", "evaluations"}


def names(plan: Plan) -> dict[str, set[str]]:
    return {stage: {a.fingerprint for a in found} for stage, found in plan.artifacts().items()}


def changed(**changes: Any) -> set[str]:
    """The stages of which something differs from BASE's."""
    before, after = names(make_plan(BASE)), names(make_plan(dataclasses.replace(BASE, **changes)))
    others = {"statistics", "sources", "fused", "variants", "joint"}
    assert before.keys() == after.keys() == ALL | others
    return {stage for stage in ALL if before[stage] != after[stage]}


def evaluations(**changes: Any) -> dict[tuple[Any, ...], str]:
    plan = make_plan(dataclasses.replace(BASE, **changes))
    key = ("method", "alignment", "granularity", "collaborators", "origin", "n", "arch")
    return {
        (*(e.common[name] for name in key), e.tasks): e.job.artifact.fingerprint for e in plan.evaluations
    }


def changed_evaluations(**changes: Any) -> set[tuple[Any, ...]]:
    before, after = evaluations(), evaluations(**changes)
    return {key for key in before.keys() & after.keys() if before[key] != after[key]}


def test_the_same_experiment_has_the_same_names() -> None:
    assert changed() == set()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "another"},
        {
            "cluster": Cluster(
                max_groups=1, max_failures=7, gpus_per_worker=0.5, gpus_per_evaluation=0.1, autoscaling=True
            )
        },
        {"tasks": ("textures", "digits")},
    ],
    ids=["name", "cluster", "order"],
)
def test_what_does_not_change_results_changes_no_name(changes: dict[str, Any]) -> None:
    assert changed(**changes) == set()


def test_the_ligands_epochs_change_search_and_later_stages_only() -> None:
    assert changed(ligand=Ligand(epochs=11)) == {"search", "ligands", "models", "evaluations"}
    touched = changed_evaluations(ligand=Ligand(epochs=11))
    assert {key[0] for key in touched} == {"ligand", "hard-routing"}
    assert touched == {key for key in evaluations() if key[0] in ("ligand", "hard-routing")}


def test_the_recipe_of_experts_changes_them_and_what_they_are_part_of() -> None:
    late = {"experts", "embeddings", "search", "ligands", "models", "evaluations"}
    assert changed(finetune=Finetune(learning_rate=1e-4)) == late
    assert {key[0] for key in evaluations()} - {
        key[0] for key in changed_evaluations(finetune=Finetune(epochs=1))
    } == {"zeroshot"}
    # The embeddings of the origins stay.
    before, after = (make_plan(BASE), make_plan(dataclasses.replace(BASE, finetune=Finetune(epochs=1))))
    kept = {a.label for a in before.artifacts()["embeddings"]} & {
        job.artifact.label
        for job in after.embeddings
        if job.artifact in set(before.artifacts()["embeddings"])
    }
    assert kept == {"tiny-rn.seed-0.on.digits", "tiny-rn.seed-0.on.textures"}


def test_the_seed_changes_experts_and_what_follows() -> None:
    assert changed(seed=1) == {"experts", "embeddings", "search", "ligands", "models", "evaluations"}


def test_the_tasks_seed_changes_images_but_not_heads() -> None:
    assert changed(task_seed=1) == ALL - {"origins", "heads"}


def test_an_origins_pretraining_changes_everything_but_the_tasks() -> None:
    trained = dataclasses.replace(BASE.pretrain, shipped=False, steps=3)
    assert changed(pretrain=trained) == ALL - {"tasks"}


def test_threads_are_part_of_what_they_may_change() -> None:
    """Sums over threads depend on how many there are."""
    stages = changed(cluster=Cluster(cpus_per_worker=2))
    assert {"experts", "search", "evaluations"} <= stages
    assert not {"tasks", "heads"} & stages


def test_an_evaluations_setting_changes_its_own_rows_only() -> None:
    touched = changed_evaluations(evaluation=Evaluation(sample_images=7))
    assert {(key[0], key[2]) for key in touched} == {("ligand", "sample")}
    touched = changed_evaluations(evaluation=Evaluation(batchnorm_images=7))
    assert {key[0] for key in touched} == {"average"}
    touched = changed_evaluations(evaluation=Evaluation(order_seeds=2))
    assert {key[2] for key in touched} == {name for name in OWN if name.startswith("batch-")}


def test_more_trials_keep_the_earlier_ones() -> None:
    before, after = (
        names(make_plan(dataclasses.replace(BASE, search=Search(trials=trials))))["search"]
        for trials in (3, 5)
    )
    assert before < after


def test_another_task_keeps_what_it_does_not_take_part_in() -> None:
    grown = {"tasks": ("digits", "letters", "textures")}
    before, after = names(make_plan(BASE)), names(make_plan(dataclasses.replace(BASE, **grown)))
    assert before["origins"] == after["origins"]
    for stage in ("tasks", "heads", "experts", "embeddings"):
        assert before[stage] < after[stage]
    static = {key for key in changed_evaluations(**grown) if key[0] not in ("ligand", "hard-routing")}
    assert static == set()


def test_another_origin_or_arch_or_method_keeps_what_was_there() -> None:
    for more in (
        {"origins": ("seed-0", "seed-7")},
        {"archs": ("tiny-rn", "tiny-vit")},
        {"n": (2,), "tasks": ("digits", "textures"), "alignment": ("sup",)},
    ):
        found = changed_evaluations(**more)
        assert found == set(), more


def test_statistics_are_shared_by_what_differs_in_the_merge_alone() -> None:
    spellings = ("regmean", "regmean:offdiagonal=0.5", "regmean:examples=16", "fisher:floor=0.1", "fisher")
    plan = make_plan(dataclasses.replace(BASE, methods=spellings))
    assert sorted(a.label for a in plan.artifacts()["statistics"]) == sorted(
        f"{name}.tiny-rn.{task}@seed-0"
        for name in ("fisher", "regmean", "regmean")
        for task in ("digits", "textures")
    )
    used = [{a for a in e.job.inputs if a.kind == "statistics"} for e in plan.evaluations]
    assert [len(found) for found in used] == [2] * 5
    assert len({frozenset(found) for found in used}) == 3


def test_spaces_around_options_say_nothing() -> None:
    plain, spaced = (
        make_plan(dataclasses.replace(BASE, methods=(text,))).artifacts()["evaluations"]
        for text in ("ties:density=0.1,aggregate=sum", "ties: aggregate=sum, density = 0.1")
    )
    assert plain == spaced


def test_names_are_the_same_in_a_new_process() -> None:
    script = (
        "import json, test_plan as t;"
        "print(json.dumps({k: sorted(v) for k, v in t.names(t.make_plan(t.BASE)).items()}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": _path()}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {k: sorted(v) for k, v in names(make_plan(BASE)).items()}


def _path() -> str:
    tests = REPOSITORY / "tests"
    folders = (tests / "pipeline", tests / "helpers", tests, REPOSITORY)
    return os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])


_PLUGIN = """
import numpy as np
from neulig_ray.tasks import Split, task

@task("plan-plugin", class_names=("a", "b"), source="{source}")
def load(seed):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    return dict.fromkeys(("train", "val", "test"), Split(images, np.arange(4) % 2))
"""


def test_a_plugins_content_is_in_the_name_of_what_it_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for folder, source in (("one", "first"), ("two", "second"), ("three", "first")):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "mine.py"
        file.write_text(_PLUGIN.format(source=source))
        with monkeypatch.context() as alone:  # as in a process of its own: the three define one name
            alone.setattr(TASKS, "_items", dict(TASKS._items))
            alone.setattr(TASKS, "_modules", dict(TASKS._modules))
            alone.setattr(sys, "modules", dict(sys.modules))
            load_plugins(read_plugins([str(file)]))
            tasks = make_plan(dataclasses.replace(BASE, tasks=("digits", "plan-plugin"))).artifacts()["tasks"]
            found.append({a.label: a.fingerprint for a in tasks})
    assert found[0] == found[2], "where the file lies says nothing of what it makes"
    assert found[0]["plan-plugin.s0"] != found[1]["plan-plugin.s0"]
    assert found[0]["digits.s0"] == found[1]["digits.s0"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ("digits", "digist")}, ["unknown task 'digist'", "'digits'", "neulig ls tasks"]),
        ({"archs": ("tiny_rn",)}, ["unknown arch 'tiny_rn'", "'tiny-rn'", "neulig ls archs"]),
        ({"methods": ("averge",)}, ["unknown method 'averge'", "'average'"]),
        ({"methods": ("average:scale=1",)}, ["unknown option of average 'scale'"]),
        ({"methods": ("average:scale",)}, ["'scale' is not option=value"]),
        ({"methods": ("average", "average")}, ["'average' twice"]),
        ({"methods": ("ties:density=0.1, density=0.3",)}, ["gives 'density' twice"]),
        ({"methods": ("weighted-average",)}, ["weighted-average needs the option 'weights'"]),
        ({"origins": ("openai",)}, ["unknown origin 'openai'", "seed-K"]),
        ({"origins": ("no/such.safetensors",)}, ["no/such.safetensors", "no such file"]),
    ],
)
def test_names_that_nothing_answers_to_are_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        make_plan(dataclasses.replace(BASE, **changes))
    for word in words:
        assert word in str(caught.value)
