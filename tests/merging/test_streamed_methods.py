"""Single methods that merge tensor by tensor: their ends, their options, their random masks."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from streamed_samples import STREAMED, base_state, changes_for, check_close, experts_of, generic, results

from neulig_ray.errors import InputError
from neulig_ray.merging import METHODS
from neulig_ray.merging.declare.streamed import StreamedMethod
from neulig_ray.merging.dropping import kept


@settings(max_examples=10, deadline=None)
@given(changes=changes_for("average", 3))
def test_density_one_drops_nothing(changes: np.ndarray) -> None:
    experts = experts_of(changes)
    plain = results(METHODS["task-arithmetic"], experts, {"scaling": 0.25})
    for name, options in (
        ("dare", {}),
        ("dare", {"rescale": "l1"}),
        ("dare", {"strategy": "magnitude"}),
        ("breadcrumbs", {}),
        ("breadcrumbs", {"outliers": 0.5}),
    ):
        found = results(METHODS[name], experts, {**options, "density": 1.0, "scaling": 0.25})
        check_close(found, plain, 1e-6)
    everything = {"agreement": 0, "scaling": 0.25}
    check_close(results(METHODS["consensus"], experts, everything), plain, 1e-6)
    check_close(results(METHODS["consensus"], experts, {"agreement": 4}), {"": base_state()}, 0)


@settings(max_examples=10, deadline=None)
@given(changes=changes_for("average", 3))
def test_ties_of_density_one_only_elects(changes: np.ndarray) -> None:
    experts, base = experts_of(changes), base_state()
    assume(np.abs(changes).sum() > 0)
    tau = {k: torch.stack([e[k] - base[k] for e in experts.values()]) for k in base}
    signs = {k: t.sum(0).sign() for k, t in tau.items()}
    majority = 1.0 if sum(float(s.sum()) for s in signs.values()) > 0 else -1.0
    expected = {}
    for key, t in tau.items():
        sign = torch.where(signs[key] == 0, majority, signs[key])
        agree = t * sign > 0
        expected[key] = base[key] + (t * agree).sum(0) / agree.sum(0).clamp(min=1)
    check_close(results(METHODS["ties"], experts, {"density": 1.0}), {"": expected}, 1e-6)


@settings(max_examples=10, deadline=None)
@given(changes=changes_for("average", 2))
def test_the_smallest_density_keeps_the_largest_entry(changes: np.ndarray) -> None:
    one = {"e0": experts_of(changes)["e0"]}
    base = base_state()
    found = results(METHODS["ties"], one, {"density": 1e-9})[""]
    largest = max(float((one["e0"][k] - base[k]).abs().max()) for k in base)
    for key, tensor in one["e0"].items():
        tau = tensor - base[key]
        assert torch.equal(found[key], base[key] + torch.where(tau.abs() == largest, tau, 0.0)), key


@pytest.mark.parametrize("name", [name for name in STREAMED if "density" in METHODS[name].schema])
@pytest.mark.parametrize("density", [0.0, -0.1, 1.01])
def test_a_density_outside_its_interval_is_refused(name: str, density: float) -> None:
    with pytest.raises(InputError, match=r"must lie in \(0, 1\]"):
        METHODS[name].resolve({"density": density})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("weighted-average", {"weights": (1.0, 2.0)}),
        ("ties", {"weights": (1.0, 2.0, 3.0, 4.0)}),
        ("tall-mask", {"mask_lambda": (0.1, 0.2)}),
        ("task-arithmetic", {"scaling": (0.1, 0.2)}),
        ("consensus", {"mask_lambda": (0.1, 0.2)}),
    ],
)
def test_lists_have_one_number_for_each_expert(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="but there are 3 experts"):
        results(METHODS[name], experts_of(generic(3)), options)


# Single methods.


def test_weights_of_zero_leave_an_expert_out() -> None:
    experts = experts_of(generic(3))
    two = {label: experts[label] for label in ("e0", "e2")}
    found = results(METHODS["weighted-average"], experts, {"weights": (1.0, 0.0, 1.0)})
    check_close(found, results(METHODS["average"], two, {}), 1e-6)
    options = {"density": 0.4, "trim_scope": "tensor"}
    found = results(METHODS["ties"], experts, {**options, "weights": (1.0, 0.0, 1.0)})
    check_close(found, results(METHODS["ties"], two, options), 1e-6)


def test_coefficients_are_those_of_the_merged_parameters() -> None:
    experts, base = experts_of(generic(3)), base_state()
    given = {"weighted-average": {"weights": (1.0, 3.0, 4.0)}, "task-arithmetic": {"scaling": 0.7}}
    linear = [name for name in STREAMED if METHODS[name].has_ensemble_equivalent]
    assert linear == ["average", "fuse", "task-arithmetic", "weighted-average"]
    for name in linear:
        method = METHODS[name]
        options = method.resolve(given.get(name, {}))
        assert isinstance(method, StreamedMethod)
        lambdas = method.equivalent_coefficients(3, options)
        assert lambdas is not None
        expected = {
            k: base[k]
            + sum(x * (e[k] - base[k]) for x, e in zip(lambdas.tolist(), experts.values(), strict=True))
            for k in base
        }
        check_close(results(method, experts, options), {"": expected}, 1e-5)


def test_each_task_vector_may_have_a_scale_of_its_own() -> None:
    """A negative one takes its task's direction away, as in the paper's task negation."""
    experts, base = experts_of(generic(3)), base_state()
    scaling = (0.5, -0.25, 1.0)
    expected = {
        k: base[k] + sum(s * (e[k] - base[k]) for s, e in zip(scaling, experts.values(), strict=True))
        for k in base
    }
    method = METHODS["task-arithmetic"]
    check_close(results(method, experts, {"scaling": scaling}), {"": expected}, 1e-6)
    assert isinstance(method, StreamedMethod)
    lambdas = method.equivalent_coefficients(3, {"scaling": scaling})
    assert lambdas is not None
    assert lambdas.tolist() == list(scaling)
    same = results(method, experts, {"scaling": (0.3,) * 3})
    check_close(same, results(method, experts, {"scaling": 0.3}), 1e-6)


def test_weights_that_scale_the_origin_have_no_counterpart() -> None:
    method = METHODS["weighted-average"]
    assert isinstance(method, StreamedMethod)
    options: dict[str, Any] = {"weights": (1.0, 1.0), "normalize": False}
    assert method.equivalent_coefficients(2, options) is None
    lambdas = method.equivalent_coefficients(2, {**options, "weights": (0.25, 0.75)})
    assert lambdas is not None
    assert lambdas.tolist() == [0.25, 0.75]


def test_emr_and_tall_masks_of_an_expert_that_did_not_move() -> None:
    changes = generic(3)
    changes[1] = 0
    experts, base = experts_of(changes), base_state()
    for name in ("emr", "tall-mask"):
        found = results(METHODS[name], experts, {})
        check_close({"": found["e1"]}, {"": base}, 0)
    check_close(results(METHODS["pcb"], dict.fromkeys(("a", "b"), experts["e1"]), {}), {"": base}, 0)


def pcb_by_sorting(tau: torch.Tensor, density: float, outliers: float) -> torch.Tensor:
    """PCB of whole task vectors (n, d) in float64, every quantile from a sorted row."""

    def quantile(rows: torch.Tensor, rank: int) -> torch.Tensor:
        return rows.sort(1).values[:, rank, None]

    d = tau.shape[1]
    low, high = quantile(tau.abs(), int(d * outliers)), quantile(tau.abs(), int(d * (1 - outliers) - 1))
    clamped = tau.abs().clamp(low, high)
    relative = (clamped - low) / (high - low) * tau.sign()
    inter = (relative[:, None] * relative[None]).tanh().sum(1)
    beta = (len(tau) * relative**2).exp() * inter
    cut, top = quantile(beta, min(int(d * (1 - density)), d - 1)), quantile(beta, d - 1)
    weights = (beta - cut).clamp(min=0) / (top - cut)
    return (weights * clamped * tau.sign()).sum(0) / weights.sum(0).clamp(min=1e-12)


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9, 1.0])
def test_pcb_with_cuts_above_and_below_zero(density: float) -> None:
    changes = generic(3)
    changes[1] = np.where(np.arange(changes.shape[1]) % 3 > 0, -changes[0], changes[1])  # lost competitions
    experts, base = experts_of(changes), base_state()
    vectors = [torch.cat([(e[k] - base[k]).flatten() for k in base]) for e in experts.values()]
    merged = pcb_by_sorting(torch.stack(vectors).double(), density, 0.02)
    expected, at = {}, 0
    for key, tensor in base.items():
        part = merged[at : at + tensor.numel()].float().view(tensor.shape)
        expected[key], at = tensor + 0.7 * part, at + tensor.numel()
    options = {"density": density, "outliers": 0.02, "scaling": 0.7}
    check_close(results(METHODS["pcb"], experts, options), {"": expected}, 1e-5)


@settings(max_examples=10, deadline=None)
@given(changes=changes_for("average", 3))
@pytest.mark.parametrize("trim", [0.2, 0.6, 1.0])
def test_dare_then_ties_is_ties_of_what_was_not_dropped(trim: float, changes: np.ndarray) -> None:
    experts, base = experts_of(changes), base_state()
    left = {
        label: {
            k: base[k] + 2 * (t - base[k]) * kept(3, k, i, 0, t.numel(), 0.5).view(t.shape)
            for k, t in state.items()
        }
        for i, (label, state) in enumerate(experts.items())
    }
    options = {"then": "ties", "trim": trim, "seed": 3, "density": 0.5, "scaling": 0.9}
    found = results(METHODS["dare"], experts, options)
    check_close(found, results(METHODS["ties"], left, {"density": trim, "scaling": 0.9}), 1e-6)


# Dropping at random.


def test_random_masks_depend_on_seed_tensor_and_expert_alone() -> None:
    whole = kept(0, "w", 1, 0, 4000, 0.3)
    for start in (1, 7, 8, 1000, 3999):
        assert torch.equal(kept(0, "w", 1, start, 4000 - start, 0.3), whole[start:])
    assert not torch.equal(kept(1, "w", 1, 0, 4000, 0.3), whole)
    assert not torch.equal(kept(0, "v", 1, 0, 4000, 0.3), whole)
    assert not torch.equal(kept(0, "w", 2, 0, 4000, 0.3), whole)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.9])
def test_random_masks_keep_the_fraction(density: float) -> None:
    masks = torch.stack([kept(seed, "w", 0, 0, 50_000, density) for seed in range(4)]).float()
    spread = (density * (1 - density) / masks.numel()) ** 0.5
    assert abs(float(masks.mean()) - density) < 5 * spread
    both = float((masks[0] * masks[1]).mean())  # of two seeds: independent
    assert abs(both - density**2) < 5 * (density**2 / masks.shape[1]) ** 0.5
    neighbours = float((masks[:, :-1] * masks[:, 1:]).mean())
    assert abs(neighbours - density**2) < 5 * (density**2 / masks.numel()) ** 0.5


def test_more_seeds_of_dare_approach_task_arithmetic() -> None:
    """E[dropped and rescaled task vector] is the task vector."""
    experts = experts_of(generic(3))
    total = {k: torch.zeros_like(t) for k, t in base_state().items()}
    for seed in range(200):
        found = results(METHODS["dare"], experts, {"seed": seed, "density": 0.5})[""]
        for key, tensor in found.items():
            total[key] += tensor / 200
    plain = results(METHODS["task-arithmetic"], experts, {})[""]
    far = torch.cat([(total[k] - plain[k]).flatten() for k in plain])
    assert far.abs().mean() < 0.04  # of entries of about 0.5, each seed's spread about 0.3
