"""`neulig merge` on what neulig writes: towers, origins, masked models, the storage, statistics."""

import hashlib
import os
import tempfile
from pathlib import Path

import pytest
import torch
from merge_cli_helpers import Run, about, assert_equal, refused, states
from safetensors.torch import load_file, save_file

from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_masks, merge_with
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_tower
from neulig_ray.models.origin_files import load_origin, shipped
from neulig_ray.models.tower_files import describe, read_tower, tower_bytes
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.inventory import inventory
from neulig_ray.storage.storage import Storage

# Files of neulig --------------------------------------------------------------------------------------------


@pytest.fixture
def towers(tmp_path: Path) -> list[Path]:
    """Two experts of tiny-rn as an experiment writes them."""
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        tower = build_tower(ARCHS["tiny-rn"])
        for parameter in tower.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)
        found.append(tmp_path / f"task-{seed}.safetensors")
        found[-1].write_bytes(tower_bytes(tower.state_dict(), describe(ARCHS["tiny-rn"], "tower")))
    return found


def test_merged_towers_are_a_tower_again(neulig: Run, towers: list[Path], tmp_path: Path) -> None:
    out, again = tmp_path / "m.safetensors", tmp_path / "again.safetensors"
    status, said, _ = neulig("merge", "average", "--experts", *towers, "--out", out)
    assert status == 0
    assert "a tower of tiny-rn" in said
    state, metadata = read_tower(out, ARCHS["tiny-rn"])
    expected = merge_with(METHODS["average"], {str(p): load_file(p) for p in towers})
    assert_equal(state, expected)
    assert metadata["method"] == "average"
    assert [e["label"] for e in metadata["experts"]] == ["task-0", "task-1"]
    assert neulig("merge", "average", "--experts", out, towers[0], "--out", again)[0] == 0
    assert about(again)["kind"] == "tower"


def test_a_base_that_is_a_whole_clip_gives_its_tower(neulig: Run, towers: list[Path], tmp_path: Path) -> None:
    origin = shipped("tiny-rn", "seed-0")
    assert origin is not None
    out = tmp_path / "m.safetensors"
    status, _, told = neulig(
        "merge", "task-arithmetic", "--experts", *towers, "--base", origin, "--out", out, "--scaling", "1"
    )
    assert status == 0
    assert "whole CLIP" in told
    assert "float16" in told
    base = {
        n.removeprefix("visual."): t.float() if t.is_floating_point() else t
        for n, t in load_file(origin).items()
        if n.startswith("visual.")
    }
    experts = {str(p): load_file(p) for p in towers}
    assert_equal(load_file(out), merge_with(METHODS["task-arithmetic"], experts, base, {"scaling": 1.0}))
    read_tower(out, ARCHS["tiny-rn"])


def test_fusing_on_an_origin_gives_an_origin(neulig: Run, towers: list[Path], tmp_path: Path) -> None:
    origin = shipped("tiny-rn", "seed-0")
    assert origin is not None
    out = tmp_path / "m.safetensors"
    status, said, _ = neulig("merge", "fuse", "--experts", *towers, "--base", origin, "--out", out)
    assert status == 0
    assert "an origin of tiny-rn" in said
    clip = load_origin(out, ARCHS["tiny-rn"])
    fused = merge_with(METHODS["fuse"], {str(p): load_file(p) for p in towers})
    assert_equal(clip.visual.state_dict(), fused)
    old = load_origin(origin, ARCHS["tiny-rn"]).state_dict()
    for name, tensor in clip.state_dict().items():
        if not name.startswith("visual."):
            assert torch.equal(tensor, old[name]), name
    assert neulig("merge", "fuse", "--experts", *towers, "--out", out)[0] == 0
    assert about(out)["kind"] == "tower"


def test_towers_of_different_archs_are_refused_though_their_tensors_fit(
    neulig: Run, towers: list[Path], tmp_path: Path
) -> None:
    state, metadata = read_tower(towers[1])
    towers[1].write_bytes(tower_bytes(state, {**metadata, "activation": "gelu"}))
    told = refused(neulig, tmp_path, "average", "--experts", *towers, "--out", tmp_path / "m.safetensors")
    assert "different activation" in told
    assert "'gelu'" in told


