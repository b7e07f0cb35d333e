"""`neulig merge` on what people really have: odd shapes and types, names that nearly fit, odd flags."""

import json
import math
from pathlib import Path

import pytest
import torch
from merge_cli_helpers import Run, assert_equal, refused, states
from safetensors.torch import load_file, save_file
from streamed_samples import STREAMED, filled, number_of_experts

from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_with

ODD_SHAPES = {"none": (0,), "no_rows": (0, 5), "no_columns": (5, 0), "no_kernels": (5, 0, 3, 3), "scalar": ()}


def odd_state(seed: int) -> dict[str, torch.Tensor]:
    """Empty and scalar tensors, integers and booleans beside a matrix and a vector."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {**ODD_SHAPES, "w": (4, 6), "b": (3,)}
    found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return found | {
        "index": torch.arange(4),
        "flag": torch.tensor([True, seed > 0]),
        "seen": torch.tensor(seed),
    }


def saved(folder: Path, name: str, state: dict[str, torch.Tensor]) -> Path:
    path = folder / f"{name}.safetensors"
    save_file(state, path)
    return path


# Shapes and types -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMED)
def test_empty_and_scalar_tensors_integers_and_booleans(neulig: Run, tmp_path: Path, name: str) -> None:
    paths = [saved(tmp_path, f"m{seed}", odd_state(seed)) for seed in range(number_of_experts(name) + 1)]
    options = filled(name, {"convolutions": "reshape"} if "convolutions" in METHODS[name].schema else {}, 3)
    flags = [
        word
        for key, value in options.items()
        for word in (f"--{key}", *(value if isinstance(value, tuple) else [value]))
    ]
    out = tmp_path / "out.safetensors"
    status, _, told = neulig("merge", name, "--base", paths[0], "--experts", *paths[1:], "--out", out, *flags)
    assert status == 0, told
    prefix = "base/" if METHODS[name].masked else ""
    merged = load_file(out)
    for key, tensor in odd_state(1).items():
        assert merged[prefix + key].shape == tensor.shape, key
        if not tensor.is_floating_point():
            assert torch.equal(merged[prefix + key], tensor), f"{key}: the first expert's, as it is"


@pytest.mark.parametrize("name", ["average", "pcb", "karcher"])
def test_models_without_a_float_parameter_are_refused(neulig: Run, tmp_path: Path, name: str) -> None:
    a, b, base = (saved(tmp_path, n, {"i": torch.arange(3) + k}) for k, n in enumerate("abc"))
    out = ["--out", tmp_path / "m.safetensors", "--base", base]
    told = refused(neulig, tmp_path, name, "--experts", a, b, *out)
    assert f"'{a}' holds no float parameter" in told
    empty, none = saved(tmp_path, "empty", {}), saved(tmp_path, "none", {})
    told = refused(neulig, tmp_path, name, "--experts", empty, none, *out)
    assert f"'{empty}' holds no tensor" in told


def test_types_that_are_not_read_are_named(neulig: Run, tmp_path: Path) -> None:
    eight = [saved(tmp_path, n, {"w": torch.randn(3).to(torch.float8_e4m3fn)}) for n in "ab"]
    told = refused(neulig, tmp_path, "average", "--experts", *eight, "--out", tmp_path / "m.safetensors")
    for word in (str(eight[0]), "'w' is F8_E4M3", "convert it", "BF16"):
        assert word in told
    assert "damaged" not in told


def test_double_precision_is_told(neulig: Run, tmp_path: Path) -> None:
    paths = [saved(tmp_path, n, {"w": torch.rand(3, dtype=torch.float64), "b": torch.rand(2)}) for n in "ab"]
    out = tmp_path / "m.safetensors"
    status, _, told = neulig("merge", "average", "--experts", *paths, "--out", out)
    assert status == 0
    assert f"1 tensors of {paths[0]} are float64 (the first: w); merged in float32" in told
    assert load_file(out)["w"].dtype == torch.float64


def test_state_dicts_with_tied_and_turned_tensors(neulig: Run, tmp_path: Path) -> None:
    made = {}
    for seed, name in enumerate("ab"):
        w = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed))
        made[name] = {"w": w, "tied": w, "turned": w.T, "rows": w[::2], "wide": w[:1].expand(4, 6)}
        torch.save(made[name], tmp_path / f"{name}.pt")
    out = tmp_path / "m.safetensors"
    paths = [tmp_path / f"{name}.pt" for name in made]
    assert neulig("merge", "average", "--experts", *paths, "--out", out)[0] == 0
    assert_equal(load_file(out), merge_with(METHODS["average"], made))


def test_statistics_of_the_base_that_are_not_finite(
    neulig: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    state = load_file(models["base"])
    state["bn.running_var"][0] = math.nan
    save_file(state, models["base"])
    given = ["--experts", models["a"], models["b"], "--base", models["base"], "--out", tmp_path / "m.st"]
    told = refused(neulig, tmp_path, "average", *given, "--buffers", "base")
    assert "the base: 'bn.running_var' holds NaN" in told
    assert neulig("merge", "average", *given)[0] == 0


# Names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "model.visual."])
@pytest.mark.parametrize("turned", [False, True])
def test_names_that_differ_by_a_prefix_alone(
    neulig: Run, models: dict[str, Path], tmp_path: Path, prefix: str, turned: bool
) -> None:
    save_file({prefix + name: tensor for name, tensor in load_file(models["b"]).items()}, models["b"])
    experts = [models["b"], models["a"]] if turned else [models["a"], models["b"]]
    told = refused(neulig, tmp_path, "average", "--experts", *experts, "--out", tmp_path / "m.safetensors")
    assert f"in '{models['b']}' every name begins with '{prefix}'" in told
    assert f"they are those of '{models['a']}'" in told


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * 300, ["cannot be read", "too long", "...xxx"]),
        ("", ["''", "is a folder"]),
        ("/dev/null", ["is a device"]),
        ("https://host/model.safetensors", ["download it first"]),
        ("split.index.json", ["split.index.json names 1.safetensors", "not there"]),
        ("a.safetensors/b", ["there is no file"]),
    ],
)
def test_names_of_no_model(
    neulig: Run,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("split.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"w": "1.safetensors"}}))
    told = refused(neulig, tmp_path, "average", "--experts", models["a"], name, "--out", "m.safetensors")
    for word in words:
        assert word in told
    assert len(told) < 500


ODD_NAMES = {
    "48-spaces": "my models/a b",
    "48-equals": "k=v",
    "48-colon": "C:a",
    "48-number-sign": "a#b",
    "48-unicode": "\u00fcn\u00ef",
    "percent": "50%20",
    "question-mark": "a?b=c",
    "star": "a*[b]",
    "dash": "-a",
    "quotes": 'it\'s "a"',
}


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES.keys())
def test_names_of_files_may_be_odd(neulig: Run, models: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = (tmp_path / name).parent
    folder.mkdir(exist_ok=True)
    given = [models[x].rename(folder / f"{(tmp_path / name).name}{x}.safetensors") for x in "ab"]
    (folder / "link.safetensors").symlink_to(tmp_path / f"{name}m.safetensors")
    status, _, told = neulig("merge", "average", "--experts", *given, "--out", folder / "link.safetensors")
    assert status == 0, told
    assert load_file(tmp_path / f"{name}m.safetensors").keys() == load_file(given[0]).keys()


def test_an_output_whose_name_is_too_long(neulig: Run, models: dict[str, Path], tmp_path: Path) -> None:
    given = ["average", "--experts", models["a"], models["b"], "--out"]
    for out in (tmp_path / ("x" * 300), tmp_path / ("x" * 250), "nul\0byte"):
        told = refused(neulig, tmp_path, *given, out)
        assert "cannot be written" in told


def test_a_base_among_the_experts_is_told(neulig: Run, models: dict[str, Path], tmp_path: Path) -> None:
    given = ["--experts", models["base"], models["b"], "--base", models["base"], "--out", tmp_path / "m.st"]
    status, _, told = neulig("merge", "task-arithmetic", *given, "--scaling", "1")
    assert status == 0
    assert f"note: {models['base']} is the base as well" in told
    assert_equal(load_file(tmp_path / "m.st"), expected_of_one(models))


def expected_of_one(models: dict[str, Path]) -> dict[str, torch.Tensor]:
    """theta_b where parameters are concerned; statistics are averaged, counters the first expert's."""
    found = states(models, "b")
    experts = {"base": load_file(models["base"]), **found}
    return merge_with(METHODS["task-arithmetic"], experts, load_file(models["base"]), {"scaling": 1.0})


