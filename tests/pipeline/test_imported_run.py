"""A run with models from elsewhere: an imported expert, and an origin from a file, on a local Ray cluster."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from foreign import equal, moved

from neulig_ray.cli import main
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_tower, embed
from neulig_ray.models.formats.export import write_open_clip
from neulig_ray.models.heads import accuracy, zero_shot_head
from neulig_ray.models.tower_files import describe, read_tower, tower_bytes
from neulig_ray.tasks import TASKS

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session", "in_repository")]
ARCH = ARCHS["tiny-rn"]


def test_an_exported_expert_is_imported_under_another_origins_name_and_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The expert of `digits` comes from outside; that of `textures` is fine-tuned from the fetched origin."""
    state, clip = moved(ARCH)
    expert, base = tmp_path / "expert.safetensors", tmp_path / "base.safetensors"
    expert.write_bytes(tower_bytes(state, describe(ARCH, "tower", task="digits", origin="seed-0")))
    write_open_clip(base, clip.visual.state_dict(), clip, {}, "test")
    theirs, storage = tmp_path / "theirs.safetensors", tmp_path / "storage"
    assert main(["export", str(expert), "--format", "open_clip", "--out", str(theirs)]) == 0
    origin = f"mine={base}"
    about = ["--arch", ARCH.name, "--task", "digits", "--origin", origin, "--storage", str(storage)]
    assert main(["import", str(theirs), *about]) == 0
    name = capsys.readouterr().out.split()[-1]
    assert name.startswith("tiny-rn.digits@mine-")

    run = ["run", "smallest", "--storage", str(storage), "--origins", origin, "--experts", name, "--quiet"]
    assert main([*run, "--methods", "expert", "average", "--finetune.epochs", "1"]) == 0
    rows = pd.read_parquet(storage / "smallest/results.parquet")
    assert set(rows["status"]) == {"ok"}
    assert set(rows["origin"]) == {"mine"}
    assert set(rows["method"]) == {"expert", "average"}

    (stored,) = (storage / "artifacts/expert").glob(f"{name}/*.safetensors")
    assert equal(read_tower(stored, ARCH)[0], state)
    tower = build_tower(ARCH)
    tower.load_state_dict(state)
    task = TASKS["digits"]
    test = task.splits(0)["test"]
    head = zero_shot_head(clip, ARCH, task.class_names, task.templates)
    expected = accuracy(
        torch.from_numpy(embed(tower, test.images, ARCH)), head, torch.from_numpy(test.labels)
    )
    measured = rows[(rows["method"] == "expert") & (rows["task"] == "digits")]["merging_accuracy"]
    assert measured.item() == pytest.approx(expected, abs=0.2)  # an image or two on the edge
    assert len(list((storage / "artifacts/expert").glob("tiny-rn.textures@mine-*/manifest.json"))) == 1
