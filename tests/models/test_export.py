"""Models out: what open_clip and transformers load, and cards that tell what it is."""

import os

import open_clip
import pytest
import safetensors.torch
import torch
from foreign import equal, expert_file, imported

from neulig_ray.cli import main
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.origin_files import load_origin, shipped
from neulig_ray.models.tower_files import read_tower


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_exported_checkpoint_loads_in_open_clip_and_comes_back(suffix, tmp_path):
    path, state = expert_file(tmp_path, ARCHS["tiny-rn"])
    out = tmp_path / f"merged{suffix}"
    assert main(["export", str(path), "--format", "open_clip", "--out", str(out)]) == 0
    model = open_clip.create_model("tiny-rn", pretrained=str(out))
    assert equal(model.visual.state_dict(), state)
    origin = load_origin(shipped("tiny-rn", "seed-0"), ARCHS["tiny-rn"])
    assert torch.equal(model.text_projection, origin.text_projection)
    assert torch.equal(model.logit_scale, origin.logit_scale)
    assert imported(out, tmp_path / "back.safetensors", arch="tiny-rn") == 0
    assert equal(read_tower(tmp_path / "back.safetensors")[0], state)
    assert out.stat().st_mode & 0o777 == out.with_suffix(".md").stat().st_mode & 0o777


def test_a_card_tells_method_experts_origin_and_command(tmp_path):
    path, state = expert_file(
        tmp_path, task="", method="ties", options={"density": 0.2}, experts=["digits@seed-0", "signs@seed-0"]
    )
    out = tmp_path / "merged.safetensors"
    (tmp_path / "other").mkdir()
    assert main(["export", str(path), "--format", "safetensors", "--out", str(out)]) == 0
    assert equal(safetensors.torch.load_file(out), state)
    card = out.with_suffix(".md").read_text()
    for line in (
        "| method | ties |", "| options | density=0.2 |", "| experts | digits@seed-0, signs@seed-0 |",
        "| origin | seed-0 |", "| activation | quick_gelu |", "A merged model",
        f"neulig export {path} --format safetensors --out {out}",
    ):  # fmt: skip
        assert line in card
    assert "| task |" not in card


@pytest.mark.parametrize("form", ["open_clip", "hf", "safetensors"])
def test_a_failed_export_leaves_nothing(form, tmp_path, monkeypatch, capsys):
    path, _ = expert_file(tmp_path)
    out = tmp_path / "out" / ("model" if form == "hf" else "model.safetensors")

    def full(handle, *arguments):
        os.write(handle, b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert main(["export", str(path), "--format", form, "--out", str(out)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


def test_exports_that_cannot_be_are_refused(tmp_path, capsys):
    path, _ = expert_file(tmp_path, origin="seed-0,seed-1")
    for flags, words in (
        (["--format", "hf", "--out", tmp_path / "hf"], "names several origins: name one with --origin"),
        (["--format", "open_clip", "--out", tmp_path / "model"], "ends in .safetensors, or .pt"),
        (["--format", "safetensors", "--out", tmp_path / "model.pt"], "ends in .safetensors"),
        (["--format", "hf", "--out", tmp_path], "exists: name a new folder"),
        (["--format", "hf", "--out", tmp_path / "hf", "--origin", "openai"], "unknown origin 'openai'"),
    ):  # fmt: skip
        given = flags if "--origin" in flags or "several" in words else [*flags, "--origin", "seed-0"]
        assert main(["export", str(path), *map(str, given)]) == 2
        assert words in capsys.readouterr().err
    rn, _ = expert_file(tmp_path, ARCHS["tiny-rn"])
    assert main(["export", str(rn), "--format", "hf", "--out", str(tmp_path / "hf")]) == 2
    assert "no ResNet tower" in capsys.readouterr().err
