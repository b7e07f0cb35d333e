"""What a merge does with values that arithmetic is not made for: infinite, extreme, and of other dtypes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from merge_cli_helpers import Run, State, left_behind
from safetensors.torch import load_file, save_file
from streamed_samples import STREAMED, filled, number_of_experts
from torch import nn

from neulig_ray.errors import InputError, NotFinite, StageError
from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import Merge, merge_masks, merge_with
from neulig_ray.merging.masks import MaskedModel
from neulig_ray.merging.models import Models
from neulig_ray.merging.task_vectors import TaskVectors
from neulig_ray.weights.sources import StateSink, StateSource

INF, NAN = float("inf"), float("nan")
LEAST = torch.finfo(torch.float32).min


def floats(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def models(n: int, **shared: torch.Tensor) -> dict[str, State]:
    return {str(seed): {"w": floats(seed, 6, 4), **shared} for seed in range(1, n + 1)}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).contiguous().view(torch.uint8)


def saved(folder: Path, states: dict[str, State]) -> list[Path]:
    paths = [folder / f"{name}.safetensors" for name in states]
    for path, state in zip(paths, states.values(), strict=True):
        save_file(state, path)
    return paths


# Constants --------------------------------------------------------------------------------------------------

CONSTANTS = {
    "F8-causal mask": torch.full((4, 4), -INF).triu(1),
    "NaN": torch.tensor([1.0, NAN, -0.0]),
    "both infinities": torch.tensor([INF, -INF]),
    "float32's least": torch.full((3, 3), LEAST).triu(1),
    "one infinite number": torch.tensor(INF),
    "late in a large tensor": torch.cat([torch.zeros(400_000), torch.tensor([-INF])]),
    "beyond float32": torch.tensor([1e300, 1.0], dtype=torch.float64),
}


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("base_has_it", [True, False])
def test_an_infinite_mask_that_is_the_same_in_all_is_copied(name: str, base_has_it: bool) -> None:
    mask = CONSTANTS["F8-causal mask"]
    experts = models(number_of_experts(name), mask=mask)
    base = {"w": floats(0, 6, 4), **({"mask": mask} if base_has_it else {})}
    options = filled(name, {}, 3)
    plain = {label: {"w": state["w"]} for label, state in experts.items()}
    if METHODS[name].masked:
        found = merge_masks(METHODS[name], experts, base, options).dense("1")
        expected = merge_masks(METHODS[name], plain, {"w": base["w"]}, options).dense("1")
    else:
        found = merge_with(METHODS[name], experts, base, options)
        expected = merge_with(METHODS[name], plain, {"w": base["w"]}, options)
    assert torch.equal(bits(found["mask"]), bits(mask))
    assert torch.equal(found["w"], expected["w"]), "the mask counts in no statistic either"


@pytest.mark.parametrize("kind", CONSTANTS)
def test_constants_are_written_bit_by_bit(neulig: Run, tmp_path: Path, kind: str) -> None:
    paths = saved(tmp_path, models(2, m=CONSTANTS[kind], z=CONSTANTS[kind].clone()))
    out = tmp_path / "m.safetensors"
    status, _, told = neulig("merge", "average", "--experts", *paths, "--out", out, "--threads", 2)
    assert status == 0, told
    found = load_file(out)
    for name in "mz":
        assert torch.equal(bits(found[name]), bits(CONSTANTS[kind]))
    assert torch.equal(found["w"], merge_with(METHODS["average"], models(2))["w"])
    assert "2 tensors with infinite numbers" in told
    assert "the first: m): copied" in told


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_infinite_numbers_stay_infinite_in_half_precision(neulig: Run, tmp_path: Path, dtype: str) -> None:
    mask = CONSTANTS["F8-causal mask"]
    paths = saved(tmp_path, models(2, mask=mask))
    out = tmp_path / "m.safetensors"
    status, _, told = neulig("merge", "average", "--experts", *paths, "--out", out, "--dtype", dtype)
    assert status == 0, told
    assert torch.equal(load_file(out)["mask"], mask.to(getattr(torch, dtype)))


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
@pytest.mark.parametrize("buffers", ["average", "base"])
def test_statistics_that_are_constant_are_copied(statistic: str, buffers: Any) -> None:
    constant = torch.tensor([1.0, NAN])
    experts = models(2, **{f"bn.{statistic}": constant})
    base = {"w": floats(0, 6, 4), f"bn.{statistic}": constant}
    found = merge_with(METHODS["task-arithmetic"], experts, base, buffers=buffers)
    assert torch.equal(bits(found[f"bn.{statistic}"]), bits(constant))


def test_task_vectors_have_no_entry_for_a_mask() -> None:
    mask = CONSTANTS["F8-causal mask"]
    found = TaskVectors.of({"w": floats(0, 6, 4), "mask": mask}, models(2, mask=mask))
    assert found.names == ("w",)
    assert torch.equal(found.buffers["mask"], mask)
    with pytest.raises(InputError, match="'mask' holds NaN or infinite"):
        TaskVectors.of({"w": floats(0, 6, 4), "mask": mask.T}, models(2, mask=mask))


def altered(where: str) -> tuple[dict[str, State], State]:
    """Experts and base with a mask that is another one in a single model."""
    mask = CONSTANTS["F8-causal mask"]
    experts, base = models(2, mask=mask), {"w": floats(0, 6, 4), "mask": mask}
    other = mask.clone()
    if where == "NaN for an infinity":
        other[0, 1] = NAN
    elif where == "another infinity":
        other[0, 1] = INF
    else:
        other[3, 0] = 1
    (base if where == "the base's" else experts["2"])["mask"] = other
    return experts, base


@pytest.mark.parametrize("where", ["F8-the base's", "an expert's", "NaN for an infinity", "another infinity"])
@pytest.mark.parametrize("method", ["ties", "karcher", "task-arithmetic"])
def test_infinite_numbers_of_tensors_that_differ_are_refused(where: str, method: str) -> None:
    experts, base = altered(where.removeprefix("F8-"))
    if method == "karcher" and "base" in where:
        experts["1"]["mask"] = experts["1"]["mask"].T
    with pytest.raises(InputError, match=r"'mask' holds NaN or infinite values.*not the same in all"):
        merge_with(METHODS[method], experts, base)


def test_files_without_constants_are_read_as_often_as_before() -> None:
    """Large models are not compared with each other: what is compared are integers, and infinite numbers."""

    class Counted(StateSource):
        count = 0

        def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
            found = super().read(name, start, stop)
            self.count += found.numel()
            return found

    sources = [Counted({"w": floats(i, 100, 100), "v": floats(i + 9, 77)}) for i in range(3)]
    merge = Merge.of(METHODS["average"], Models({str(i): s for i, s in enumerate(sources)}))
    merge.run(StateSink(merge.specs()))
    assert [source.count for source in sources] == [10_077] * 3


# Ranges -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1e300, ["holds numbers beyond float32's largest", "1e+300", "computed in float32"]),
        (-1e39, ["holds numbers beyond float32's largest", "1e+39"]),
        (NAN, ["holds NaN or infinite values (1 of"]),
        (INF, ["holds NaN or infinite values (1 of"]),
    ],
    ids=["F29", "F29-negative", "NaN", "infinite"],
)
@pytest.mark.parametrize("whose", ["expert", "base", "whole tensors"])
def test_numbers_beyond_float32_are_called_so(
    neulig: Run, tmp_path: Path, value: float, words: list[str], whose: str
) -> None:
    states = {name: {"w": floats(i, 4, 6, dtype=torch.float64)} for i, name in enumerate(("base", "a", "b"))}
    states["base" if whose == "base" else "b"]["w"][1, 2] = value
    base, *experts = saved(tmp_path, states)
    method = "iso-c" if whose == "whole tensors" else "task-arithmetic"
    given = [method, "--base", base, "--experts", *experts, "--out", tmp_path / "m.safetensors"]
    status, _, told = neulig("merge", *given)
    assert status == 2
    assert not left_behind(tmp_path)
    for word in ("'w'", "the base" if whose == "base" else str(experts[1]), *words):
        assert word in told
    assert ("NaN" in told) == ("NaN" in words[0])


@pytest.mark.parametrize(
    ("dtype", "size", "wider"),
    [("float16", 1e6, "bfloat16"), ("bfloat16", 3.4e38, "float32"), ("float16", -7e4, "float32")],
    ids=["F29-float16", "F29-bfloat16", "F29-negative"],
)
@pytest.mark.parametrize("flag", [True, False], ids=["--dtype", "the experts'"])
def test_numbers_beyond_the_files_dtype_are_called_so(
    neulig: Run, tmp_path: Path, dtype: str, size: float, wider: str, flag: bool
) -> None:
    narrow = getattr(torch, dtype)
    largest = torch.finfo(narrow).max
    base, a, b = saved(
        tmp_path,
        {
            "base": {"w": torch.tensor([0.0, 1.0])},
            "a": {
                "w": torch.tensor([min(max(size / 2, -largest), largest), 1.0]).to(
                    torch.float32 if flag else narrow
                )
            },
            "b": {"w": torch.tensor([min(max(size / 2, -largest), largest), 2.0])},
        },
    )
    scaling = "1" if abs(size) < 1e38 else "0.9999"
    given = ["--base", base, "--experts", a, b, "--out", tmp_path / "m.safetensors", "--scaling", scaling]
    if dtype == "bfloat16" and not flag:
        given[-1] = "1"
    status, _, told = neulig("merge", "task-arithmetic", *given, *(["--dtype", dtype] if flag else []))
    assert status == 1
    for word in ("'w'", f"beyond {dtype}'s largest", wider, "Nothing was written"):
        assert word in told
    assert not left_behind(tmp_path)


def test_masked_models_do_not_turn_numbers_into_infinite_ones() -> None:
    base = {"w": torch.tensor([60000.0, 1.0], dtype=torch.float16)}
    experts = {"a": {"w": torch.tensor([65000.0, 0.0])}, "b": {"w": torch.tensor([64000.0, 2.0])}}
    merge = Merge.of(
        METHODS["tall-mask"],
        Models({n: StateSource(s) for n, s in experts.items()}, StateSource(base)),
        {"mask_lambda": 0.0},
    )
    sink = StateSink(merge.specs(torch.float16))
    merge.run(sink)
    with pytest.raises(StageError, match=r"'w' has numbers beyond float16's largest \(65504\)"):
        MaskedModel(StateSource(sink.state), ("a", "b")).dense("a")


@pytest.mark.parametrize(
    ("method", "options", "size", "words"),
    [
        ("average", {}, 3e38, ["as large as 3e+38"]),
        ("fuse", {}, 3e38, ["as large as 3e+38"]),
        (
            "weighted-average",
            {"weights": (1.0, 1.0), "normalize": False},
            3e38,
            ["use smaller weights", "3e+38"],
        ),
        ("weighted-average", {"weights": (1e30, 1e30), "normalize": False}, 1e10, ["use smaller weights"]),
        ("multi-slerp", {"weights": (1e30, 1e30), "normalize": False}, 1e10, ["use smaller weights"]),
        ("task-arithmetic", {"scaling": 1e39}, 1.0, ["use a smaller scaling"]),
        ("ties", {"scaling": 1e39}, 1.0, ["use a smaller scaling"]),
        ("tall-mask", {}, 3e38, ["as large as 3e+38"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_finite_is_told_with_options_that_the_method_has(
    method: str, options: dict[str, Any], size: float, words: list[str]
) -> None:
    """F3: `NotFinite` advised a scaling whatever the method."""
    experts = {"a": {"w": torch.full((4,), size)}, "b": {"w": torch.full((4,), size * 0.99)}}
    base = {"w": torch.zeros(4)}
    with pytest.raises(NotFinite) as error:
        merge_with(METHODS[method], experts, base, options)
    for word in words:
        assert word in str(error.value)
    for option in ("scaling", "weights"):
        assert f"smaller {option}" not in str(error.value) or option in METHODS[method].schema


# Many models, small and large numbers -----------------------------------------------------------------------


def pcb_reference(deltas: torch.Tensor, density: float = 0.05) -> torch.Tensor:
    """PCB's task vector at scaling 1, in float64, where exp(n) has room for hundreds of models."""
    n, size = deltas.shape
    signs, magnitudes = deltas.double().sign(), deltas.double().abs()
    ordered = magnitudes.sort(1).values
    low, high = ordered[:, [int(size * 0.01)]], ordered[:, [max(int(size * 0.99 - 1), 0)]]
    clamped = magnitudes.clamp(low, high)
    relative = (clamped - low) / (high - low)
    signed = relative * signs
    beta = (n * relative.square()).exp() * torch.tanh(signed[:, None] * signed).sum(1)
    ordered = beta.sort(1).values
    cut, top = ordered[:, [min(int(size * (1 - density)), size - 1)]], ordered[:, [-1]]
    weights = (beta - cut).clamp(min=0) / (top - cut)
    return (clamped * signs * weights).sum(0) / weights.sum(0).clamp(min=1e-12)


