"""SLERP, multi-SLERP and the Karcher mean: directions, norms, and what has no direction."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from neulig_ray.errors import InputError
from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_with

State = dict[str, torch.Tensor]


def merge(
    method: str, *tensors: torch.Tensor, base: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    experts = {str(i): {"w": tensor} for i, tensor in enumerate(tensors)}
    return merge_with(METHODS[method], experts, None if base is None else {"w": base}, options)["w"]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.floats(0.1, 3.0), st.integers(0, 100))
def test_slerp_moves_along_the_arc_in_equal_angles(t: float, angle: float, seed: int) -> None:
    a = normalize(gaussian(70_000, seed=seed), dim=0)  # more than one piece
    across = gaussian(70_000, seed=seed + 1000)
    b = math.cos(angle) * a + math.sin(angle) * normalize(across - (across @ a) * a, dim=0)
    found = merge("slerp", a, b, t=t)
    assert float(found.norm()) == pytest.approx(1, abs=1e-4)
    assert math.acos(min(1.0, float(found @ a))) == pytest.approx(t * angle, abs=2e-3)


def test_slerp_applies_its_coefficients_to_the_tensors_themselves() -> None:
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])
    half = math.sqrt(0.5)
    torch.testing.assert_close(merge("slerp", a, b), torch.tensor([3 * half, half]))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, 0.0], [0.0, 0.0]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([1.0, 0.0], [-2.0, 0.0]),
        ([1.0, 0.0], [5.0, 0.01]),
        ([2.0], [-3.0]),
        ([2.0], [3.0]),
    ],
    ids=["40-zero", "both are zero", "40-opposite", "nearly parallel", "opposite numbers", "numbers"],
)
def test_slerp_goes_straight_where_there_is_no_arc(a: list[float], b: list[float], t: float) -> None:
    a, b = torch.tensor(a), torch.tensor(b)
    torch.testing.assert_close(merge("slerp", a, b, t=t), (1 - t) * a + t * b)


def test_slerp_bends_nearly_parallel_tensors_where_it_is_asked_to() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(0.02), math.sin(0.02)])
    assert float(merge("slerp", a, b).norm()) < 1 - 4e-5
    assert float(merge("slerp", a, b, lerp_above=1).norm()) == pytest.approx(1, abs=1e-6)


def test_slerp_on_deltas_is_nuslerp() -> None:
    """Shoemake's formula in float64, on flattened task vectors, with the base added."""
    base, a, b = (gaussian(6, 5, seed=i) for i in range(3))
    u, v = (a - base).double().flatten(), (b - base).double().flatten()
    angle = torch.acos(normalize(u, dim=0) @ normalize(v, dim=0))
    arc = (torch.sin(0.3 * angle) * u + torch.sin(0.7 * angle) * v) / torch.sin(angle)
    found = merge("slerp", a, b, base=base, on="deltas", t=0.7, lerp_above=1)
    torch.testing.assert_close(found, (base.double() + arc.view(6, 5)).float(), rtol=0, atol=1e-6)
    assert not torch.allclose(found, merge("slerp", a, b, t=0.7), atol=1e-2)


@pytest.mark.parametrize("count", [1, 3])
def test_slerp_takes_two_models(count: int) -> None:
    with pytest.raises(InputError, match=rf"exactly 2 models, not {count}.*multi-slerp or karcher"):
        merge("slerp", *(gaussian(3, seed=i) for i in range(count)))


@pytest.mark.parametrize("method", ["slerp", "multi-slerp"])
def test_deltas_need_the_base_and_weights_do_not(method: str) -> None:
    a, b = gaussian(3, seed=1), gaussian(3, seed=2)
    assert not METHODS[method].needs_base
    with pytest.raises(InputError, match=rf"{method} on deltas needs the base"):
        merge(method, a, b, on="deltas")
    torch.testing.assert_close(merge(method, a, b, base=gaussian(3)), merge(method, a, b))


def test_multi_slerp_is_the_mean_direction_at_the_mean_norm() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    torch.testing.assert_close(merge("multi-slerp", a, b), torch.tensor([[3.0, 3.0]]) / math.sqrt(2))
    found = merge("multi-slerp", a, b, weights=(3, 1))
    torch.testing.assert_close(found, 2.5 * torch.tensor([[3.0, 1.0]]) / math.sqrt(10))
    found = merge("multi-slerp", a, b, weights=(3, 1), normalize=False)
    torch.testing.assert_close(found, 10 * torch.tensor([[3.0, 1.0]]) / math.sqrt(10))


