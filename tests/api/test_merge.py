"""`nl.merge`: what `neulig merge` does, on files, folders, state dicts and modules."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import SmallTower, make_tower

import neulig_ray as nl
from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_with

Run = Callable[..., tuple[int, str, str]]
State = dict[str, torch.Tensor]
NAMES = ("a", "b", "c")
BASED = [name for name in METHODS if METHODS[name].kind == "streamed" and METHODS[name].needs_base]
FREE = [name for name in METHODS if METHODS[name].kind == "streamed" and not METHODS[name].needs_base]
GIVEN: dict[str, dict[str, Any]] = {"weighted-average": {"weights": (0.5, 0.3, 0.2)}}


def states(count: int = 3, dtype: torch.dtype = torch.float32) -> dict[str, State]:
    return {
        name: {
            k: t.to(dtype) if t.is_floating_point() else t for k, t in make_tower(seed).state_dict().items()
        }
        for seed, name in enumerate(NAMES[:count], start=1)
    }


def base() -> State:
    return dict(make_tower(0).state_dict())


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


# The same as the command line, byte for byte ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "flags", "keywords"),
    [
        ("average", {}, [], {}),
        ("ties", {"density": 0.3, "scaling": 0.4}, [], {}),
        ("weighted-average", {"weights": (0.5, 0.3, 0.2)}, [], {}),
        ("dare", {"seed": 3, "then": "ties"}, [], {}),
        ("average", {}, ["--dtype", "float16"], {"dtype": torch.float16}),
        ("average", {}, ["--dtype", "bfloat16"], {"dtype": "bfloat16"}),
        ("task-arithmetic", {}, ["--buffers", "base"], {"buffers": "base"}),
        ("tall-mask", {}, [], {}),
        ("tall-mask", {}, ["--task", "b"], {"task": "b"}),
        ("emr", {}, ["--task", "2"], {"task": 2}),
    ],
)
def test_the_file_is_the_command_lines(
    method: str,
    options: dict[str, Any],
    flags: list[str],
    keywords: dict[str, Any],
    models: dict[str, Path],
    tmp_path: Path,
    neulig: Run,
) -> None:
    files = [models[name] for name in NAMES]
    words = [
        word
        for name, value in options.items()
        for word in (f"--{name}", *(value if isinstance(value, tuple) else (value,)))
    ]
    one, other = tmp_path / "m.safetensors", tmp_path / "n.safetensors"
    given = ["--experts", *files, "--base", models["base"], "--out", one, *words, *flags, "--quiet"]
    assert neulig("merge", method, *given)[0] == 0
    assert nl.merge(method, files, models["base"], other, **keywords, **options) == other
    assert other.read_bytes() == one.read_bytes()


@pytest.mark.parametrize("method", [*BASED, *FREE])
def test_in_memory_it_is_what_the_engine_merges(method: str) -> None:
    n = 2 if method == "slerp" else 3
    options = GIVEN.get(method, {})
    given = base() if method in BASED else None
    expected = merge_with(METHODS[method], states(n), given, options)
    assert_same(nl.merge(method, states(n), given, threads=2, **options), expected)


# Kinds of models --------------------------------------------------------------------------------------------


def as_modules(given: dict[str, State], folder: Path) -> Any:
    made = {}
    for name, state in given.items():
        made[name] = SmallTower()
        made[name].load_state_dict(state)
    return made


def as_list(given: dict[str, State], folder: Path) -> Any:
    return list(given.values())


def as_files(given: dict[str, State], folder: Path) -> Any:
    for name, state in given.items():
        save_file(state, folder / f"{name}.safetensors")
    return [folder / f"{name}.safetensors" for name in given]


def as_text(given: dict[str, State], folder: Path) -> Any:
    return [str(path) for path in as_files(given, folder)]


def as_torch_files(given: dict[str, State], folder: Path) -> Any:
    for name, state in given.items():
        torch.save(state, folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in given}


def as_folder(given: dict[str, State], folder: Path) -> Any:
    as_files(given, folder)
    return folder


def as_folders(given: dict[str, State], folder: Path) -> Any:
    """One file in each, as model hubs have them."""
    for name, state in given.items():
        (folder / name).mkdir()
        save_file(state, folder / name / "model.safetensors")
    return {name: folder / name for name in given}


def as_mixture(given: dict[str, State], folder: Path) -> Any:
    file, *_ = as_files(given, folder)
    return [file, as_modules(given, folder)["b"], given["c"]]


def as_parameters(given: dict[str, State], folder: Path) -> Any:
    """With gradients, on, and not contiguous."""
    return {
        name: {
            k: t.T.contiguous().T.requires_grad_() if t.is_floating_point() and t.dim() == 2 else t
            for k, t in state.items()
        }
        for name, state in given.items()
    }


KINDS = [
    as_modules, as_list, as_files, as_text, as_torch_files, as_folder, as_folders, as_mixture, as_parameters,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_models_of_every_kind_are_merged_alike(kind: Callable[..., Any], tmp_path: Path) -> None:
    expected = nl.merge("ties", states(), base())
    assert_same(nl.merge("ties", kind(states(), tmp_path), base()), expected)


@pytest.mark.parametrize("kind", [as_modules, as_parameters], ids=lambda kind: kind.__name__)
def test_inputs_are_left_as_they_are(kind: Callable[..., Any], tmp_path: Path) -> None:
    given = kind(states(), tmp_path)
    merged = nl.merge("task-arithmetic", given, base(), scaling=2.0)
    for model, state in zip(given.values(), states().values(), strict=True):
        assert_same(model.state_dict() if isinstance(model, SmallTower) else model, state)
    assert not any(tensor.requires_grad for tensor in merged.values())


def test_what_comes_back_shares_no_memory_with_what_went_in() -> None:
    given = states(2)
    merged = nl.merge("average", given)
    for tensor in merged.values():
        tensor.zero_()
    assert_same(given["a"], states(2)["a"])


def test_labels_name_the_experts_of_the_file(tmp_path: Path, models: dict[str, Path]) -> None:
    """A dict's labels take the place of the files' names; what lies in memory is known by its label alone."""
    import json

    from safetensors import safe_open

    out = nl.merge("average", {"one": models["a"], "two": states()["b"]}, out=tmp_path / "m.safetensors")
    with safe_open(out, "pt") as file:
        about = json.loads(file.metadata()["neulig"])
    assert about["experts"] == [
        {"label": "one", "file": "a.safetensors", "bytes": models["a"].stat().st_size},
        {"label": "two"},
    ]
    assert_same(load_file(out), nl.merge("average", [models["a"], states()["b"]]))


def test_of_files_with_several_state_dicts_the_named_one_is_merged(tmp_path: Path) -> None:
    for (name, state), other in zip(states().items(), reversed(states().values()), strict=True):
        torch.save({"model": other, "ema": state}, tmp_path / f"{name}.pt")
    files = [tmp_path / f"{name}.pt" for name in NAMES]
    assert_same(nl.merge("average", files, weights_key="ema"), nl.merge("average", states()))


# Dtypes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", ["average", "task-arithmetic", "iso-c"])
def test_dtypes_are_kept_in_memory_and_in_files(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The arithmetic is float32, rounded once at the end."""
    given = states(dtype=dtype)
    exact = merge_with(METHODS[method], given, base())
    merged = nl.merge(method, given, base())
    for name, tensor in merged.items():
        assert tensor.dtype == given["a"][name].dtype, name
        assert torch.equal(tensor, exact[name].to(tensor.dtype)), name
    assert_same(load_file(nl.merge(method, given, base(), tmp_path / "m.safetensors")), merged)
    wide = nl.merge(method, given, base(), dtype="float32")
    assert_same(wide, exact)


