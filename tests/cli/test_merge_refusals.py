"""`neulig merge`: what it refuses, with which words, and that refusing leaves nothing behind."""

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_cli_helpers import Run, left_behind, refused
from safetensors.torch import load_file, save_file

# What is refused --------------------------------------------------------------------------------------------


def test_models_that_differ(neulig: Run, models: dict[str, Path], tmp_path: Path) -> None:
    state = load_file(models["b"])
    save_file({("proj.bais" if n == "proj.bias" else n): t for n, t in state.items()}, models["b"])
    experts = ["--experts", models["a"], models["b"], "--out", tmp_path / "m.safetensors"]
    told = refused(neulig, tmp_path, "average", *experts)
    for word in (str(models["a"]), str(models["b"]), "'proj.bais'", "near it: 'proj.bias'"):
        assert word in told
    save_file({**state, "proj.weight": state["proj.weight"][:, :4].contiguous()}, models["b"])
    told = refused(neulig, tmp_path, "average", *experts)
    for word in (str(models["b"]), "'proj.weight'", "(6, 36)", "(6, 4)"):
        assert word in told
    save_file({**state, "proj.weight": state["proj.weight"].int()}, models["b"])
    assert "torch.int32" in refused(neulig, tmp_path, "average", *experts)
    experts[2] = models["c"]
    told = refused(neulig, tmp_path, "ties", *experts, "--base", models["b"])
    assert str(models["b"]) in told


