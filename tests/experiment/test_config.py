"""Configurations that no run could use are refused, naming the field, the value and the remedy."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from neulig_ray.cli.experiments import load
from neulig_ray.errors import InputError, unknown
from neulig_ray.experiment.config import (
    Cluster,
    Evaluation,
    Experiment,
    Finetune,
    Ligand,
    Search,
    check_values,
)
from neulig_ray.storage.layout import Top

GOOD = Experiment(name="good", tasks=("digits", "letters", "signs"), n=(2, 3), origins=("seed-0", "seed-1"))


def refused(**changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        check_values(dataclasses.replace(GOOD, **changes))
    return str(caught.value)


def test_defaults_are_usable() -> None:
    check_values(Experiment(name="plain"))
    check_values(GOOD)


def test_every_shipped_experiment_is_usable() -> None:
    files = sorted((REPOSITORY / "experiments").glob("*.py"))
    assert files
    for file in files:
        experiment, about = load(str(file))
        check_values(experiment)
        assert experiment.name == file.stem
        assert f"neulig {'pretrain' if 'pretrain' in file.stem else 'run'} {file.stem}" in about


@pytest.mark.parametrize("field", ["archs", "origins", "tasks", "n"])
def test_empty_lists_are_refused(field: str) -> None:
    assert f"{field} is empty" in refused(**{field: ()})


@pytest.mark.parametrize(
    ("field", "value", "twice"), [("tasks", ("signs", "digits", "signs"), "'signs'"), ("n", (2, 2), "2")]
)
def test_repeated_values_are_refused(field: str, value: Any, twice: str) -> None:
    assert refused(**{field: value}) == f"{field} names {twice} twice"


def test_more_collaborators_than_tasks_are_refused() -> None:
    message = refused(n=(2, 4))
    assert message.startswith("n 4 is larger than the number of tasks (3: digits, letters, signs)")
    assert "n of at most 3" in message


@pytest.mark.parametrize("n", [1, 0, -1])
def test_a_combination_has_two_collaborators(n: int) -> None:
    assert f"n {n}:" in refused(n=(n,))


ODD = {
    "47-empty": "",
    "47-slash": "a/b",
    "47-upwards": "../up",
    "47-accents": "été (1) + x",
    "hidden": ".hidden",
    "space": "with space",
    "dot-at-the-end": "ends.",
    "101-letters": "x" * 101,
    "line-end": "a\n",
}


@pytest.mark.parametrize("name", ODD.values(), ids=ODD.keys())
def test_names_that_name_no_folder_of_their_own_are_refused(name: str) -> None:
    assert refused(name=name).startswith(f"name {name!r}")


RESERVED = (
    *Top,
    *(name.upper() for name in Top),
    "mlflow.db-journal",
    "mlflow.db-wal",
    "MLflow.DB",
    "Default",
    "default",
)


REPORTED = ("ray", "artifacts")


@pytest.mark.parametrize(
    "name", RESERVED, ids=[f"{'47' if name in REPORTED else 'A4'}-{name}" for name in RESERVED]
)
def test_names_of_ours_and_of_mlflow_are_reserved(name: str) -> None:
    """Said as what they are; letters are not the matter."""
    message = refused(name=name)
    assert message.startswith(f"name {name!r} is reserved")
    assert "letters" not in message
    check_values(dataclasses.replace(GOOD, name=f"my-{name.lstrip('.')}"))


@pytest.mark.parametrize("name", ["claims", "raytracing", "my.mlflow", "mlflow", "reports", "a", "A.b-c_9"])
def test_other_names_are_free(name: str) -> None:
    check_values(dataclasses.replace(GOOD, name=name))


def test_mixed_origins_need_two_origins_and_an_n_of_the_experiment() -> None:
    assert "--origins" in refused(mixed_origins=(2,), origins=("seed-0",))
    check_values(dataclasses.replace(GOOD, mixed_origins=(2,)))
    assert "5" in refused(mixed_origins=(5,))


def test_the_ligand_needs_a_prediction_term_and_a_granularity() -> None:
    assert "sup, semi or both" in refused(alignment=())
    assert "evaluation.granularities" in refused(evaluation=Evaluation(granularities=()))
    check_values(dataclasses.replace(GOOD, alignment=(), methods=("average",)))


def test_a_granularity_that_there_is_none_of_is_refused_with_its_near_miss() -> None:
    message = refused(evaluation=Evaluation(granularities=("task", "batch-frist")))
    assert "evaluation.granularities" in message
    assert "Did you mean 'batch-first'" in message
    assert "twice" in refused(evaluation=Evaluation(granularities=("task", "sample", "task")))


@pytest.mark.parametrize(
    ("label", "changes"),
    [
        ("combinations", {"combinations": 0}),
        ("finetune.epochs", {"finetune": Finetune(epochs=0)}),
        ("finetune.learning_rate", {"finetune": Finetune(learning_rate=-1e-3)}),
        ("finetune.learning_rate", {"finetune": Finetune(learning_rate=float("nan"))}),
        ("finetune.workers", {"finetune": Finetune(workers=0)}),
        ("ligand.epochs", {"ligand": Ligand(epochs=-1)}),
        ("ligand.batch_size", {"ligand": Ligand(batch_size=0)}),
        ("ligand.average", {"ligand": Ligand(average=-0.1)}),
        ("ligand.average", {"ligand": Ligand(average=2.0)}),
        ("search.trials", {"search": Search(trials=0)}),
        ("evaluation.order_seeds", {"evaluation": Evaluation(order_seeds=0)}),
        ("cluster.cpus_per_worker", {"cluster": Cluster(cpus_per_worker=0)}),
        ("cluster.gpus_per_worker", {"cluster": Cluster(gpus_per_worker=-0.5)}),
        ("search.zero_alignment", {"search": Search(zero_alignment=1.5)}),
        ("search.learning_rate", {"search": Search(learning_rate=(1e-1, 1e-4))}),
        ("search.alignment_weight", {"search": Search(alignment_weight=(0.0, 1.0))}),
        ("seed", {"seed": -1}),
    ],
)
def test_numbers_out_of_their_range_are_refused_by_the_fields_name(label: str, changes: Any) -> None:
    assert refused(**changes).startswith(label)


def test_experiments_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.seed = 1  # type: ignore[misc]


def test_a_file_that_is_no_experiment_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain.py"
    plain.write_text("experiment = 3\n")
    with pytest.raises(InputError, match=r"plain.py defines no `experiment = Experiment.*found int"):
        load(str(plain))
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module\n")
    with pytest.raises(InputError, match=r"broken.py does not import: ModuleNotFoundError.*no_such_module"):
        load(str(broken))


def test_unknown_names_come_with_their_near_misses() -> None:
    message = str(unknown("task", "digist", ["letters", "digits", "signs"], "Do this."))
    assert (
        message
        == "unknown task 'digist'. Did you mean 'digits' or 'signs'? Known: digits, letters, signs. Do this."
    )
    assert "Did you mean" not in str(unknown("task", "zzz", ["letters"]))
