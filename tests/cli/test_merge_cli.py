"""`neulig merge`: what it writes and tells, from files of any kind; its help; `neulig ls methods`."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_cli_helpers import Run, about, assert_equal, left_behind, states
from safetensors.torch import load_file, save_file
from small_models import SmallTower

from neulig_ray.api.listings import method_rows
from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_with

# What is written --------------------------------------------------------------------------------------------

STREAMED = {
    "average": {},
    "task-arithmetic": {"scaling": 0.5},
    "ties": {"density": 0.4, "aggregate": "sum", "trim_scope": "tensor"},
    "slerp": {"t": 0.25},
    "tsv-merge": {},
}


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("threads", [1, 3])
def test_golden_tie_the_file_holds_what_the_engine_gives_in_memory(
    neulig: Run, models: dict[str, Path], tmp_path: Path, name: str, threads: int
) -> None:
    out, options = tmp_path / "m.safetensors", STREAMED[name]
    names = "ab" if name == "slerp" else "abc"
    flags = [f for k, v in options.items() for f in (f"--{k.replace('_', '-')}", v)]
    status, said, _ = neulig(
        "merge", name, "--experts", *(models[n] for n in names), "--base", models["base"],
        "--out", out, "--threads", threads, *flags,
    )  # fmt: skip
    assert status == 0
    expected = merge_with(METHODS[name], states(models, names), load_file(models["base"]), options)
    assert_equal(load_file(out), expected)
    assert f"{out}: a state dict" in said
    assert f"{name} of {len(names)}" in said
    told = about(out)
    assert told["method"] == name
    assert told["options"].items() >= options.items()
    assert [expert["label"] for expert in told["experts"]] == [*names]
    assert told["experts"][0]["bytes"] == models["a"].stat().st_size


def test_dtypes_that_differ_are_told_and_the_output_is_the_first_experts(
    neulig: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in load_file(models["b"]).items()}
    save_file(half, models["b"])
    out = tmp_path / "m.safetensors"
    status, _, told = neulig("merge", "average", "--experts", models["a"], models["b"], "--out", out)
    assert status == 0
    assert f"8 tensors are float16 in {models['b']} and float32 in {models['a']}" in told
    assert_equal(load_file(out), merge_with(METHODS["average"], states(models, "ab")))
    assert load_file(out)["proj.weight"].dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype_is_of_the_floats_alone(
    neulig: Run, models: dict[str, Path], tmp_path: Path, dtype: str
) -> None:
    out = tmp_path / "m.safetensors"
    experts = [models["a"], models["b"]]
    assert neulig("merge", "average", "--experts", *experts, "--out", out, "--dtype", dtype)[0] == 0
    merged, expected = load_file(out), merge_with(METHODS["average"], states(models, "ab"))
    assert merged["bn.num_batches_tracked"].dtype == torch.int64
    for name in ("proj.weight", "bn.running_var"):
        assert torch.equal(merged[name], expected[name].to(getattr(torch, dtype)))


def test_numbers_that_half_precision_cannot_hold_are_not_written_as_infinite(
    neulig: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    for name in "ab":
        state = load_file(models[name])
        state["proj.weight"] *= 1e6
        save_file(state, models[name])
    out = tmp_path / "m.safetensors"
    command = ["merge", "average", "--experts", models["a"], models["b"], "--out", out, "--dtype"]
    status, _, told = neulig(*command, "float16")
    assert status == 1
    assert "'proj.weight'" in told
    assert "bfloat16" in told
    assert not left_behind(tmp_path)
    assert neulig(*command, "bfloat16")[0] == 0


def test_buffers_of_the_base(neulig: Run, models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    command = [
        "merge",
        "average",
        "--experts",
        models["a"],
        models["b"],
        "--out",
        out,
        "--buffers",
        "base",
    ]
    status, _, told = neulig(*command)
    assert status == 2
    assert "--buffers base needs the origin" in told
    assert neulig(*command, "--base", models["base"])[0] == 0
    merged, base = load_file(out), load_file(models["base"])
    assert torch.equal(merged["bn.running_var"], base["bn.running_var"])
    assert not torch.equal(merged["proj.weight"], base["proj.weight"])


def test_an_existing_file_is_replaced_and_a_link_followed(
    neulig: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    real, link = tmp_path / "real.safetensors", tmp_path / "link.safetensors"
    real.write_text("old")
    link.symlink_to(real)
    assert neulig("merge", "average", "--experts", models["a"], models["b"], "--out", link)[0] == 0
    assert link.is_symlink()
    assert_equal(load_file(real), merge_with(METHODS["average"], states(models, "ab")))


def test_a_base_that_is_not_used_is_told(neulig: Run, models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    command = ["merge", "average", "--experts", models["a"], models["b"], "--out", out]
    _, _, told = neulig(*command, "--base", models["base"])
    assert "average does not use the base" in told
    assert neulig(*command, "--base", models["base"], "--quiet") == (0, "", "")


def test_a_dry_run_checks_everything_and_writes_nothing(
    neulig: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "m.safetensors"
    command = [
        "merge",
        "ties",
        "--experts",
        models["a"],
        models["b"],
        "--base",
        models["base"],
        "--out",
        out,
    ]
    status, said, _ = neulig(*command, "--density", "0.5", "--dry-run")
    assert status == 0
    assert "--density 0.5" in said
    assert str(models["base"]) in said
    assert not out.exists()
    assert neulig(*command, "--density", "5", "--dry-run")[0] == 2


def test_labels_are_file_stems_made_unique(neulig: Run, models: dict[str, Path], tmp_path: Path) -> None:
    paths = []
    for name in "abc":
        (tmp_path / name).mkdir()
        paths.append(models[name].rename(tmp_path / name / "model.safetensors"))
    out = tmp_path / "m.safetensors"
    assert neulig("merge", "average", "--experts", *paths, "--out", out)[0] == 0
    assert [e["label"] for e in about(out)["experts"]] == ["a/model", "b/model", "c/model"]


# State dicts of torch.save ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_of_torch_save(
    neulig: Run, models: dict[str, Path], tmp_path: Path, key: str | None, zipped: bool
) -> None:
    paths = []
    for name, state in states(models, "ab").items():
        paths.append(tmp_path / f"{name}.pt")
        saved: Any = state if key is None else {key: state, "epoch": 3, "note": "x"}
        torch.save(saved, paths[-1], _use_new_zipfile_serialization=zipped)
    out = tmp_path / "m.safetensors"
    status, _, told = neulig("merge", "average", "--experts", *paths, "--out", out)
    assert status == 0, told
    assert_equal(load_file(out), merge_with(METHODS["average"], states(models, "ab")))


def test_views_in_a_state_dict_are_read_in_their_own_order(
    neulig: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    state = load_file(models["a"])
    turned = {n: t.T.contiguous().T if t.dim() == 2 else t for n, t in state.items()}
    assert not turned["proj.weight"].is_contiguous()
    torch.save(turned, tmp_path / "a.pt")
    out = tmp_path / "m.safetensors"
    assert neulig("merge", "average", "--experts", tmp_path / "a.pt", models["b"], "--out", out)[0] == 0
    assert_equal(load_file(out), merge_with(METHODS["average"], states(models, "ab")))


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("hacked",)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: torch.save(SmallTower(), path), ["small_models.SmallTower", "whole module"]),
        (lambda path: torch.save({"state_dict": {}, "x": Malicious()}, path), ["mkdir"]),
        (lambda path: path.write_bytes(pickle.dumps(Malicious())), ["is a pickle", "neulig import"]),
        (lambda path: path.write_bytes(b"PK\x03\x04 no zip file"), ["is a zip file", "damaged"]),
        (lambda path: path.write_bytes(b""), ["not a safetensors file (0 bytes)"]),
        (lambda path: torch.save([1, 2], path), ["list", "not a state dict"]),
        (lambda path: torch.save({"w": torch.ones(2, dtype=torch.cfloat)}, path), ["'w'", "complex64"]),
        (lambda path: torch.jit.save(torch.jit.script(torch.nn.ReLU()), path), ["TorchScript"]),
    ],
    ids=["module", "code", "bare pickle", "torn zip", "empty", "list", "complex", "script"],
)
def test_what_is_not_a_state_dict_is_refused_and_nothing_of_it_run(
    neulig: Run,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pt"
    make(path)
    status, _, told = neulig("merge", "average", "--experts", models["a"], path, "--out", "m.safetensors")
    assert status == 2
    for word in ("bad.pt", *words):
        assert word in told
    assert "weights_only" not in told, "torch advises to run what is in the file"
    if words[0] in ("mkdir", "TorchScript", "small_models.SmallTower"):
        assert "neulig import" in told
    assert not (tmp_path / "hacked").exists()
    assert not left_behind(tmp_path)


# Help and lists ---------------------------------------------------------------------------------------------


def test_the_help_of_a_method_tells_all_of_its_options(neulig: Run) -> None:
    status, said, _ = neulig("merge", "ties", "--help")
    text = " ".join(said.split())
    assert status == 0
    for option in METHODS["ties"].schema.values():
        assert f"--{option.name.replace('_', '-')}" in text
        assert option.about.text in text
    for word in ("(0, 1]", "default 0.2", "arXiv 2306.01708", "needs experts, base", "mean|sum"):
        assert word in text


@pytest.mark.parametrize("width", [80, 160])
def test_ls_methods_fits_the_terminal(neulig: Run, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    status, said, _ = neulig("ls", "methods")
    assert status == 0
    assert max(map(len, said.splitlines())) <= width
    for row in method_rows():
        assert any(line.startswith(row["method"]) for line in said.splitlines())
        for option in row["options"]:
            assert f"{option}=" in said


def test_ls_methods_as_json_tells_defaults_and_grids(neulig: Run) -> None:
    found = {row["method"]: row for row in json.loads(neulig("ls", "methods", "--json")[1])}
    assert found["ties"]["needs"] == ["base"]
    assert found["ties"]["options"]["density"]["default"] == 0.2
    assert found["task-arithmetic"]["options"]["scaling"]["grid"] == list(
        METHODS["task-arithmetic"].grid["scaling"]
    )
    assert found["average"]["counterpart"] is True
    assert found["ties"]["counterpart"] is False