@pytest.mark.parametrize("n", [5, 84, 85, 90, 150], ids=lambda n: f"F24-{n}" if n > 84 else str(n))
def test_pcb_of_many_models(n: int) -> None:
    deltas = floats(n, n, 300)
    experts = {str(i): {"w": row} for i, row in enumerate(deltas)}
    found = merge_with(METHODS["pcb"], experts, {"w": torch.zeros(300)}, {"scaling": 1.0})["w"]
    torch.testing.assert_close(found, pcb_reference(deltas).float(), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", [name for name in STREAMED if name != "slerp"])
@pytest.mark.parametrize("scale", [1e-34, 1.0, 1e36], ids=["F24-small", "F24-many", "F24-large"])
def test_methods_hold_for_many_models_and_at_every_scale(name: str, scale: float) -> None:
    """All streamed methods are homogeneous: models of another scale give the model of that scale."""
    n = 100 if scale == 1 else 5
    method, options = METHODS[name], filled(name, {}, n)

    def result(factor: float) -> torch.Tensor:
        experts = {str(i): {"w": floats(i, 30, 30) * factor} for i in range(n)}
        base = {"w": floats(n, 30, 30) * factor}
        if method.masked:
            return merge_masks(method, experts, base, options).dense("1")["w"]
        return merge_with(method, experts, base, options)["w"]

    found = result(scale)
    assert found.isfinite().all()
    assert found.any()
    if scale != 1:
        torch.testing.assert_close(found / scale, result(1.0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["emr", "dare"])
def test_sums_of_large_numbers_have_room(name: str) -> None:
    """F24: L1 norms are sums of many numbers; each of them is a float32, their sum is none."""
    options = {"rescale": "l1"} if name == "dare" else {}
    size = 1e35

    def result(factor: float) -> torch.Tensor:
        experts = {str(i): {"w": floats(i, 50_000).clamp(-3, 3) * factor} for i in range(2)}
        base = {"w": torch.zeros(50_000)}
        if METHODS[name].masked:
            return merge_masks(METHODS[name], experts, base, options).dense("1")["w"]
        return merge_with(METHODS[name], experts, base, options)["w"]

    torch.testing.assert_close(result(size) / size, result(1.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1.0, 1e30, 1e38], ids=lambda size: f"F24-{size:g}")
def test_fisher_weighs_information_of_every_size(size: float) -> None:
    information = [{"w": torch.tensor([1.0, 3.0, 0.0]) * size}, {"w": torch.tensor([1.0, 1.0, 0.0]) * size}]
    experts = {
        "a": {"w": torch.tensor([1.0, 1.0, 1.0]) / 999},
        "b": {"w": torch.tensor([3.0, 5.0, 2.0]) / 999},
    }
    options = {"floor": 0.0, "normalize": False}
    found = merge_with(METHODS["fisher"], experts, None, options, statistics=information)["w"]
    torch.testing.assert_close(found, torch.tensor([2.0, 2.0, 1.5]) / 999, rtol=2e-3, atol=0)


@pytest.mark.parametrize("largest", [1e308, 1.7e308])
def test_weights_whose_sum_is_beyond_float64(largest: float) -> None:
    a, b = floats(1, 4), floats(2, 4)
    found = merge_with(
        METHODS["weighted-average"], {"a": {"w": a}, "b": {"w": b}}, None, {"weights": (largest, largest)}
    )
    torch.testing.assert_close(found["w"], (a + b) / 2)


# Dtypes -----------------------------------------------------------------------------------------------------

PAIRS = [
    ("float16", "float32", None),
    ("float32", "float16", None),
    ("bfloat16", "float32", None),
    ("float32", "bfloat16", "float16"),
    ("float64", "float32", None),
    ("float32", "float64", "bfloat16"),
]


@pytest.mark.parametrize(
    ("first", "second", "asked"), PAIRS, ids=["F28", *(f"F28-{a}-{b}" for a, b, _ in PAIRS[1:])]
)
@pytest.mark.parametrize("other", ["expert", "base"])
def test_the_dtype_of_the_file_is_told_where_models_differ(
    neulig: Run, tmp_path: Path, first: str, second: str, asked: str | None, other: str
) -> None:
    dtypes = {
        "base": second if other == "base" else first,
        "a": first,
        "b": second if other == "expert" else first,
    }
    base, *experts = saved(
        tmp_path, {n: {"w": floats(i, 4, dtype=getattr(torch, d))} for i, (n, d) in enumerate(dtypes.items())}
    )
    out = tmp_path / "m.safetensors"
    flags = ["--dtype", asked] if asked else []
    status, _, told = neulig("merge", "ties", "--base", base, "--experts", *experts, "--out", out, *flags)
    assert status == 0
    written = str(load_file(out)["w"].dtype).removeprefix("torch.")
    assert written == (asked or first)
    assert f"1 tensors are {second} in" in told
    assert f"and {first} in {experts[0]} (the first: w); merged in float32, written as {written}" in told


# In memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["average", "ties"])
def test_modules_are_models(method: str) -> None:
    base, a, b = (nn.Linear(3, 2, dtype=torch.float64) for _ in range(3))
    found = merge_with(METHODS[method], {"a": a, "b": b}, base)
    expected = merge_with(METHODS[method], {"a": a.state_dict(), "b": b.state_dict()}, base.state_dict())
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "weight": torch.float32,
        "bias": torch.float32,
    }
    for name in expected:
        assert torch.equal(found[name], expected[name])
        assert not found[name].requires_grad


@pytest.mark.parametrize(
    ("experts", "words"),
    [
        ({"a": 3, "b": {}}, ["a is int, which is no model", "state dict", "module"]),
        ([nn.Linear(2, 2), nn.Linear(2, 2)], ["the experts are list", '{"a": a, "b": b}']),
        ({"a": {"w": 1.0}}, ["a: 'w' is float, not a tensor"]),
        ({"a": {"w": torch.ones(2).numpy()}}, ["a: 'w' is ndarray, not a tensor"]),
        ({"a": {"state_dict": {"w": torch.ones(2)}}}, ["a: 'state_dict' is dict"]),
        ({"a": {"w": torch.ones(2).to_sparse()}}, ["a: 'w' is torch.float32, torch.sparse_coo"]),
        ({"a": nn.Linear(2, 2, device="meta")}, ["a: 'weight' is on the device meta"]),
        ({"a": {0: torch.ones(2)}}, ["a: 0 is no name of a tensor"]),
        ({"a": None}, ["a is NoneType, which is no model"]),
        ({}, ["no model to merge"]),
    ],
    ids=[
        "34-number",
        "34-list",
        "34-value",
        "34-array",
        "34-nested",
        "34-sparse",
        "34-meta",
        "34-key",
        "34-none",
        "34-no",
    ],
)
def test_what_is_no_model_is_named(experts: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        merge_with(METHODS["average"], experts)
    for word in words:
        assert word in str(error.value)


def test_what_is_no_base_and_no_method_is_named() -> None:
    experts = {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}
    with pytest.raises(InputError, match="the base is list, which is no model"):
        merge_with(METHODS["ties"], experts, [torch.ones(2)])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"'ties' is no method.*METHODS\['ties'\]"):
        merge_with("ties", experts, experts["a"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "flag"),
    [
        ("weighted-average", "35"),
        ("ties", "35-ties"),
        ("multi-slerp", "35-multi-slerp"),
        ("fisher", "35-fisher"),
    ],
    ids=lambda value: value if value.startswith("35") else "",
)
def test_negative_weights_are_told_what_subtracts(method: str, flag: str) -> None:
    with pytest.raises(InputError) as error:
        METHODS[method].resolve({"weights": (1.0, -0.3)})
    for word in ("'weights' is (1.0, -0.3)", "[0, inf)", "task-arithmetic", "scaling takes negative numbers"):
        assert word in str(error.value)
    a, b, base = ({"w": floats(i, 3)} for i in range(3))
    found = merge_with(METHODS["task-arithmetic"], {"a": a, "b": b}, base, {"scaling": (0.5, -0.3)})["w"]
    torch.testing.assert_close(found, base["w"] + 0.5 * (a["w"] - base["w"]) - 0.3 * (b["w"] - base["w"]))
