"""Several seeds: what is planned once, what for each, and what is drawn by the first for all."""

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment, Ligand, Search
from neulig_ray.experiment.search_space import Setting
from neulig_ray.pipeline.plan import Plan, make_plan
from neulig_ray.stages.evaluations import orders_of
from neulig_ray.stages.ligands import Cell, select
from neulig_ray.storage.storage import Storage

BASE = Experiment(
    name="seeds",
    archs=("tiny-rn",),
    tasks=("digits", "signs", "textures"),
    n=(2,),
    combinations=2,
    methods=("zeroshot", "expert", "average", "ligand", "hard-routing"),
    alignment=("sup", "route"),
    search=Search(trials=2),
)
SEVERAL = dataclasses.replace(BASE, seeds=(3, 4), ligand=Ligand(seeds=(0, 1, 2)))


def counts(plan: Plan) -> dict[str, int]:
    return {stage: len(found) for stage, found in plan.artifacts().items()}


def test_one_seed_given_as_several_is_that_seed() -> None:
    one, several = (make_plan(dataclasses.replace(BASE, **seeds)) for seeds in ({"seed": 3}, {"seeds": (3,)}))
    assert one.artifacts() == several.artifacts()


def test_what_no_seed_has_a_part_in_is_planned_once() -> None:
    one, several = make_plan(dataclasses.replace(BASE, seed=3)), make_plan(SEVERAL)
    assert counts(one).keys() == counts(several).keys()
    for stage in ("tasks", "origins", "heads"):
        assert one.artifacts()[stage] == several.artifacts()[stage]
    assert counts(several)["experts"] == 2 * counts(one)["experts"]
    assert set(one.artifacts()["experts"]) < set(several.artifacts()["experts"])
    assert counts(several)["ligands"] == 2 * counts(one)["ligands"]
    rows = Counter(
        (e.common["method"], e.common["expert_seed"], e.common["seed"]) for e in several.evaluations
    )
    zeroshot = {key: count for key, count in rows.items() if key[0] == "zeroshot"}
    assert zeroshot == {("zeroshot", 3, 3): 3}
    assert {key for key in rows if key[0] == "average"} == {("average", 3, 3), ("average", 4, 4)}
    assert {key[1:] for key in rows if key[0] == "ligand"} == {(k, s) for k in (3, 4) for s in (0, 1, 2)}


def test_combinations_settings_and_images_are_the_first_seeds_for_all() -> None:
    several, alone = make_plan(SEVERAL), make_plan(dataclasses.replace(BASE, seed=3))
    assert several.groups == alone.groups
    settings_of = {cell.expert_seed: [trial.setting for trial in cell.trials] for cell in several.cells}
    assert settings_of[3] == settings_of[4]
    chosen = {e.job.settings["seed"] for e in several.evaluations if "granularity" in e.job.settings}
    assert chosen == {3}
    drawn = {
        e.job.settings.get("drawn_by", 3) for e in several.evaluations if e.common["method"] == "average"
    }
    assert drawn == {3}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=8, unique=True), st.integers(1, 8))
def test_orders_are_dealt_out_over_seeds(seeds: list[int], orders: int) -> None:
    dealt = [orders_of(seed, seeds, orders) for seed in seeds]
    assert all(dealt)
    assert {order for own in dealt for order in own} == set(range(orders))
    if len(seeds) <= orders:
        assert sum(map(len, dealt)) == orders


def test_another_gate_or_objective_adds_rows_to_no_other_method() -> None:
    more = ("ligand:gate=origin-blocks,objective=semi,top_k=1", "ligand:objective=semi", "ligand:gate=origin")
    plan = make_plan(dataclasses.replace(BASE, methods=(*BASE.methods, *more)))
    before = make_plan(BASE)
    kept = [e for e in plan.evaluations if e.job.artifact in {b.job.artifact for b in before.evaluations}]
    assert len(kept) == len(before.evaluations)
    added = [e for e in plan.evaluations if e not in kept]
    assert {e.common["method"] for e in added} == {"ligand"}
    found = {(str(sorted(e.common["options"].items())), e.common["alignment"]) for e in added}
    assert found == {
        ("[('gate', 'origin-blocks'), ('top_k', '1')]", "semi"),
        ("[]", "semi"),
        ("[('gate', 'origin')]", "sup"),
        ("[('gate', 'origin')]", "route"),
    }
    assert {a.kind for a in plan.artifacts()["embeddings"]} == {"embedding", "blocks"}
    blocks = [e for e in added if e.common["options"].get("gate") == "origin-blocks"]
    assert all(any(a.kind == "blocks" for a in e.job.inputs) for e in blocks)
    assert not any(a.kind == "blocks" for e in kept for a in e.job.inputs)


