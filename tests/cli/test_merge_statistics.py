"""`neulig merge --statistics`: what an experiment measured on its experts, from its storage."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from merge_cli_helpers import Run, about, assert_equal, refused
from safetensors.torch import load_file
from small_benches import PixelImages

from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_with
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_tower
from neulig_ray.models.tower_files import describe, tower_bytes
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

ARCH, FILE = "tiny-vit", "statistics.safetensors"
METHODS_MEASURED = ("fisher", "regmean")


def label(task: int) -> str:
    return f"{ARCH}.task-{task}@seed-0"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Two experts, and what regmean and fisher measure on each, stored as their stages store them."""
    found = Storage(str(tmp_path_factory.mktemp("storage")))
    generator = torch.Generator().manual_seed(0)
    for task in range(2):
        tower = build_tower(ARCHS[ARCH])
        for parameter in tower.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        expert = Artifact.of("expert", label(task), 1, {"task": task})
        content = tower_bytes(tower.state_dict(), describe(ARCHS[ARCH], "tower"))
        found.commit(expert, {"expert.safetensors": content}, {})
        images = PixelImages(torch.randn(4, 3, 32, 32, generator=generator))
        with torch.no_grad():
            width = tower(images.all[:1]).shape[-1]
        head = torch.randn(2, width, generator=generator)
        for name in METHODS_MEASURED:
            measure = METHODS[name].measure
            assert measure is not None
            measured = measure(tower.eval(), images, head, examples=4)
            artifact = Artifact.of("statistics", f"{name}.{label(task)}", 1, {"task": task, "of": name})
            found.commit(artifact, {FILE: safetensors.torch.save(measured)}, {})
    return found


def state(storage: Storage, kind: str, name: str, file: str) -> dict[str, torch.Tensor]:
    (folder,) = Path(storage.full(f"artifacts/{kind}")).glob(f"{name}-*")
    return load_file(folder / file)


def given(storage: Storage, out: Path, statistics: list[str]) -> list[object]:
    experts = [f"expert:{label(task)}" for task in range(2)]
    return ["--storage", storage.uri, "--experts", *experts, "--statistics", *statistics, "--out", out]


@pytest.mark.parametrize(
    ("name", "options"), [("regmean", {"offdiagonal": 0.95}), ("fisher", {"floor": 1e-5})]
)
def test_statistics_from_the_storage_give_what_they_give_in_memory(
    neulig: Run, storage: Storage, tmp_path: Path, name: str, options: dict[str, float]
) -> None:
    out = tmp_path / "m.safetensors"
    flags = [word for key, value in options.items() for word in (f"--{key}", value)]
    stored = [f"statistics:{name}.{label(task)}" for task in range(2)]
    status, said, told = neulig("merge", name, *given(storage, out, stored), *flags)
    assert status == 0, told
    assert f"a tower of {ARCH}" in said
    experts = {str(i): state(storage, "expert", label(i), "expert.safetensors") for i in range(2)}
    statistics = [state(storage, "statistics", f"{name}.{label(i)}", FILE) for i in range(2)]
    expected = merge_with(METHODS[name], experts, None, options, statistics=statistics)
    assert_equal(load_file(out), expected)
    average = merge_with(METHODS["average"], experts)
    assert any(not torch.allclose(expected[key], average[key], atol=1e-4) for key in average)
    assert about(out)["method"] == name
    swapped = merge_with(METHODS[name], experts, None, options, statistics=statistics[::-1])
    assert any(not torch.allclose(expected[key], swapped[key], atol=1e-5) for key in average)


@pytest.mark.parametrize("name", METHODS_MEASURED)
def test_statistics_of_another_method_are_refused(
    neulig: Run, storage: Storage, tmp_path: Path, name: str
) -> None:
    (other,) = {*METHODS_MEASURED} - {name}
    stored = [f"statistics:{other}.{label(task)}" for task in range(2)]
    told = refused(neulig, tmp_path, name, *given(storage, tmp_path / "m.safetensors", stored))
    assert f"the statistics of 'expert:{label(0)}'" in told
    assert "of another method or architecture" in told
    mixed = [f"statistics:{name}.{label(0)}", stored[1]]
    told = refused(neulig, tmp_path, name, *given(storage, tmp_path / "m.safetensors", mixed))
    assert "only some experts' statistics have" in told


@pytest.mark.parametrize("name", METHODS_MEASURED)
def test_statistics_that_are_not_finite_are_named(
    neulig: Run, storage: Storage, tmp_path: Path, name: str
) -> None:
    damaged = state(storage, "statistics", f"{name}.{label(1)}", FILE)
    key = next(key for key in damaged if key.endswith("mlp.c_fc.weight"))
    damaged[key].view(-1)[3] = float("nan")
    safetensors.torch.save_file(damaged, tmp_path / "damaged.safetensors")
    stored = [f"statistics:{name}.{label(0)}", str(tmp_path / "damaged.safetensors")]
    told = refused(neulig, tmp_path, name, *given(storage, tmp_path / "m.safetensors", stored))
    assert f"the statistics of expert:{label(1)}: {key!r} holds NaN or infinite values" in told


def test_statistics_are_refused_as_models_and_where_they_are_missing(
    neulig: Run, storage: Storage, tmp_path: Path
) -> None:
    out = tmp_path / "m.safetensors"
    told = refused(neulig, tmp_path, "regmean", *given(storage, out, [f"statistics:regmean.{label(0)}"]))
    assert "1 statistics for 2 experts" in told
    told = refused(neulig, tmp_path, "regmean", *given(storage, out, ["statistics:regmean.tiny-vit.tsk-0@s"]))
    assert f"statistics:regmean.{label(0)}" in told
