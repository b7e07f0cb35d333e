"""`neulig compare`: what it prints, what it refuses, and what it does without."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neulig_ray.cli import main
from neulig_ray.evaluation.correct_images import correct_bytes
from neulig_ray.pipeline.stored_results import correct_file
from neulig_ray.results import schema
from neulig_ray.results.correctness import Correctness, row_key
from neulig_ray.storage.storage import Storage

RIGHT = {"average": 60, "ligand": 90}


def fill(folder: Path, name: str = "mine") -> None:
    """A storage with the results of one experiment: a row for each of two methods."""
    storage = Storage(str(folder))
    rows = [
        {"arch": "tiny-rn", "origin": "seed-0", "n": 2, "collaborators": "a,b", "method": method, "task": "a",
         "granularity": "global", "seed": 0, "merging_accuracy": float(right), "fingerprint": f"f-{method}"}
        for method, right in RIGHT.items()
    ]  # fmt: skip
    stream = io.BytesIO()
    schema.frame(rows).to_parquet(stream, index=False)
    storage.write(f"{name}/results.parquet", stream.getvalue())
    storage.write(f"{name}/results.json", b"{}")
    for row in rows:
        bits = Correctness.of(np.arange(100), np.arange(100) < row["merging_accuracy"])
        storage.write(correct_file(name, str(row["fingerprint"])), correct_bytes({row_key(row): bits}))


def test_two_rows_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    assert main(["compare", "method=ligand", "method=average", "--storage", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "difference  +30.00 points; 95 % interval +21.00 to +39.00" in shown
    assert "p = 1.9e-09: the two differ; the first does better on 30 images, the second on 0" in shown
    assert "the same 100 images of a" in shown


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["method=ligand", "method=averge"], "Did you mean 'average'"),
        (["method=ligand", "method=average", "--experiment", "main"], "Did you mean 'mine'"),
        (["method=ligand", "task=a"], "add what chooses one:\n  method=average\n  method=ligand"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path)
    assert main(["compare", *arguments, "--storage", str(tmp_path)]) == 2
    assert reason in capsys.readouterr().err


def test_an_experiment_is_named_where_there_are_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path)
    fill(tmp_path, "other")
    same = ["compare", "method=ligand", "method=ligand", "--storage", str(tmp_path)]
    assert main(same) == 2
    assert "results of 2 experiments: mine, other" in capsys.readouterr().err
    assert main([*same, "--experiment", "other"]) == 0
    assert "no difference is shown" in capsys.readouterr().out


def test_neither_torch_nor_ray_is_waited_for(tmp_path: Path) -> None:
    fill(tmp_path)
    script = (
        "import sys; from neulig_ray.cli import main;"
        f"main(['compare', 'method=ligand', 'method=average', '--storage', {str(tmp_path)!r}]);"
        "print(sorted({'torch', 'ray', 'mlflow', 'open_clip', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
