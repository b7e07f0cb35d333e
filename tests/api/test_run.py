"""`nl.run` and `nl.read_results`: an experiment's fields by keyword, and what comes back."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import neulig_ray as nl
from neulig_ray.api.listings import LISTINGS
from neulig_ray.experiment.overrides import override
from neulig_ray.pipeline.outcome import Results
from neulig_ray.results.schema import frame
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import TASKS

Run = Callable[..., tuple[int, str, str]]
PLAIN = nl.Experiment(name="plain", ligand=nl.Ligand(epochs=3, batch_size=32))


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"seed": 4}, "seed", 4),
        ({"archs": ["tiny-rn"]}, "archs", ("tiny-rn",)),
        ({"archs": ("tiny-rn",)}, "archs", ("tiny-rn",)),
        ({"ligand": {"epochs": 20}}, "ligand", nl.Ligand(epochs=20, batch_size=32)),
        ({"ligand": nl.Ligand(epochs=20)}, "ligand", nl.Ligand(epochs=20)),
        ({"search": {"learning_rate": [1e-3, 1e-2]}}, "search", nl.Search(learning_rate=(1e-3, 1e-2))),
        ({"combinations": None}, "combinations", None),
        ({}, "name", "plain"),
    ],
)
def test_fields_are_changed_by_keyword(changes: dict[str, Any], field: str, value: object) -> None:
    changed = override(PLAIN, changes)
    assert getattr(changed, field) == value
    assert type(getattr(changed, field)) is type(value)
    assert dataclasses.replace(changed, **{field: getattr(PLAIN, field)}) == PLAIN, "nothing else"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sead": 1}, "unknown field of Experiment 'sead'.*'seed'"),
        ({"epochs": 20}, r"unknown field of Experiment 'epochs'.*ligand=|finetune=\{'epochs': ...\}"),
        ({"ligand.epochs": 20}, r"'ligand.epochs'.*ligand=\{'epochs': ...\}"),
        ({"ligand": {"epoch": 20}}, "unknown field of ligand 'epoch'.*'epochs'"),
        ({"ligand": 20}, r"ligand is 20: give a dict of its fields, ligand=\{...\}, or a Ligand"),
        ({"ligand": nl.Search()}, "ligand is Search.*or a Ligand"),
        ({"archs": "tiny-rn"}, r"archs is 'tiny-rn': give a tuple, archs=\('tiny-rn',\)"),
        ({"n": 2}, r"n is 2: give a tuple, n=\(2,\)"),
        ({"search": {"learning_rate": 0.1}}, r"search.learning_rate is 0.1: give a tuple"),
    ],
)
def test_fields_that_are_none_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(nl.InputError, match=words):
        nl.run(PLAIN, storage=tmp_path / "storage", **changes)
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize(
    ("experiment", "given", "words"),
    [
        ("smalest", {}, "no experiment 'smalest'. Did you mean 'smallest'"),
        ("smallest", {"storage": "s3://bucket/x"}, "tracking-uri"),
        ("smallest", {"tasks": ("digits", "texture")}, "unknown task 'texture'.*'textures'"),
        ("smallest", {"ligand": {"epochs": 0}}, "ligand.epochs 0 must be greater than 0"),
    ],
)
def test_input_that_no_run_could_use_is_refused_at_once(
    experiment: str, given: dict[str, Any], words: str, in_repository: None, tmp_path: Path
) -> None:
    with pytest.raises(nl.InputError, match=words):
        nl.run(experiment, **({"storage": tmp_path / "storage"} | given))
    assert not (tmp_path / "storage").exists()


# What comes back --------------------------------------------------------------------------------------------

ROW = {
    "arch": "tiny-vit", "origin": "seed-0", "n": 2, "collaborators": "a,b", "method": "ligand",
    "alignment": "sup", "granularity": "task", "protocol": "standard", "split": "test", "seed": 0,
}  # fmt: skip


def results(tmp_path: Path, *rows: dict[str, Any], **about: Any) -> Results:
    return Results("one", frame([ROW | row for row in rows]), about, Storage(str(tmp_path)))


def test_the_summary_is_means_and_spreads_of_the_lines(tmp_path: Path) -> None:
    found = results(
        tmp_path,
        {"task": "a", "merging_accuracy": 80.0, "ensembling_accuracy": 82.0},
        {"task": "b", "merging_accuracy": 60.0, "ensembling_accuracy": 70.0},
        {"task": "a", "collaborators": "a,c", "merging_accuracy": 90.0, "ensembling_accuracy": 90.0},
        {"task": "c", "collaborators": "a,c", "merging_accuracy": 80.0, "ensembling_accuracy": 80.0},
        {"task": "a", "granularity": "global", "status": "failed: of a cause"},
    )
    task, other = found.summary.to_dict("records")
    assert (task["line"], other["line"]) == ("ligand sup task", "ligand sup global")
    assert (task["arch"], task["origin"], task["n"], task["method"]) == ("tiny-vit", "seed-0", 2, "ligand")
    assert (task["merging"], task["ensembling"], task["gap"]) == (77.5, 80.5, 3.0)
    assert task["merging_spread"] == pytest.approx(pd.Series([70.0, 85.0]).std())
    assert (task["combinations"], task["absolute_gap"], task["failures"]) == (2, 3.0, "")
    assert pd.isna(other["merging"])
    assert "of a cause" in other["failures"]


def test_no_rows_are_an_empty_summary(tmp_path: Path) -> None:
    found = results(tmp_path)
    assert found.summary.empty
    assert {"line", "merging", "failures"} <= {*found.summary.columns}
    assert "0 rows" in repr(found)
    assert "0 rows" in found._repr_html_()


def test_results_show_themselves(tmp_path: Path) -> None:
    found = results(
        tmp_path, {"task": "a", "merging_accuracy": 81.26}, failures={"expert <x>": "it was <lost>"}
    )
    assert "Results of 'one': 1 rows, 1 failure\n" in repr(found)
    assert "81.3" in repr(found)
    page = found._repr_html_()
    assert "81.3" in page
    assert "<li>expert &lt;x&gt;: it was &lt;lost&gt;</li>" in page


def test_the_report_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    found = results(tmp_path / "storage", {"task": "a", "merging_accuracy": 81.0})
    assert found.report(tmp_path / "page.html") == str(tmp_path / "page.html")
    assert found.report() == str(tmp_path / "storage/one/report.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == (
        tmp_path / "storage/one/report.html"
    ).read_text(encoding="utf-8")


def stored(storage: Storage, name: str) -> None:
    import io

    buffer = io.BytesIO()
    frame([ROW | {"task": "a", "merging_accuracy": 50.0}]).to_parquet(buffer, index=False)
    storage.write(f"{name}/results.parquet", buffer.getvalue())
    storage.write(f"{name}/history/0123/results.parquet", buffer.getvalue())
    storage.write(f"{name}/results.json", b"{}")


def test_results_are_read_by_name_or_alone(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(nl.InputError, match="has results of 0 experiments; run one first"):
        nl.read_results(tmp_path)
    stored(storage, "one")
    assert nl.read_results(tmp_path).name == "one"
    stored(storage, "two")
    assert nl.read_results(tmp_path, "two").rows["merging_accuracy"].tolist() == [50.0]
    assert nl.read_results(tmp_path, "two").failures == {}
    with pytest.raises(nl.InputError, match="results of 2 experiments: one, two; name one"):
        nl.read_results(tmp_path)
    with pytest.raises(nl.InputError, match=r"'tow'.*Did you mean 'two'"):
        nl.read_results(tmp_path, "tow")


@pytest.mark.parametrize("what", ["methods", "tasks", "archs"])
def test_lists_are_those_of_the_command_line(what: str, neulig: Run) -> None:
    import json

    found = getattr(nl, f"list_{what}")()
    rows = json.loads(neulig("ls", what, "--json")[1])
    assert rows == json.loads(json.dumps(LISTINGS[what]()))
    assert found[what[:-1]].tolist() == [row[what[:-1]] for row in rows]
    assert [*found.columns] == [*rows[0]]


# On a cluster -----------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_finished_experiment_is_read_again_without_a_cluster(
    copied_storage: Path,
    in_repository: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From Python and from the command line alike; a changed field makes what hangs on it."""
    from neulig_ray.cluster.session import ClusterSession

    monkeypatch.setattr(ClusterSession, "start", lambda self: pytest.fail("the cluster was started"))
    found = nl.run("smallest", storage=copied_storage)
    assert "smallest/report.html" in capsys.readouterr().err
    assert (copied_storage / "smallest/report.html").is_file()
    assert found.path == str(copied_storage / "smallest/results.parquet")
    pd.testing.assert_frame_equal(found.rows, nl.read_results(copied_storage).rows)
    changed = nl.run("smallest", storage=copied_storage, quiet=True, methods=("expert", "zeroshot"))
    assert set(changed.rows["method"]) == {"expert", "zeroshot"}
    with pytest.raises(pytest.fail.Exception, match="was started"):
        nl.run("smallest", storage=copied_storage, quiet=True, ligand={"epochs": 4})