def test_integers_are_copied_from_the_first(tmp_path: Path) -> None:
    merged = nl.merge("average", states())
    counted = [state["bn.num_batches_tracked"] for state in states().values()]
    assert merged["bn.num_batches_tracked"] == counted[0] != counted[1]
    assert merged["bn.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("out", [None, "m.safetensors"])
def test_numbers_beyond_float16_are_told_and_nothing_is_left(out: str | None, tmp_path: Path) -> None:
    given = [{"w": torch.tensor([6e4]).half()}, {"w": torch.tensor([0.0]).half()}]
    origin = {"w": torch.tensor([0.0])}
    with pytest.raises(nl.StageError, match=r"'w' has numbers beyond float16's largest \(65504\)"):
        nl.merge("task-arithmetic", given, origin, out and tmp_path / out, scaling=2.0)  # type: ignore[call-overload]
    assert not list(tmp_path.iterdir())
    assert nl.merge("task-arithmetic", given, origin, scaling=2.0, dtype="float32")["w"].item() > 65504


# Refusals ---------------------------------------------------------------------------------------------------

TWO = {"a": {"w": torch.zeros(2)}, "b": {"w": torch.ones(2)}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "tiess"}, "unknown method 'tiess'.*'ties'"),
        ({"scalling": 2}, "unknown option of average 'scalling'"),
        ({"method": "task-arithmetic", "base": TWO["a"], "scalling": 2}, "Did you mean 'scaling'"),
        ({"method": "ties", "base": TWO["a"], "density": 2.0}, r"'density' is 2.0.*\(0, 1\]"),
        ({"method": "ties"}, "needs the origin"),
        ({"method": "ligand"}, "ligand is of kind ligand.*run it in an experiment"),
        ({"method": "adamerging"}, "adamerging needs .* in an experiment"),
        ({"method": "fisher"}, "needs what is measured"),
        ({"method": "emr", "base": TWO["a"]}, r"task=LABEL\), or a file for all"),
        ({"method": "emr", "base": TWO["a"], "task": "d"}, "unknown task 'd'.*0 to 1"),
        ({"method": "emr", "base": TWO["a"], "task": 2}, "unknown task '2'"),
        ({"task": "a"}, "average keeps none"),
        ({"buffers": "mean"}, "unknown rule for buffers 'mean'.*average, base"),
        ({"dtype": "float8"}, "unknown dtype of a merged model 'float8'.*float16"),
        ({"dtype": torch.int64}, "unknown dtype of a merged model 'torch.int64'"),
        ({"experts": []}, "0 experts given"),
        ({"experts": [TWO["a"]]}, "1 expert given"),
        ({"experts": [TWO["a"], TWO["a"]]}, r"'experts\[0\]' and 'experts\[1\]' hold the same tensors"),
        ({"experts": {"a": TWO["a"], "b": {"v": torch.ones(2)}}}, "'b' has 'v' and 'a' has not|'a' has 'w'"),
        ({"experts": {"a": TWO["a"], "b": {"w": torch.ones(3)}}}, r"'a' and 'b' .*'w' is \(2,\).*\(3,\)"),
        ({"experts": {"a": TWO["a"], "b": {"w": [1.0, 2.0]}}}, "b: 'w' is list, not a tensor"),
        (
            {"experts": {"a": TWO["a"], "b": {"w": torch.ones(2, dtype=torch.complex64)}}},
            "b: 'w' is .*complex",
        ),
        ({"experts": {"a": TWO["a"], "b": {"w": torch.ones(2).to_sparse()}}}, "b: 'w' is .*sparse"),
        ({"experts": {"a": TWO["a"], "b": {"w": torch.ones(2, device="meta")}}}, "b: 'w' is .*meta"),
        ({"experts": {"a": TWO["a"], "b": {"w": torch.tensor([1.0, torch.nan])}}}, "b: 'w' holds NaN"),
        ({"experts": {"a": TWO["a"], "b": {}}}, "'b' holds no tensor"),
        ({"experts": ["nowhere.safetensors", TWO["b"]]}, "there is no file 'nowhere.safetensors'"),
        ({"experts": "nowhere"}, "experts is 'nowhere', which is no folder"),
        ({"experts": "."}, "experts is '.', a folder without a safetensors file"),
        ({"out": "nowhere/m.safetensors"}, "there is no folder"),
        ({"out": "m.pt"}, "name it [*].safetensors"),
    ],
)
def test_unusable_input_is_refused_before_anything_is_written(
    arguments: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(nl.InputError, match=words):
        nl.merge(**({"method": "average", "experts": TWO} | arguments))
    assert not list(tmp_path.iterdir())


def test_a_folder_of_several_files_is_no_single_model(tmp_path: Path) -> None:
    as_files(states(), tmp_path)
    with pytest.raises(nl.InputError, match=r"is a folder with none of .*: name a file.*a\.safetensors, b"):
        nl.merge("ties", states(), tmp_path)


def test_the_input_is_never_overwritten(models: dict[str, Path]) -> None:
    before = models["a"].read_bytes()
    with pytest.raises(nl.InputError, match="is the input"):
        nl.merge("average", [models["a"], models["b"]], out=models["a"])
    assert models["a"].read_bytes() == before