def test_multi_slerp_of_cancelling_directions_is_the_weighted_sum() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([-3.0, 0.0])
    torch.testing.assert_close(merge("multi-slerp", a, b), torch.tensor([-1.0, 0.0]))
    c = [torch.tensor([math.cos(x), math.sin(x)]) for x in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    torch.testing.assert_close(merge("multi-slerp", *c), torch.zeros(2), rtol=0, atol=1e-6)


def test_multi_slerp_of_weights_that_are_zero_is_refused() -> None:
    with pytest.raises(InputError, match="multi-slerp: the weights are all zero"):
        merge("multi-slerp", gaussian(2), gaussian(2, seed=1), weights=(0, 0))
    with pytest.raises(InputError, match="weights"):
        merge("multi-slerp", gaussian(2), gaussian(2, seed=1), weights=(1, 1, 1))


def test_karcher_has_the_least_squared_angles() -> None:
    tensors = [gaussian(4, seed=i).abs() for i in range(3)]
    units = torch.stack([normalize(t, dim=0) for t in tensors]).double()

    def cost(x: torch.Tensor) -> float:
        return float((units @ normalize(x.double(), dim=0)).clamp(-1, 1).acos().square().sum())

    found = merge("karcher", *tensors, iterations=50, tolerance=1e-9)
    assert float(found.norm()) == pytest.approx(sum(float(t.norm()) for t in tensors) / 3, rel=1e-5)
    for seed in range(20):
        assert cost(found) <= cost(found + 0.05 * gaussian(4, seed=seed)) + 1e-9
    assert cost(found) < cost(torch.stack(tensors).mean(0)) - 1e-4  # and the average is another point


def test_karcher_of_two_is_the_middle_of_the_arc() -> None:
    a, b = gaussian(5, seed=1), gaussian(5, seed=2)
    b = b * (a.norm() / b.norm())
    torch.testing.assert_close(merge("karcher", a, b), merge("slerp", a, b), rtol=1e-4, atol=1e-5)


def test_zero_tensors_have_no_direction_but_count_for_the_norm() -> None:
    a, zero = torch.tensor([3.0, 4.0]), torch.zeros(2)
    torch.testing.assert_close(merge("karcher", a, zero), a / 2)
    torch.testing.assert_close(merge("multi-slerp", a, zero), a / 2)
    for method in ("karcher", "multi-slerp"):
        assert not merge(method, zero, zero).any()


def test_karcher_of_opposite_tensors_is_finite() -> None:
    a = torch.tensor([3.0, 4.0])
    assert merge("karcher", a, -a).isfinite().all()


@pytest.mark.parametrize("method", ["slerp", "multi-slerp", "karcher"])
def test_identical_models_give_the_model_back(method: str) -> None:
    a = gaussian(300, 300)
    torch.testing.assert_close(merge(method, a, a.clone()), a, rtol=1e-6, atol=1e-6)


# Few dimensions, opposite and nearly parallel tensors -------------------------------------------------------


@st.composite
def vectors(draw: st.DrawFn) -> torch.Tensor:
    """n tensors (n, numel): anywhere, on a line, nearly so, in a cluster, of unequal norms, opposite."""
    n, numel = draw(st.integers(1, 40)), draw(st.integers(0, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    rows = torch.randn(n, numel, generator=generator)
    signs = torch.randn(n, 1, generator=generator).sign()
    kind = draw(
        st.sampled_from(["any", "line", "near a line", "cluster", "unequal", "zeros", "opposite pairs"])
    )
    if kind == "line":
        rows = rows[:1] * signs * torch.rand(n, 1, generator=generator)
    elif kind == "near a line":
        rows = signs * (rows[:1] + 10.0 ** -draw(st.integers(1, 8)) * rows)
    elif kind == "cluster":
        rows = rows[:1] + 10.0 ** -draw(st.integers(1, 8)) * rows
    elif kind == "unequal":
        rows = rows * 10.0 ** torch.randint(-40, 37, (n, 1), generator=generator)
    elif kind == "zeros":
        rows = rows * (signs > 0)
    elif kind == "opposite pairs":
        rows = torch.cat([rows, -rows])[:40]
    return rows.to(draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])))


def beside_another(method: str, rows: torch.Tensor) -> torch.Tensor:
    """The merged tensor, float64, of models with another one: a model of an empty tensor alone is none."""
    experts = {str(i): {"w": row, "other": torch.ones(2)} for i, row in enumerate(rows)}
    return merge_with(METHODS[method], experts)["w"].double()