@pytest.mark.parametrize("name", ["proj.weight", "bn.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(
    neulig: Run, models: dict[str, Path], tmp_path: Path, name: str, value: float
) -> None:
    state = load_file(models["b"])
    state[name].view(-1)[1] = value
    save_file(state, models["b"])
    experts = ["--experts", models["a"], models["b"], "--out", tmp_path / "m.safetensors"]
    told = refused(neulig, tmp_path, "average", *experts)
    assert str(models["b"]) in told
    assert f"{name!r} holds NaN or infinite values" in told


def test_duplicates_and_single_experts(neulig: Run, models: dict[str, Path], tmp_path: Path) -> None:
    out = ["--out", tmp_path / "m.safetensors"]
    assert "1 expert given" in refused(neulig, tmp_path, "average", "--experts", models["a"], *out)
    assert "0 experts given" in refused(neulig, tmp_path, "average", *out)
    told = refused(
        neulig,
        tmp_path,
        "average",
        "--experts",
        models["a"],
        models["b"],
        models["a"],
        *out,
    )
    assert f"'{models['a']}' is given twice" in told
    link, copy, pickled = (tmp_path / name for name in ("link.safetensors", "copy.safetensors", "d.pt"))
    link.symlink_to(models["a"])
    told = refused(neulig, tmp_path, "average", "--experts", models["a"], link, *out)
    assert "are the same file" in told
    copy.write_bytes(models["a"].read_bytes())
    torch.save(load_file(models["a"]), pickled)
    for other in (copy, pickled):
        told = refused(neulig, tmp_path, "average", "--experts", models["b"], models["a"], other, *out)
        assert f"'{models['a']}' and '{other}' hold the same tensors" in told


def test_one_different_number_is_another_expert(neulig: Run, tmp_path: Path) -> None:
    state = {"w": torch.zeros(1000, 300)}
    save_file(state, tmp_path / "a.safetensors")
    state["w"][500, 7] = 1
    save_file(state, tmp_path / "b.safetensors")
    experts = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    out = tmp_path / "m.safetensors"
    assert neulig("merge", "average", "--experts", *experts, "--out", out)[0] == 0
    assert load_file(out)["w"].sum() == 0.5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["ties", "--density", "0"], ["'density' is 0", "(0, 1]"]),
        (["ties", "--density", "1.5"], ["'density' is 1.5", "(0, 1]"]),
        (["ties", "--density", "nan"], ["'density'"]),
        (["task-arithmetic", "--scaling", "NaN"], ["'scaling' is nan", "finite"]),
        (["ties", "--density", "some"], ["'density' is 'some'", "a number"]),
        (["ties", "--aggregate", "men"], ["'men'", "'mean'"]),
        (["ties", "--densty", "0.2"], ["--densty", "'--density'"]),
        (["average", "--density", "0.2"], ["--density is not an option of average", "ties", "no options"]),
        (["task-arithmetic", "--trim-scope=vector"], ["--trim-scope is not an option", "ties", "--scaling"]),
        pytest.param(["tiess"], ["unknown method 'tiess'", "'ties'", "neulig ls methods"], id="39-tiess"),
        (["average", "more.safetensors"], ["'more.safetensors' belongs to no flag", "--experts"]),
        (["average", "--buffers", "re-estimate"], ["images", "neulig run", "--buffers average"]),
        (["average", "--buffers", "avrage"], ["avrage", "re-estimate"]),
        (["average", "--dtype", "int8"], ["int8", "bfloat16"]),
        (["average", "--threads", "0"], ["--threads", "'0'"]),
        (["average", "--task", "a"], ["--task", "average keeps none"]),
        (["average", "--statistics", "s.safetensors"], ["average measures nothing"]),
        (["ensemble-vote"], ["combines predictions", "neulig run"]),
        (["ligand"], ["combines predictions"]),
        (["adamerging"], ["unlabelled images", 'methods=("adamerging",)', "neulig run"]),
        (["regmean"], ["train images", "--statistics", 'methods=("regmean",)']),
        (["average", "--plugins", "no.py"], ["--plugins 'no.py'"]),
    ],
    ids=lambda value: " ".join(value) if len(value) < 5 and value[0].islower() else "",
)
def test_wrong_flags(
    neulig: Run, models: dict[str, Path], tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    given = [
        "--experts",
        models["a"],
        models["b"],
        "--base",
        models["base"],
        "--out",
        tmp_path / "m.safetensors",
    ]
    told = refused(neulig, tmp_path, flags[0], *given, *flags[1:])
    for word in words:
        assert word in told


def test_a_method_comes_first(neulig: Run, tmp_path: Path) -> None:
    assert "neulig ls methods" in refused(neulig, tmp_path)
    assert "no method" in refused(neulig, tmp_path, "--out", "x")


def test_a_base_that_is_missing(neulig: Run, models: dict[str, Path], tmp_path: Path) -> None:
    given = ["--experts", models["a"], models["b"], "--out", tmp_path / "m.safetensors"]
    told = refused(neulig, tmp_path, "ties", *given)
    assert "ties needs the origin that the experts were fine-tuned from: give --base" in told


def test_outputs_that_cannot_be(neulig: Run, models: dict[str, Path], tmp_path: Path) -> None:
    given = [
        "average",
        "--experts",
        models["a"],
        models["b"],
        "--base",
        models["base"],
        "--out",
    ]
    link = tmp_path / "link.safetensors"
    link.symlink_to(models["b"])
    for out, of in ((models["a"], "a"), (link, "b"), (models["base"], "base")):
        content = models[of].read_bytes()
        told = refused(neulig, tmp_path, *given, out)
        assert f"is the input '{models[of]}'" in told
        assert models[of].read_bytes() == content
    assert "there is no folder" in refused(neulig, tmp_path, *given, tmp_path / "no/m.safetensors")
    assert "is a folder" in refused(neulig, tmp_path, *given, tmp_path)
    assert "a device" in refused(neulig, tmp_path, *given, "/dev/null")
    assert "*.safetensors" in refused(neulig, tmp_path, *given, tmp_path / "m.pt")
    assert "--out F is missing" in refused(neulig, tmp_path, *given[:-1])


def test_inputs_that_are_not_there(neulig: Run, models: dict[str, Path], tmp_path: Path) -> None:
    out = ["--out", tmp_path / "m.safetensors", "--storage", tmp_path / "none"]
    told = refused(neulig, tmp_path, "average", "--experts", models["a"], tmp_path / "bb.safetensors", *out)
    assert f"Did you mean {tmp_path}/" in told
    told = refused(neulig, tmp_path, "average", "--experts", models["a"], tmp_path, *out)
    assert "is a folder" in told


# A full disk ------------------------------------------------------------------------------------------------


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: the kernel refuses, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def assert_nothing_written(result: tuple[int, str, str], models: dict[str, Path], folder: Path) -> None:
    status, _, told = result
    assert status == 1
    assert told.startswith(f"failed: cannot write {folder / 'm.safetensors'}")
    assert "Nothing was written." in told
    assert not left_behind(folder)
    assert sorted(os.listdir(folder)) == sorted(path.name for path in models.values())


def test_a_file_that_may_not_grow(neulig: Run, models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    with file_size_limit(1000):
        result = neulig("merge", "average", "--experts", models["a"], models["b"], "--out", out)
    assert_nothing_written(result, models, tmp_path)
    assert "it takes " in result[2]


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_disk_that_is_full(
    neulig: Run, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    original, calls = getattr(os, call), []

    def full(*arguments: Any) -> Any:
        calls.append(arguments)
        if call == "pwrite" and len(calls) < 4:
            return original(*arguments)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    out = tmp_path / "m.safetensors"
    result = neulig("merge", "average", "--experts", models["a"], models["b"], "--out", out)
    monkeypatch.undo()
    assert_nothing_written(result, models, tmp_path)
    assert os.strerror(errno.ENOSPC) in result[2]