# Flags ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["ties", "--density", ".2", "--density", ".3"], ["--density is given twice"]),
        (["ties", "--weights", "1", "2", "--weights", "3"], ["--weights is given twice", "with all its"]),
        (["ties", "--out", "other.safetensors"], ["--out is given twice"]),
        (["TIES"], ["unknown method 'TIES'", "Did you mean 'ties'"]),
        (["task_arithmetic"], ["Did you mean 'task-arithmetic'"]),
        (["ties", "--Density", ".2"], ["Did you mean '--density'"]),
        (["task-arithmetic", "--lambda", ".3"], ["Options of task-arithmetic: --scaling."]),
        (["weighted-average"], ["needs the option 'weights', the weight of each expert"]),
        (["weighted-average", "--weights", "none"], ["'weights'", "must be a list of numbers"]),
        (["weighted-average", "--weights", "1,2"], ["'1,2'", "must be a list of numbers"]),
        (["weighted-average", "--weights", "1"], ["has 1 number, but there are 2 experts"]),
        (["weighted-average", "--weights", "-1", "2"], ["[-1, 2]", "[0, inf)"]),
        (["weighted-average", "--weights", "inf", "2"], ["must be finite"]),
        (["weighted-average", "--weights", "0", "0"], ["all zero"]),
        (["average", "--weights", "1", "2"], ["--weights is not an option of average, but of"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].lower().islower() and " " not in value[0] else "",
)
def test_flags_that_are_refused(
    neulig: Run, models: dict[str, Path], tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    given = ["--experts", models["a"], models["b"], "--base", models["base"], "--out", tmp_path / "m.st"]
    told = refused(neulig, tmp_path, flags[0], *given, *flags[1:])
    for word in words:
        assert word in told


@pytest.mark.parametrize("spelled", ["-.001", "-1e-3", "-0.001", "-1.e-3"])
def test_numbers_as_people_write_them(
    neulig: Run, models: dict[str, Path], tmp_path: Path, spelled: str
) -> None:
    """A negative scaling is a negation; argparse would take -1e-3 for a flag."""
    out = tmp_path / "m.st"
    given = ["--experts", models["a"], models["b"], "--base", models["base"], "--out", out]
    status, _, told = neulig("merge", "task-arithmetic", *given, "--scaling", spelled)
    assert status == 0, told
    base = load_file(models["base"])
    expected = merge_with(METHODS["task-arithmetic"], states(models, "ab"), base, {"scaling": -0.001})
    assert_equal(load_file(out), expected)


def test_one_number_for_all_experts_or_one_for_each(
    neulig: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "m.st"
    given = ["--experts", models["a"], models["b"], "--base", models["base"], "--out", out]
    base, experts = load_file(models["base"]), states(models, "ab")
    for name, option in (("task-arithmetic", "scaling"), ("consensus", "mask_lambda")):
        for words, value in ((["0.5"], 0.5), (["0.5", "0.25"], (0.5, 0.25))):
            flag = f"--{option.replace('_', '-')}"
            status, _, told = neulig("merge", name, *given, flag, *words)
            assert status == 0, told
            assert_equal(load_file(out), merge_with(METHODS[name], experts, base, {option: value}))
        told = refused(neulig, tmp_path, name, *given, flag, "1", "2", "3")
        assert "has 3 numbers, but there are 2 experts" in told


def test_weights_that_do_not_sum_to_one_are_divided_by_their_sum_unless_told_not_to(
    neulig: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "m.st"
    given = ["--experts", models["a"], models["b"], "--out", out, "--weights", ".3", ".9"]
    a, b = states(models, "ab").values()
    for normalize, total in ((True, 1.2), (False, 1.0)):
        flags = ["--normalize", str(normalize).lower()]
        assert neulig("merge", "weighted-average", *given, *flags)[0] == 0
        expected = (0.3 * a["proj.weight"] + 0.9 * b["proj.weight"]) / total
        torch.testing.assert_close(load_file(out)["proj.weight"], expected)


def test_a_default_that_experiments_choose_is_told(
    neulig: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    given = ["--experts", models["a"], models["b"], "--base", models["base"], "--out", tmp_path / "m.st"]
    told = neulig("merge", "task-arithmetic", *given)[2]
    assert "note: --scaling is 0.3, the default; experiments choose it on val, between 0.1 and 1" in told
    assert "--scaling" not in neulig("merge", "task-arithmetic", *given, "--scaling", "0.3")[2]