def test_a_variant_takes_the_setting_of_its_objective_or_of_the_first() -> None:
    plan = make_plan(dataclasses.replace(BASE, methods=("ligand:gate=origin", "ligand:objective=semi")))
    cells = {cell.objective: cell.artifact for cell in plan.cells}
    chosen = {job.artifact.label.split(".n2.")[1]: job.chosen for job in plan.variants}
    assert chosen == {
        "sup.origin": cells["sup"], "route.origin": cells["route"], "semi": cells["sup"]
    }  # fmt: skip


def store(storage: Storage, cells: list[Cell], val: dict[int, list[float | None]]) -> dict[str, str]:
    """Trials with these accuracies on val, by expert seed; None: it failed."""
    failures = {}
    for cell in cells:
        for trial, reached in zip(cell.trials, val[cell.expert_seed], strict=True):
            if reached is None:
                failures[trial.artifact.fingerprint] = "its expert is missing"
                continue
            about = {"status": "ok", "val_merging": reached, "val_ensembling": 50.0}
            about |= dataclasses.asdict(trial.setting)
            storage.commit(trial.artifact, {"ligand.safetensors": str(reached).encode()}, about)
    return failures


def chosen_by(storage: Storage, cells: list[Cell], failures: dict[str, str]) -> dict[int, Setting | None]:
    found: dict[int, Setting | None] = {}
    for cell in cells:
        select(cell, storage, failures)
        info = storage.manifest(cell.artifact)["info"] if storage.exists(cell.artifact) else None
        found[cell.expert_seed] = info and Setting(info["learning_rate"], info["alignment_weight"])
    return found


@pytest.mark.parametrize(
    ("val", "best"),
    [
        ({3: [90.0, 80.0], 4: [60.0, 75.0]}, {3: 1, 4: 1}),  # by the mean: 75 and 77.5
        ({3: [90.0, 80.0], 4: [75.0, 60.0]}, {3: 0, 4: 0}),
        ({3: [90.0, 80.0], 4: [None, 60.0]}, {3: 1, 4: 1}),  # a setting that failed for one seed
        ({3: [90.0, 80.0], 4: [None, None]}, {3: 0, 4: None}),  # a seed that has no ligand costs no other
    ],
)
def test_one_setting_is_chosen_for_all_seeds(val: Any, best: dict[int, int | None], tmp_path: Any) -> None:
    plan = make_plan(dataclasses.replace(SEVERAL, alignment=("sup",), methods=("ligand",)))
    storage = Storage(str(tmp_path))
    found = chosen_by(storage, plan.cells, store(storage, plan.cells, val))
    trials = plan.cells[0].trials
    assert found == {k: None if at is None else trials[at].setting for k, at in best.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (0, 0)}, "seeds names 0 twice"),
        ({"seeds": (0, -1)}, "seeds -1 must not be negative"),
        ({"ligand": Ligand(seeds=(2, 2))}, "ligand.seeds names 2 twice"),
        ({"seeds": (1, 2), "seed": 2}, "seed 2 beside seeds"),
        ({"alignment": ("sup", "sup")}, "alignment names 'sup' twice"),
        ({"alignment": ("rout",)}, "objective in alignment: 'rout'. Did you mean 'route'"),
        ({"methods": ("ligand:gate=orgin",)}, "Did you mean 'origin'"),
        ({"methods": ("ligand:top_k=3",)}, "option 'top_k'"),
    ],
    ids=str,
)
def test_seeds_and_options_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(dataclasses.replace(BASE, **changes))
