"""What holds for every method that merges tensor by tensor, whatever is in `methods`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streamed_samples import (
    STREAMED,
    VARIANTS,
    base_state,
    changes_for,
    check_close,
    experts_of,
    filled,
    generic,
    number_of_experts,
    results,
    small_pieces,
)

from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import Merge, merge_with
from neulig_ray.merging.models import Models
from neulig_ray.weights.sources import StateSource
from neulig_ray.weights.tensor_file import Spec, TensorFile
from neulig_ray.weights.tensor_writer import TensorWriter

CASES = [(name, options) for name in STREAMED for options in ({}, *VARIANTS.get(name, ()))]


def case_id(value: object) -> str:
    """A method's name, then the options of the variant."""
    return ",".join(value) if isinstance(value, dict) else str(value)


every_method = pytest.mark.parametrize("name", STREAMED)
every_case = pytest.mark.parametrize(("name", "options"), CASES, ids=case_id)


@dataclass(frozen=True)
class Identical:
    """Identical experts theta give theta_0 + factor(n) (theta - theta_0), with the options."""

    factor: Callable[[int], float] = lambda n: 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    vectors_only: bool = False


IDENTICAL = {
    "average": Identical(),
    "weighted-average": Identical(),
    "fuse": Identical(),
    "slerp": Identical(),
    "multi-slerp": Identical(),
    "karcher": Identical(),
    "task-arithmetic": Identical(lambda n: 0.3 * n),
    "ties": Identical(options={"density": 1.0}),
    "dare": Identical(lambda n: 0.3 * n, {"density": 1.0}),
    "breadcrumbs": Identical(lambda n: 0.3 * n, {"density": 1.0}),
    "magmax": Identical(lambda n: 0.5),
    # Without clamping, only the smallest magnitudes have no weight: they are zero in `experts_of`.
    "pcb": Identical(lambda n: 1.2, {"density": 1.0, "outliers": 0.0}),
    "consensus": Identical(lambda n: 0.3 * n, {"mask_lambda": 0.2}),
    "tall-mask": Identical(lambda n: n, {"mask_lambda": 0.2}),
    "emr": Identical(),
    # Matrices get other singular values on purpose (see test_golden_spectral.py); the rest is averaged.
    "tsv-merge": Identical(vectors_only=True),
    "iso-c": Identical(vectors_only=True),
    "iso-cts": Identical(vectors_only=True),
}


def test_every_streamed_method_says_what_identical_experts_give() -> None:
    assert set(STREAMED) == set(IDENTICAL), "a new streamed method: enter what identical experts give"


@every_method
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_identical_experts_give_the_expert_back(name: str, data: st.DataObject) -> None:
    case, n = IDENTICAL[name], number_of_experts(name)
    one = experts_of(data.draw(changes_for(name, 2)))["e0"]
    options = filled(name, case.options, n)
    found = results(METHODS[name], {f"e{i}": one for i in range(n)}, options)
    base = base_state()
    expected = {k: base[k] + case.factor(n) * (one[k] - base[k]) for k in one}
    for label in found:
        kept = {k: t for k, t in found[label].items() if not (case.vectors_only and t.ndim == 2)}
        check_close({label: kept}, {label: {k: expected[k] for k in kept}})


@pytest.mark.parametrize(
    ("name", "options"), [case for case in CASES if METHODS[case[0]].symmetric], ids=case_id
)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_permuting_the_experts_changes_nothing(
    name: str, options: dict[str, Any], data: st.DataObject
) -> None:
    experts = experts_of(data.draw(changes_for(name, 3)))
    order = data.draw(st.permutations(list(experts)))
    mixed = {label: experts[label] for label in order}
    check_close(results(METHODS[name], mixed, options), results(METHODS[name], experts, options))


@pytest.mark.parametrize("name", [name for name in STREAMED if not METHODS[name].symmetric])
def test_methods_that_are_not_symmetric_have_a_reason(name: str) -> None:
    n = number_of_experts(name)
    experts = experts_of(generic(n))
    options = filled(name, {"t": 0.3} if name == "slerp" else {}, n)
    found = results(METHODS[name], experts, options)[""]
    turned = results(METHODS[name], dict(reversed(experts.items())), options)[""]
    assert any(not torch.allclose(found[k], turned[k], atol=1e-4) for k in found)


