"""C4: a merged tower carries its experts' origin, so that an export need not ask for it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import ARCH, moved
from merge_cli_helpers import Run, about
from safetensors.torch import load_file

from neulig_ray.api.merge_origin import carried_origin
from neulig_ray.models.origin_files import load_origin, shipped
from neulig_ray.models.tower_files import describe, tower_bytes

SEED_0 = {"origin": "seed-0", "origin_fingerprint": "0123456789abcdef"}


def towers(folder: Path, *origins: dict[str, Any]) -> list[Path]:
    found = []
    for seed, origin in enumerate(origins, start=1):
        found.append(folder / f"task-{seed}.safetensors")
        metadata = describe(ARCH, "tower", task=f"t{seed}", **origin)
        found[-1].write_bytes(tower_bytes(moved(seed=seed)[0], metadata))
    return found


@pytest.mark.parametrize(
    ("experts", "base", "carried"),
    [
        ([SEED_0, SEED_0], None, SEED_0),
        ([{"origin": "openai"}] * 3, None, {"origin": "openai"}),
        ([SEED_0, {"origin": "seed-0"}], None, {"origin": "seed-0"}),
        ([{}, {}], {"origin": "seed-0"}, {"origin": "seed-0"}),
        ([SEED_0, {}], {"origin": "seed-0"}, {"origin": "seed-0"}),
        ([SEED_0, {}], {"origin": "seed-1"}, {"origin": "seed-0,seed-1"}),
        ([{"origin": "seed-1"}, SEED_0], None, {"origin": "seed-0,seed-1"}),
        ([{"origin": "seed-0,seed-1"}, SEED_0], None, {"origin": "seed-0,seed-1"}),
        ([SEED_0, SEED_0 | {"origin_fingerprint": "f" * 16}], None, {"origin": "seed-0,seed-0"}),
        ([SEED_0, {}], None, {}),
        ([{}, {}], None, {}),
        ([{}, {}], {}, {}),
        ([SEED_0, SEED_0], {"origin": "seed-1"}, SEED_0),
    ],
    ids=[
        "C4-shared", "C4-shared-name", "C4-one-fingerprint", "C4-the-bases", "C4-some-the-bases",
        "base-differs", "experts-differ", "mixed-before", "one-name-two-models", "one-unknown", "none-known",
        "base-unknown", "experts-before-base",
    ],
)  # fmt: skip
def test_what_is_carried(experts: list[dict[str, str]], base: Any, carried: dict[str, str]) -> None:
    assert carried_origin(experts, base) == carried


@pytest.mark.parametrize("method", ["average", "ties"])
@pytest.mark.parametrize("known", ["experts", "base"])
def test_a_merged_tower_is_exported_with_its_origins_text(
    neulig: Run, tmp_path: Path, method: str, known: str
) -> None:
    paths = towers(tmp_path, *([SEED_0, SEED_0] if known == "experts" else [{}, {}]))
    out, clip = tmp_path / "m.safetensors", tmp_path / "clip.safetensors"
    base = ["--base", shipped("tiny-vit", "seed-0")] if method == "ties" or known == "base" else []
    assert neulig("merge", method, "--experts", *paths, *base, "--out", out)[0] == 0
    assert about(out)["origin"] == "seed-0"
    status, _, told = neulig("export", out, "--format", "open_clip", "--out", clip)
    assert status == 0, told
    text = load_origin(shipped("tiny-vit", "seed-0"), ARCH).text_projection
    assert torch.equal(load_file(clip)["text_projection"], text)


def test_merges_of_merges_and_masked_models_carry_it_too(neulig: Run, tmp_path: Path) -> None:
    paths, base = towers(tmp_path, SEED_0, SEED_0, SEED_0), shipped("tiny-vit", "seed-0")
    once, twice, masked, dense = (tmp_path / f"{name}.safetensors" for name in ("1", "2", "all", "one"))
    assert neulig("merge", "average", "--experts", *paths[:2], "--out", once)[0] == 0
    assert neulig("merge", "average", "--experts", once, paths[2], "--out", twice)[0] == 0
    given = ["--experts", *paths, "--base", base]
    assert neulig("merge", "tall-mask", *given, "--out", masked)[0] == 0
    assert neulig("merge", "tall-mask", "--masks", masked, "--task", "task-1", "--out", dense)[0] == 0
    for path in (once, twice, masked, dense):
        assert about(path)["origin"] == "seed-0"


def test_origins_that_differ_are_told_and_asked_for(neulig: Run, tmp_path: Path) -> None:
    paths = towers(tmp_path, SEED_0, {"origin": "seed-1"})
    out, clip = tmp_path / "m.safetensors", tmp_path / "clip.safetensors"
    status, _, told = neulig("merge", "average", "--experts", *paths, "--out", out)
    assert status == 0
    assert "different origins: seed-0, seed-1" in told
    status, _, told = neulig("export", out, "--format", "open_clip", "--out", clip)
    assert status == 2
    assert "names several origins: name one with --origin" in told
    assert neulig("export", out, "--format", "open_clip", "--out", clip, "--origin", "seed-0")[0] == 0


def test_an_origin_that_is_a_file_of_somebodys_is_asked_for(neulig: Run, tmp_path: Path) -> None:
    paths = towers(tmp_path, {"origin": "mine"}, {"origin": "mine"})
    out, clip = tmp_path / "m.safetensors", tmp_path / "clip.safetensors"
    assert neulig("merge", "average", "--experts", *paths, "--out", out)[0] == 0
    status, _, told = neulig("export", out, "--format", "open_clip", "--out", clip)
    assert status == 2
    assert f"{out} names its origin 'mine'" in told
    assert "--origin mine=PATH" in told
    mine = f"mine={shipped('tiny-vit', 'seed-0')}"
    assert neulig("export", out, "--format", "open_clip", "--out", clip, "--origin", mine)[0] == 0