@pytest.mark.ray
def test_evaluation_gives_the_accuracies_of_the_pipeline(smallest_storage: Path) -> None:
    rows = nl.read_results(smallest_storage).rows
    experts = nl.load_experts(smallest_storage)
    found = nl.evaluate(experts, ("digits", "textures"), storage=smallest_storage).set_index(
        ["model", "task"]
    )
    for task, accuracy in rows[rows["method"] == "expert"].set_index("task")["merging_accuracy"].items():
        assert found.loc[(f"{task}@seed-0", task), "accuracy"] == accuracy
    average = nl.merge("average", experts)
    merged = nl.evaluate(average, ("digits", "textures"), arch="tiny-rn", origin="seed-0").set_index("task")
    expected = rows[(rows["method"] == "average") & (rows["buffers"] == "average")].set_index("task")
    assert merged["accuracy"].to_dict() == expected["merging_accuracy"].to_dict()


@pytest.mark.ray
def test_a_ligand_trained_here_is_the_experiments_to_the_last_bit(smallest_storage: Path) -> None:
    """Its settings, on the images that the experiment prepared, with the experts' own weights for L_a."""
    experts = nl.load_experts(smallest_storage)
    stored = nl.load_ligand("ligand:tiny-rn.seed-0.n2.sup", storage=smallest_storage)
    train = {task: TASKS[task].splits(0)["train"] for task in ("digits", "textures")}
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    gate = nl.train_ligand(
        {(key, task): expert.embed(train[task].images) for key, expert in experts.items() for task in train},
        {task: split.labels for task, split in train.items()},
        {expert.task: expert.head() for expert in experts.values()},
        epochs=3,
        learning_rate=stored.about["learning_rate"],
        alignment_weight=stored.about["alignment_weight"],
        experts=experts,
    )
    assert gate.experts == stored.experts
    for name, tensor in stored.portland.state().items():
        assert torch.equal(gate.portland.state()[name], tensor), name
