"""`neulig merge`: what it writes, what it tells, what it refuses, and that refusing leaves nothing behind."""

import errno
import json
import os
import pickle
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import SmallTower, make_tower

from neulig_ray.cli import main
from neulig_ray.cli.ls_methods import rows
from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_with
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_tower
from neulig_ray.models.origins import load_origin, shipped
from neulig_ray.models.weights import describe, read_tower, tower_bytes
from neulig_ray.stages.artifact import Artifact
from neulig_ray.stages.storage import Storage

Run = Callable[..., tuple[int, str, str]]
State = dict[str, torch.Tensor]


@pytest.fixture
def neulig(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `neulig ARGUMENTS` in this process: exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A base and three experts with BatchNorm, as safetensors."""
    found = {}
    for seed, name in enumerate(("base", "a", "b", "c")):
        found[name] = tmp_path / f"{name}.safetensors"
        save_file(make_tower(seed).state_dict(), found[name])
    return found


def states(files: dict[str, Path], names: str = "abc") -> dict[str, State]:
    return {name: load_file(files[name]) for name in names}


def about(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["neulig"])


def assert_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].float(), tensor.float()), name


def left_behind(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".part") or name.startswith("m.")]


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
    neulig: Run, files: dict[str, Path], tmp_path: Path, name: str, threads: int
) -> None:
    out, options = tmp_path / "m.safetensors", STREAMED[name]
    names = "ab" if name == "slerp" else "abc"
    flags = [f for k, v in options.items() for f in (f"--{k.replace('_', '-')}", v)]
    status, said, _ = neulig(
        "merge", name, "--experts", *(files[n] for n in names), "--base", files["base"],
        "--out", out, "--threads", threads, *flags,
    )  # fmt: skip
    assert status == 0
    expected = merge_with(METHODS[name], states(files, names), load_file(files["base"]), options)
    assert_equal(load_file(out), expected)
    assert f"{out}: a state dict" in said
    assert f"{name} of {len(names)}" in said
    told = about(out)
    assert told["method"] == name
    assert told["options"].items() >= options.items()
    assert [expert["label"] for expert in told["experts"]] == [*names]
    assert told["experts"][0]["bytes"] == files["a"].stat().st_size


def test_dtypes_that_differ_are_told_and_the_output_is_the_first_experts(
    neulig: Run, files: dict[str, Path], tmp_path: Path
) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in load_file(files["b"]).items()}
    save_file(half, files["b"])
    out = tmp_path / "m.safetensors"
    status, _, told = neulig("merge", "average", "--experts", files["a"], files["b"], "--out", out)
    assert status == 0
    assert f"8 tensors are float16 in {files['b']} and float32 in {files['a']}" in told
    assert_equal(load_file(out), merge_with(METHODS["average"], states(files, "ab")))
    assert load_file(out)["proj.weight"].dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype_is_of_the_floats_alone(
    neulig: Run, files: dict[str, Path], tmp_path: Path, dtype: str
) -> None:
    out = tmp_path / "m.safetensors"
    experts = [files["a"], files["b"]]
    assert neulig("merge", "average", "--experts", *experts, "--out", out, "--dtype", dtype)[0] == 0
    merged, expected = load_file(out), merge_with(METHODS["average"], states(files, "ab"))
    assert merged["bn.num_batches_tracked"].dtype == torch.int64
    for name in ("proj.weight", "bn.running_var"):
        assert torch.equal(merged[name], expected[name].to(getattr(torch, dtype)))


def test_numbers_that_half_precision_cannot_hold_are_not_written_as_infinite(
    neulig: Run, files: dict[str, Path], tmp_path: Path
) -> None:
    for name in "ab":
        state = load_file(files[name])
        state["proj.weight"] *= 1e6
        save_file(state, files[name])
    out = tmp_path / "m.safetensors"
    command = ["merge", "average", "--experts", files["a"], files["b"], "--out", out, "--dtype"]
    status, _, told = neulig(*command, "float16")
    assert status == 1
    assert "'proj.weight'" in told
    assert "bfloat16" in told
    assert not left_behind(tmp_path)
    assert neulig(*command, "bfloat16")[0] == 0


def test_buffers_of_the_base(neulig: Run, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    command = ["merge", "average", "--experts", files["a"], files["b"], "--out", out, "--buffers", "base"]
    status, _, told = neulig(*command)
    assert status == 2
    assert "--buffers base needs the origin" in told
    assert neulig(*command, "--base", files["base"])[0] == 0
    merged, base = load_file(out), load_file(files["base"])
    assert torch.equal(merged["bn.running_var"], base["bn.running_var"])
    assert not torch.equal(merged["proj.weight"], base["proj.weight"])


def test_an_existing_file_is_replaced_and_a_link_followed(
    neulig: Run, files: dict[str, Path], tmp_path: Path
) -> None:
    real, link = tmp_path / "real.safetensors", tmp_path / "link.safetensors"
    real.write_text("old")
    link.symlink_to(real)
    assert neulig("merge", "average", "--experts", files["a"], files["b"], "--out", link)[0] == 0
    assert link.is_symlink()
    assert_equal(load_file(real), merge_with(METHODS["average"], states(files, "ab")))


def test_a_base_that_is_not_used_is_told(neulig: Run, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    command = ["merge", "average", "--experts", files["a"], files["b"], "--out", out]
    _, _, told = neulig(*command, "--base", files["base"])
    assert "average does not use the base" in told
    assert neulig(*command, "--base", files["base"], "--quiet") == (0, "", "")


def test_a_dry_run_checks_everything_and_writes_nothing(
    neulig: Run, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "m.safetensors"
    command = ["merge", "ties", "--experts", files["a"], files["b"], "--base", files["base"], "--out", out]
    status, said, _ = neulig(*command, "--density", "0.5", "--dry-run")
    assert status == 0
    assert "--density 0.5" in said
    assert str(files["base"]) in said
    assert not out.exists()
    assert neulig(*command, "--density", "5", "--dry-run")[0] == 2


def test_labels_are_file_stems_made_unique(neulig: Run, files: dict[str, Path], tmp_path: Path) -> None:
    paths = []
    for name in "abc":
        (tmp_path / name).mkdir()
        paths.append(files[name].rename(tmp_path / name / "model.safetensors"))
    out = tmp_path / "m.safetensors"
    assert neulig("merge", "average", "--experts", *paths, "--out", out)[0] == 0
    assert [e["label"] for e in about(out)["experts"]] == ["a/model", "b/model", "c/model"]


# State dicts of torch.save ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_of_torch_save(
    neulig: Run, files: dict[str, Path], tmp_path: Path, key: str | None, zipped: bool
) -> None:
    paths = []
    for name, state in states(files, "ab").items():
        paths.append(tmp_path / f"{name}.pt")
        saved: Any = state if key is None else {key: state, "epoch": 3, "note": "x"}
        torch.save(saved, paths[-1], _use_new_zipfile_serialization=zipped)
    out = tmp_path / "m.safetensors"
    status, _, told = neulig("merge", "average", "--experts", *paths, "--out", out)
    assert status == 0, told
    assert_equal(load_file(out), merge_with(METHODS["average"], states(files, "ab")))


def test_views_in_a_state_dict_are_read_in_their_own_order(
    neulig: Run, files: dict[str, Path], tmp_path: Path
) -> None:
    state = load_file(files["a"])
    turned = {n: t.T.contiguous().T if t.dim() == 2 else t for n, t in state.items()}
    assert not turned["proj.weight"].is_contiguous()
    torch.save(turned, tmp_path / "a.pt")
    out = tmp_path / "m.safetensors"
    assert neulig("merge", "average", "--experts", tmp_path / "a.pt", files["b"], "--out", out)[0] == 0
    assert_equal(load_file(out), merge_with(METHODS["average"], states(files, "ab")))


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
        (lambda path: torch.save({"w": torch.ones(2), "epoch": 3}, path), ["'epoch' is int", "state_dict"]),
        (lambda path: torch.save({"w": torch.ones(2, dtype=torch.cfloat)}, path), ["'w'", "complex64"]),
        (lambda path: torch.jit.save(torch.jit.script(torch.nn.ReLU()), path), ["TorchScript"]),
    ],
    ids=["module", "code", "bare pickle", "torn zip", "empty", "list", "not a tensor", "complex", "script"],
)
def test_what_is_not_a_state_dict_is_refused_and_nothing_of_it_run(
    neulig: Run,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pt"
    make(path)
    status, _, told = neulig("merge", "average", "--experts", files["a"], path, "--out", "m.safetensors")
    assert status == 2
    for word in ("bad.pt", *words):
        assert word in told
    assert "weights_only" not in told, "torch advises to run what is in the file"
    if words[0] in ("mkdir", "TorchScript", "small_models.SmallTower"):
        assert "neulig import" in told
    assert not (tmp_path / "hacked").exists()
    assert not left_behind(tmp_path)


# What is refused --------------------------------------------------------------------------------------------


def refused(neulig: Run, folder: Path, *arguments: object) -> str:
    """What is said of unusable input; it must end with status 2 and leave nothing."""
    before = sorted(os.listdir(folder))
    status, said, told = neulig("merge", *arguments)
    assert status == 2, (said, told)
    assert told.startswith("error: ")
    assert sorted(os.listdir(folder)) == before
    return told


def test_models_that_differ(neulig: Run, files: dict[str, Path], tmp_path: Path) -> None:
    state = load_file(files["b"])
    save_file({("proj.bais" if n == "proj.bias" else n): t for n, t in state.items()}, files["b"])
    experts = ["--experts", files["a"], files["b"], "--out", tmp_path / "m.safetensors"]
    told = refused(neulig, tmp_path, "average", *experts)
    for word in (str(files["a"]), str(files["b"]), "'proj.bais'", "near it: 'proj.bias'"):
        assert word in told
    save_file({**state, "proj.weight": state["proj.weight"][:, :4].contiguous()}, files["b"])
    told = refused(neulig, tmp_path, "average", *experts)
    for word in (str(files["b"]), "'proj.weight'", "(6, 36)", "(6, 4)"):
        assert word in told
    save_file({**state, "proj.weight": state["proj.weight"].int()}, files["b"])
    assert "torch.int32" in refused(neulig, tmp_path, "average", *experts)
    experts[2] = files["c"]
    told = refused(neulig, tmp_path, "ties", *experts, "--base", files["b"])
    assert str(files["b"]) in told


@pytest.mark.parametrize("name", ["proj.weight", "bn.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(
    neulig: Run, files: dict[str, Path], tmp_path: Path, name: str, value: float
) -> None:
    state = load_file(files["b"])
    state[name].view(-1)[1] = value
    save_file(state, files["b"])
    experts = ["--experts", files["a"], files["b"], "--out", tmp_path / "m.safetensors"]
    told = refused(neulig, tmp_path, "average", *experts)
    assert str(files["b"]) in told
    assert f"{name!r} holds NaN or infinite values" in told


def test_duplicates_and_single_experts(neulig: Run, files: dict[str, Path], tmp_path: Path) -> None:
    out = ["--out", tmp_path / "m.safetensors"]
    assert "1 expert given" in refused(neulig, tmp_path, "average", "--experts", files["a"], *out)
    assert "0 experts given" in refused(neulig, tmp_path, "average", *out)
    told = refused(neulig, tmp_path, "average", "--experts", files["a"], files["b"], files["a"], *out)
    assert f"'{files['a']}' is given twice" in told
    link, copy, pickled = (tmp_path / name for name in ("link.safetensors", "copy.safetensors", "d.pt"))
    link.symlink_to(files["a"])
    told = refused(neulig, tmp_path, "average", "--experts", files["a"], link, *out)
    assert "are the same file" in told
    copy.write_bytes(files["a"].read_bytes())
    torch.save(load_file(files["a"]), pickled)
    for other in (copy, pickled):
        told = refused(neulig, tmp_path, "average", "--experts", files["b"], files["a"], other, *out)
        assert f"'{files['a']}' and '{other}' hold the same tensors" in told


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
        (["tiess"], ["unknown method 'tiess'", "'ties'", "neulig ls methods"]),
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
    neulig: Run, files: dict[str, Path], tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    given = [
        "--experts",
        files["a"],
        files["b"],
        "--base",
        files["base"],
        "--out",
        tmp_path / "m.safetensors",
    ]
    told = refused(neulig, tmp_path, flags[0], *given, *flags[1:])
    for word in words:
        assert word in told


def test_a_method_comes_first(neulig: Run, tmp_path: Path) -> None:
    assert "neulig ls methods" in refused(neulig, tmp_path)
    assert "no method" in refused(neulig, tmp_path, "--out", "x")


def test_a_base_that_is_missing(neulig: Run, files: dict[str, Path], tmp_path: Path) -> None:
    given = ["--experts", files["a"], files["b"], "--out", tmp_path / "m.safetensors"]
    told = refused(neulig, tmp_path, "ties", *given)
    assert "ties needs the origin that the experts were fine-tuned from: give --base" in told


def test_outputs_that_cannot_be(neulig: Run, files: dict[str, Path], tmp_path: Path) -> None:
    given = ["average", "--experts", files["a"], files["b"], "--base", files["base"], "--out"]
    link = tmp_path / "link.safetensors"
    link.symlink_to(files["b"])
    for out, of in ((files["a"], "a"), (link, "b"), (files["base"], "base")):
        content = files[of].read_bytes()
        told = refused(neulig, tmp_path, *given, out)
        assert f"is the input '{files[of]}'" in told
        assert files[of].read_bytes() == content
    assert "there is no folder" in refused(neulig, tmp_path, *given, tmp_path / "no/m.safetensors")
    assert "is a folder" in refused(neulig, tmp_path, *given, tmp_path)
    assert "a device" in refused(neulig, tmp_path, *given, "/dev/null")
    assert "*.safetensors" in refused(neulig, tmp_path, *given, tmp_path / "m.pt")
    assert "--out F is missing" in refused(neulig, tmp_path, *given[:-1])


def test_inputs_that_are_not_there(neulig: Run, files: dict[str, Path], tmp_path: Path) -> None:
    out = ["--out", tmp_path / "m.safetensors", "--storage", tmp_path / "none"]
    told = refused(neulig, tmp_path, "average", "--experts", files["a"], tmp_path / "bb.safetensors", *out)
    assert f"Did you mean {tmp_path}/" in told
    told = refused(neulig, tmp_path, "average", "--experts", files["a"], tmp_path, *out)
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


def assert_nothing_written(result: tuple[int, str, str], files: dict[str, Path], folder: Path) -> None:
    status, _, told = result
    assert status == 1
    assert told.startswith(f"failed: cannot write {folder / 'm.safetensors'}")
    assert "Nothing was written." in told
    assert not left_behind(folder)
    assert sorted(os.listdir(folder)) == sorted(path.name for path in files.values())


def test_a_file_that_may_not_grow(neulig: Run, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    with file_size_limit(1000):
        result = neulig("merge", "average", "--experts", files["a"], files["b"], "--out", out)
    assert_nothing_written(result, files, tmp_path)
    assert "it takes " in result[2]


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_disk_that_is_full(
    neulig: Run, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    original, calls = getattr(os, call), []

    def full(*arguments: Any) -> Any:
        calls.append(arguments)
        if call == "pwrite" and len(calls) < 4:
            return original(*arguments)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    out = tmp_path / "m.safetensors"
    result = neulig("merge", "average", "--experts", files["a"], files["b"], "--out", out)
    monkeypatch.undo()
    assert_nothing_written(result, files, tmp_path)
    assert os.strerror(errno.ENOSPC) in result[2]


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
    neulig: Run, files: dict[str, Path], tmp_path: Path, method: str
) -> None:
    from neulig_ray.merging.engine import merge_masks

    given = ["--experts", *(files[n] for n in "abc"), "--base", files["base"]]
    masked, dense, same = (
        tmp_path / name for name in ("all.safetensors", "b.dense.safetensors", "1.safetensors")
    )
    assert neulig("merge", method, *given, "--out", masked)[0] == 0
    expected = merge_masks(METHODS[method], states(files), load_file(files["base"]))
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
    assert neulig("merge", method, "--masks", masked, "--task", "b", "--out", later)[0] == 0
    assert_equal(load_file(later), expected.dense("b"))
    assert about(later)["kind"] == "merged"
    again = ["--masks", masked, "--task"]
    assert "unknown task" in refused(neulig, tmp_path, method, *again, "d", "--out", later)
    assert "is the input" in refused(neulig, tmp_path, method, *again, "b", "--out", masked)
    assert "--masks needs --out" in refused(neulig, tmp_path, method, *again, "b")
    assert "takes the place" in refused(neulig, tmp_path, method, *given, *again, "b", "--out", later)
    assert "not a masked model of ties" in refused(neulig, tmp_path, "ties", *again, "b", "--out", later)
    assert "a state dict" in refused(
        neulig, tmp_path, method, "--masks", files["a"], "--task", "b", "--out", later
    )
    told = refused(neulig, tmp_path, "average", "--experts", masked, files["a"], "--out", tmp_path / "m.st")
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
    import hashlib

    from neulig_ray.stages.inventory import inventory

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
    import tempfile

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
    neulig: Run, files: dict[str, Path], tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(MEASURED)
    weights = []
    for value in (1.0, 3.0):
        weights.append(tmp_path / f"weights-{value}.safetensors")
        save_file({n: torch.full_like(t, value) for n, t in load_file(files["a"]).items()}, weights[-1])
    out = tmp_path / "m.safetensors"
    given = ["test-weighted", "--plugins", plugin, "--experts", files["a"], files["b"], "--out", out]
    assert neulig("merge", *given, "--statistics", *weights)[0] == 0
    a, b = states(files, "ab").values()
    torch.testing.assert_close(load_file(out)["proj.weight"], (a["proj.weight"] + 3 * b["proj.weight"]) / 4)
    out.unlink()
    told = refused(neulig, tmp_path, *given, "--statistics", weights[0])
    assert "1 statistics for 2 experts" in told


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
    for row in rows():
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