# Masked methods ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tall-mask", "emr"])
def test_masked_models_and_the_dense_model_of_one_task(
    neulig: Run, models: dict[str, Path], tmp_path: Path, method: str
) -> None:
    given = ["--experts", *(models[n] for n in "abc"), "--base", models["base"]]
    masked, dense, same = (
        tmp_path / name for name in ("all.safetensors", "b.dense.safetensors", "1.safetensors")
    )
    assert neulig("merge", method, *given, "--out", masked)[0] == 0
    expected = merge_masks(METHODS[method], states(models), load_file(models["base"]))
    assert about(masked)["kind"] == "masked"
    assert [e["label"] for e in about(masked)["experts"]] == ["a", "b", "c"]
    stored = load_file(masked)
    assert stored.keys() == dict(expected.source.specs).keys()
    assert stored["mask/proj.weight"].shape == (3, 27)
    assert neulig("merge", method, *given, "--out", dense, "--task", "b")[0] == 0
    assert_equal(load_file(dense), expected.dense("b"))
    assert about(dense)["task"] == "b"
    assert neulig("merge", method, *given, "--out", same, "--task", "1")[0] == 0
    assert_equal(load_file(same), expected.dense("b"))
    told = refused(neulig, tmp_path, method, *given, "--out", tmp_path / "m.safetensors", "--task", "d")
    assert "unknown task 'd'" in told
    later = tmp_path / "later.safetensors"
    status, _, said = neulig("merge", method, "--masks", masked, "--task", "b", "--out", later)
    assert status == 0, said
    assert_equal(load_file(later), expected.dense("b"))
    assert about(later)["kind"] == "merged"
    again = ["--masks", masked, "--task"]
    assert "unknown task" in refused(neulig, tmp_path, method, *again, "d", "--out", later)
    assert "is the input" in refused(neulig, tmp_path, method, *again, "b", "--out", masked)
    assert "--masks needs --out" in refused(neulig, tmp_path, method, *again, "b")
    assert "takes the place" in refused(neulig, tmp_path, method, *given, *again, "b", "--out", later)
    assert "not a masked model of ties" in refused(neulig, tmp_path, "ties", *again, "b", "--out", later)
    assert "a state dict" in refused(
        neulig, tmp_path, method, "--masks", models["a"], "--task", "b", "--out", later
    )
    told = refused(neulig, tmp_path, "average", "--experts", masked, models["a"], "--out", tmp_path / "m.st")
    assert "masked model" in told


# The storage ------------------------------------------------------------------------------------------------


@pytest.fixture
def storage(tmp_path: Path, towers: list[Path]) -> Storage:
    """A storage with the two towers as experts, and the folder of an unfinished one."""
    found = Storage(str(tmp_path / "storage"))
    for path in towers:
        artifact = Artifact.of("expert", f"tiny-rn.{path.stem}@seed-0", 1, {"seed": path.stem})
        found.commit(artifact, {"expert.safetensors": path.read_bytes()}, {})
    found.write("artifacts/expert/tiny-rn.torn@seed-0-0123456789abcdef/expert.safetensors", b"x")
    return found


def test_experts_by_their_names_in_the_storage(neulig: Run, storage: Storage, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    first, second = (item for item in inventory(storage) if item.whole)
    ways = [
        (
            f"{item.kind}:{item.name.rpartition('-')[0]}",
            item.fingerprint[:8],
            item.path,
            storage.full(item.path),
        )
        for item in (first, second)
    ]
    for mine, theirs in zip(*ways, strict=True):
        status, _, told = neulig(
            "merge", "average", "--storage", storage.uri, "--experts", mine, theirs, "--out", out
        )
        assert status == 0, told
        file = Path(storage.full(first.path)) / "expert.safetensors"
        assert about(out)["experts"][0]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert [e["label"] for e in about(out)["experts"]] == [first.name, second.name]


def test_names_that_the_storage_does_not_have(neulig: Run, storage: Storage, tmp_path: Path) -> None:
    def told(*names: str) -> str:
        given = ["--storage", storage.uri, "--out", tmp_path / "m.safetensors", "--experts", *names]
        return refused(neulig, tmp_path, "average", *given)

    assert "'expert:tiny-rn.task-0@seed-0'" in told("expert:tiny-rn.tsk-0@seed-0", "expert:x")
    assert "unfinished" in told("expert:tiny-rn.torn@seed-0", "expert:x")
    assert "unknown artifact" in told("ffffff", "expert:x")


def test_an_object_store_is_read_through_a_copy_that_does_not_stay(
    neulig: Run, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    original = Storage.__init__

    def remote(self: Storage, uri: str) -> None:
        original(self, uri)
        self.local = False

    monkeypatch.setattr(Storage, "__init__", remote)
    copies: list[Path] = []
    download = Storage.download

    def counted(self: Storage, path: str, target: Path) -> None:
        download(self, path, target)
        copies.append(target)

    monkeypatch.setattr(Storage, "download", counted)
    names = [f"expert:tiny-rn.task-{i}@seed-0" for i in range(2)]
    out = tmp_path / "m.safetensors"
    assert neulig("merge", "average", "--storage", storage.uri, "--experts", *names, "--out", out)[0] == 0
    assert len(copies) == 2
    assert os.listdir(folder) == []


# Measured methods -------------------------------------------------------------------------------------------

MEASURED = '''
import torch
from neulig_ray.merging import measured

def measure(tower, images, head):
    """Never called here."""

@measured("test-weighted", paper="a test", measure=measure, elementwise=True)
def weighted(tensors, *, statistics=None):
    """The mean, weighted by what was measured."""
    return tensors.mean(0) if statistics is None else (tensors * statistics).sum(0) / statistics.sum(0)
'''


def test_statistics_are_given_one_for_each_expert(
    neulig: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(MEASURED)
    weights = []
    for value in (1.0, 3.0):
        weights.append(tmp_path / f"weights-{value}.safetensors")
        save_file({n: torch.full_like(t, value) for n, t in load_file(models["a"]).items()}, weights[-1])
    out = tmp_path / "m.safetensors"
    given = [
        "test-weighted",
        "--plugins",
        plugin,
        "--experts",
        models["a"],
        models["b"],
        "--out",
        out,
    ]
    assert neulig("merge", *given, "--statistics", *weights)[0] == 0
    a, b = states(models, "ab").values()
    torch.testing.assert_close(load_file(out)["proj.weight"], (a["proj.weight"] + 3 * b["proj.weight"]) / 4)
    out.unlink()
    told = refused(neulig, tmp_path, *given, "--statistics", weights[0])
    assert "1 statistics for 2 experts" in told
