"""The paper's experiment at full model size: one step of every stage, on stand-ins for data and weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import REPOSITORY

from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_clip

pytestmark = pytest.mark.slow

ARCH = "ViT-B-32-quickgelu"
TOYS = '''
import numpy as np
from neulig_ray.tasks import Split, task

def splits(seed, shift):
    """Images whose brightness is their class, and enough of them for a batch of every split."""
    rng = np.random.default_rng((seed, shift))
    found = {}
    for name, count in (("train", 12), ("val", 6), ("test", 6)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 60, (count, 32, 32, 3)) + 60 * labels[:, None, None, None]
        found[name] = Split(images.astype(np.uint8), labels.astype(np.int64))
    return found

@task("toy-dark", class_names=("dark", "grey", "bright"), source="this test")
def dark(seed):
    return splits(seed, 1)

@task("toy-night", class_names=("night", "dusk", "day"), source="this test")
def night(seed):
    return splits(seed, 2)
'''
METHODS = (
    "zeroshot",
    "expert",
    "average",
    "task-arithmetic:scaling=0.3",
    "ties:scaling=1.0",
    "regmean:examples=2",
    "adamerging:adapt_on=test,steps=1,batch_size=1",
    "wemoe:adapt_on=test,steps=1,batch_size=1",
    "ensemble-embedding",
    "ligand",
    "hard-routing",
)
ONE_STEP = (
    *("--archs", ARCH, "--tasks", "toy-dark", "toy-night", "--n", "2", "--methods", *METHODS),
    *("--finetune.epochs", "1", "--finetune.batch-size", "6", "--ligand.epochs", "1"),
    *("--search.trials", "1", "--search.val-images", "1", "--evaluation.sample-images", "1"),
    *("--evaluation.order-seeds", "1", "--cluster.gpus-per-worker", "0", "--cluster.cpus-per-worker", "2"),
)


def test_table_2_goes_one_step_through_every_stage(tmp_path: Path, start_command: Callable[..., Any]) -> None:
    """`--tasks` stand-ins, and a ViT-B-32 of random weights in a checkpoint of open_clip's format."""
    (tmp_path / "toys.py").write_text(TOYS)
    torch.save(build_clip(ARCHS[ARCH]).state_dict(), tmp_path / "random.pt")
    storage = tmp_path / "storage"
    command = start_command(
        *("run", REPOSITORY / "experiments/paper_table2.py", *ONE_STEP),
        *("--plugins", tmp_path / "toys.py", "--origins", tmp_path / "random.pt", "--storage", storage),
    )
    assert command.wait(800) == 0, command.output
    rows = pd.read_parquet(storage / "paper_table2/results.parquet")
    assert set(rows["status"]) == {"ok"}, rows[rows["status"] != "ok"][["method", "status"]].to_string()
    assert set(rows["method"]) == {method.partition(":")[0] for method in METHODS}
    assert set(rows["arch"]) == {ARCH}
    assert set(rows["origin"]) == {"random"}
    assert set(rows["protocol"]) == {"paper"}
    assert set(rows["task"]) == {"toy-dark", "toy-night"}
    ligand = rows[rows["method"] == "ligand"]
    assert set(ligand["alignment"]) == {"sup", "semi"}
    assert set(ligand["granularity"]) == {"batch-first", "task", "sample", "batch-first-mixed", "global"}
    assert not any("Table 2" in str(value) for value in rows.to_numpy().ravel())
    # Half of what is left of 18 training images, once 6 are held out.
    assert set(rows[rows["method"] == "average"]["num_samples"]) == {6}
    about = json.loads((storage / "paper_table2/results.json").read_text())
    assert about["declared"]["archs"] == {ARCH: "ViT"}
    page = (storage / "paper_table2/report.html").read_text()
    assert "Which method serves what" in page
    assert "The published rows of NeuLig, Table 2 stand beside no table here" in page