def units_and_norms(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    norms = rows.double().norm(dim=1)
    return rows.double() / norms.where(norms > 0, 1)[:, None], norms


@settings(max_examples=200, deadline=None)
@given(vectors().filter(lambda rows: bool(rows.float().isfinite().all())))
def test_the_karcher_mean_has_the_mean_norm_whatever_the_tensors(rows: torch.Tensor) -> None:
    """F3: with more tensors than dimensions, steps of noise left the sphere."""
    units, norms = units_and_norms(rows.float())
    found = beside_another("karcher", rows)
    assert float(found.norm()) == pytest.approx(float(norms.mean()), rel=1e-4, abs=1e-40)
    mean = units[norms > 0].mean(0)
    if norms.any() and mean.norm() > 1e-3:  # it is no worse a mean direction than where the way begins

        def cost(point: torch.Tensor) -> float:
            cosine = units[norms > 0] @ (point / point.norm())
            return float(cosine.clamp(-1, 1).acos().square().mean())

        assert cost(found) <= cost(mean) + 1e-3


@settings(max_examples=200, deadline=None)
@given(vectors().filter(lambda rows: bool(rows.float().isfinite().all())))
def test_multi_slerp_has_the_mean_norm_or_the_mean(rows: torch.Tensor) -> None:
    """F3: of directions that cancel up to rounding, the weighted sum."""
    units, norms = units_and_norms(rows.float())
    found = beside_another("multi-slerp", rows)
    valid = norms > 0
    length = float(units.sum(0).norm()) / max(int(valid.sum()), 1)
    if length > 2e-5:
        assert float(found.norm()) == pytest.approx(float(norms.mean()), rel=1e-4, abs=1e-40)
    elif length < 5e-6:
        torch.testing.assert_close(found, rows.double().mean(0), rtol=1e-4, atol=1e-6 * float(norms.max()))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(0, 1000),
    st.sampled_from([0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-4, 1e-2, 1.0]),
    st.sampled_from([-1.0, 1.0]),
    st.floats(0, 1),
)
def test_slerp_of_unit_tensors_stays_on_the_sphere_or_goes_straight(
    numel: int, seed: int, apart: float, sign: float, t: float
) -> None:
    """F3: near antipodes, and there in one dimension above all."""
    a = normalize(gaussian(numel, seed=seed), dim=0)
    b = normalize(sign * a + apart * gaussian(numel, seed=seed + 1), dim=0)
    found = merge("slerp", a, b, t=t, lerp_above=1.0)
    straight = (1 - t) * a + t * b
    on_sphere = abs(float(found.norm()) - 1) < 2e-3
    assert on_sphere or torch.allclose(found, straight, atol=1e-5)


@pytest.mark.parametrize("n", [2, 3, 5, 20, 38])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=["F3", "one-number", "one-by-one"])
def test_the_karcher_mean_of_single_numbers_has_the_sign_of_most(n: int, shape: tuple[int, ...]) -> None:
    """F3, as it was reported: 0.0, or 12.0 for 1.24, or NaN and the advice to use a smaller scaling."""
    for seed in range(30):
        numbers = [gaussian(*shape, seed=1000 * seed + i) for i in range(n)]
        found = merge("karcher", *numbers)
        assert found.shape == shape
        assert float(found.abs()) == pytest.approx(sum(float(x.abs()) for x in numbers) / n, rel=1e-5)
        if balance := sum(float(x.sign()) for x in numbers):
            assert float(found) * balance > 0


LOW_RANK = {
    "more-tensors-than-numbers": gaussian(20, 2),
    "on-a-line": gaussian(9, 1).sign() * gaussian(6, seed=1) * torch.linspace(1, 3, 9)[:, None],
    "antipodes-and-one": torch.cat([gaussian(4, 3), -gaussian(4, 3), gaussian(1, 3, seed=1)]),
    "nearly-antipodes": gaussian(5, 1).sign() * (gaussian(4) + 1e-7 * gaussian(5, 4, seed=1)),
    "one-direction-often": torch.cat([gaussian(1, 5).expand(30, 5), gaussian(2, 5, seed=1)]),
}


@pytest.mark.parametrize("rows", LOW_RANK.values(), ids=LOW_RANK.keys())
def test_the_karcher_mean_of_tensors_of_low_rank_has_the_mean_norm(rows: torch.Tensor) -> None:
    """F3's kind: where the Gram matrix has a low rank, acos and sin are noise."""
    found = merge("karcher", *rows)
    assert float(found.norm()) == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-4)


@pytest.mark.parametrize("method", ["karcher", "multi-slerp"])
def test_nearly_cancelling_sums_keep_their_direction(method: str) -> None:
    """F3: coefficients are large there, and their products are added up in more than float32."""
    a, across = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    tensors = [a, -a + 1e-3 * across, 1e-3 * across - a, a + 1e-3 * across]
    found = merge(method, *tensors)
    torch.testing.assert_close(found, across, rtol=0, atol=2e-3)