@pytest.mark.parametrize("name", [name for name in STREAMED if "scaling" in METHODS[name].schema])
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_scaling_zero_gives_the_base(name: str, data: st.DataObject) -> None:
    experts = experts_of(data.draw(changes_for(name, 3)))
    for options in ({}, *VARIANTS.get(name, ())):
        found = results(METHODS[name], experts, {**options, "scaling": 0.0})
        for state in found.values():
            for key, tensor in base_state().items():
                assert torch.equal(state[key], tensor), key


@every_case
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(name: str, options: dict[str, Any], threads: int) -> None:
    method, n = METHODS[name], number_of_experts(name)
    experts = experts_of(generic(n))
    options = filled(name, options, n)
    with small_pieces():
        alone = merge_with(method, experts, base_state(), options)
        together = merge_with(method, experts, base_state(), options, threads=threads)
    for key, tensor in alone.items():
        assert torch.equal(together[key], tensor), key


@every_case
@pytest.mark.parametrize("piece", [8, 16])
def test_pieces_do_not_matter(name: str, options: dict[str, Any], piece: int) -> None:
    method, n = METHODS[name], number_of_experts(name)
    experts = experts_of(generic(n))
    options = filled(name, options, n)
    whole = results(method, experts, options)
    with small_pieces(piece):
        check_close(results(method, experts, options), whole, 1e-6)


@every_case
def test_functions_leave_their_inputs_as_they_are(name: str, options: dict[str, Any]) -> None:
    method, n = METHODS[name], number_of_experts(name)
    models = Models(
        {label: StateSource(state) for label, state in experts_of(generic(n)).items()},
        StateSource(base_state()),
    )
    merge = Merge.of(method, models, filled(name, options, n))
    found = method.call(method.survey, models, options=merge.options) if method.survey else None
    for piece in models.pieces(models.names, method.elementwise):
        tensors, known = models.inputs(piece, method.elementwise)
        tensors = tensors if method.elementwise else list(tensors)
        before = [t.clone() for t in (*tensors, known["base"])]
        for _ in range(2):  # twice: what a survey found is not to be overwritten either
            made = method.call(method.function, tensors, options=merge.options, survey=found, **known)
            made = made[0] if method.masked else made
            assert made.dtype == torch.float32
            assert made.shape == known["base"].shape
        again = method.call(method.function, tensors, options=merge.options, survey=found, **known)
        assert torch.equal(again[0] if method.masked else again, made)
        for tensor, old in zip((*tensors, known["base"]), before, strict=True):
            assert torch.equal(tensor, old), piece.name


# Through files, in half precision, with buffers.


def write(path: Path, state: Mapping[str, torch.Tensor]) -> Path:
    with TensorWriter(path, {k: Spec(tuple(t.shape), t.dtype) for k, t in state.items()}, {}) as writer:
        for name, tensor in state.items():
            writer.write(name, tensor)
    return path


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_the_type_of_the_inputs_is_the_type_of_the_output(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Files in half precision are merged in float32 and rounded once; buffers follow their own rule."""
    method, n = METHODS[name], number_of_experts(name)
    states = {"base": base_state(), **experts_of(generic(n))}
    for place, state in enumerate(states.values()):
        state.update({key: tensor.to(dtype) for key, tensor in state.items()})
        state["bn.running_var"] = torch.full((2,), place + 1.0, dtype=dtype)
        state["bn.num_batches_tracked"] = torch.tensor(place)
    files = {label: TensorFile(write(tmp_path / label, state)) for label, state in states.items()}
    base = files.pop("base")
    options = filled(name, {}, n)
    merge = Merge.of(method, Models(files, base, threads=2), options)
    with TensorWriter(tmp_path / "out", merge.specs(), {}) as writer:
        merge.run(writer)

    exact = merge_with(
        method,
        {
            label: {k: t.float() if t.is_floating_point() else t for k, t in states[label].items()}
            for label in files
        },
        {k: t.float() if t.is_floating_point() else t for k, t in states["base"].items()},
        options,
    )
    out = TensorFile(tmp_path / "out")
    assert out.specs.keys() == exact.keys()
    for key, spec in out.specs.items():
        known = states["e0"].get(key.removeprefix("base/").removeprefix("shared/"))
        if known is not None:
            assert spec.dtype == known.dtype, key
        found = out.read(key).view(spec.shape)
        assert torch.equal(found, exact[key].to(spec.dtype)), key
    prefix = "base/" if method.masked else ""
    mean = torch.tensor([float(place + 2) for place in range(n)]).mean().to(dtype)
    assert torch.equal(out.read(f"{prefix}bn.running_var"), mean.expand(2))
    assert out.read(f"{prefix}bn.num_batches_tracked").item() == 1
