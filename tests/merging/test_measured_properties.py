"""What holds for every method that merges tensor by tensor with statistics of each expert."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streamed_samples import SHAPES, changes_for, check_close, experts_of, generic, small_pieces

from neulig_ray.merging import METHODS
from neulig_ray.merging.declare.measured import MeasuredMethod
from neulig_ray.merging.engine import Merge, merge_with
from neulig_ray.merging.models import Models
from neulig_ray.weights.sources import StateSink, StateSource

State = dict[str, torch.Tensor]
MEASURED = sorted(m.name for m in METHODS.values() if isinstance(m, MeasuredMethod))


def information(seed: int) -> State:
    """A diagonal with some zeros."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).clamp(min=0) for name, shape in SHAPES.items()}


def grams(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in SHAPES.items():
        if len(shape) > 1:
            x = torch.randn(40, int(np.prod(shape[1:])), generator=generator)
            found[name] = x.T @ x / 40
    return found


STATISTICS: dict[str, Callable[[int], State]] = {"fisher": information, "regmean": grams}
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "fisher": ({"floor_by": "addition", "floor": 0.1}, {"normalize": False}),
    "regmean": ({"offdiagonal": 1.0},),
}
CASES = [(name, options) for name in MEASURED for options in ({}, *VARIANTS.get(name, ()))]
every_case = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=lambda v: ",".join(v) if isinstance(v, dict) else v
)


def merged(name: str, experts: Mapping[str, State], options: Mapping[str, Any], **more: Any) -> State:
    statistics = [STATISTICS[name](int(label[1:])) for label in experts]
    return merge_with(METHODS[name], experts, None, options, statistics=statistics, **more)


def test_every_measured_method_has_statistics_here() -> None:
    assert set(MEASURED) == set(STATISTICS), "a new measured method: make statistics for it"


@every_case
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_identical_experts_give_the_expert_back(
    name: str, options: dict[str, Any], data: st.DataObject
) -> None:
    one = experts_of(data.draw(changes_for(name, 2)))["e0"]
    found = merged(name, {f"e{i}": one for i in range(3)}, options)
    check_close({"": found}, {"": one})


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if METHODS[case[0]].symmetric])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_permuting_the_experts_with_their_statistics_changes_nothing(
    name: str, options: dict[str, Any], data: st.DataObject
) -> None:
    experts = experts_of(data.draw(changes_for(name, 3)))
    mixed = {label: experts[label] for label in data.draw(st.permutations(list(experts)))}
    check_close({"": merged(name, mixed, options)}, {"": merged(name, experts, options)}, 1e-4)


@every_case
def test_statistics_decide(name: str, options: dict[str, Any]) -> None:
    experts = experts_of(generic(3))
    swapped = [STATISTICS[name](seed) for seed in (2, 0, 1)]
    found = merge_with(METHODS[name], experts, None, options, statistics=swapped)
    plain = merged(name, experts, options)
    assert any(not torch.allclose(found[key], plain[key], atol=1e-3) for key in plain)


@every_case
def test_threads_change_no_bit_and_pieces_do_not_matter(name: str, options: dict[str, Any]) -> None:
    experts = experts_of(generic(3))
    whole = merged(name, experts, options)
    with small_pieces():
        alone = merged(name, experts, options)
        together = merged(name, experts, options, threads=3)
    check_close({"": alone}, {"": whole}, 1e-6)
    for key, tensor in alone.items():
        assert torch.equal(together[key], tensor), key


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_the_type_of_the_inputs_is_the_type_of_the_output(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    exact = {
        label: {key: tensor.to(dtype).float() for key, tensor in state.items()}
        for label, state in experts_of(generic(3)).items()
    }
    models = Models(
        {k: StateSource({key: t.to(dtype) for key, t in state.items()}) for k, state in exact.items()},
        statistics=[StateSource(STATISTICS[name](seed)) for seed in range(3)],
    )
    merge = Merge.of(METHODS[name], models, options)
    sink = StateSink(merge.specs())
    merge.run(sink)
    for key, tensor in merged(name, exact, options).items():
        assert sink.state[key].dtype == dtype
        assert torch.equal(sink.state[key], tensor.to(dtype)), key
