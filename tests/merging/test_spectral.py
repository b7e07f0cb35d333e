"""TSV-Merge and Iso: singular values and directions, and what has none."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.linalg import svdvals

from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_with
from neulig_ray.merging.methods.iso_cts import shares
from neulig_ray.merging.spectral import leading, orthogonal

SPECTRAL = ["tsv-merge", "iso-c", "iso-cts"]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def merge(method: str, *deltas: torch.Tensor, name: str = "w", **options: Any) -> torch.Tensor:
    """What is merged onto a base that is not zero, less the base."""
    base = gaussian(*deltas[0].shape, seed=77)
    experts = {str(i): {name: base + delta} for i, delta in enumerate(deltas)}
    return merge_with(METHODS[method], experts, {name: base}, options)[name] - base


@pytest.mark.parametrize("method", SPECTRAL)
@pytest.mark.parametrize(
    ("name", "shape"),
    [("bias", (6,)), ("scale", ()), ("visual.text_projection", (6, 4)), ("conv.weight", (6, 3, 2, 2))],
)
def test_what_is_no_matrix_gets_the_mean_task_vector(method: str, name: str, shape: tuple[int, ...]) -> None:
    deltas = [gaussian(*shape, seed=i) for i in range(3)]
    expected = 0.7 * torch.stack(deltas).mean(0)
    found = merge(method, *deltas, name=name, scaling=0.7)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", SPECTRAL)
def test_a_reshaped_kernel_is_merged_as_its_matrix(method: str) -> None:
    deltas = [gaussian(8, 3, 2, 2, seed=i) for i in range(2)]
    kernel = merge(method, *deltas, convolutions="reshape")
    matrix = merge(method, *(delta.flatten(1) for delta in deltas))
    torch.testing.assert_close(kernel.flatten(1), matrix, rtol=0, atol=1e-4)
    assert not torch.allclose(kernel, merge(method, *deltas), atol=1e-2)


def test_tsv_merge_of_one_expert_is_the_expert() -> None:
    delta = gaussian(7, 5)
    torch.testing.assert_close(merge("tsv-merge", delta), delta, rtol=0, atol=1e-5)


def test_tsv_merge_keeps_each_tasks_leading_singular_values() -> None:
    deltas = [gaussian(12, 9, seed=i) for i in range(3)]
    kept = torch.cat([svdvals(delta)[:3] for delta in deltas]).sort(descending=True).values
    torch.testing.assert_close(svdvals(merge("tsv-merge", *deltas)), kept, rtol=1e-4, atol=1e-4)


def test_iso_c_has_one_singular_value_the_mean_of_the_sums() -> None:
    deltas = [gaussian(12, 9, seed=i) for i in range(3)]
    mean = svdvals(sum(deltas)).mean()
    torch.testing.assert_close(svdvals(merge("iso-c", *deltas)), mean.expand(9), rtol=1e-4, atol=1e-4)


def test_iso_cts_has_one_singular_value_and_spans_what_each_task_adds() -> None:
    deltas = [gaussian(12, 10, seed=i) for i in range(2)]
    found = merge("iso-cts", *deltas)
    values = svdvals(found)
    torch.testing.assert_close(values, values.mean().expand(10), rtol=1e-4, atol=1e-4)
    common, share = leading(sum(deltas), 8), 1
    rest = [leading(d - common[0] @ (common[0].T @ d), share)[1] for d in deltas]
    assert float(values.mean()) == pytest.approx(float(torch.cat([common[1], *rest]).mean()), rel=1e-4)


def test_iso_cts_with_everything_common_is_iso_c() -> None:
    deltas = [gaussian(6, 8, seed=i) for i in range(2)]
    found = merge("iso-cts", *deltas, common_fraction=1)
    torch.testing.assert_close(found, merge("iso-c", *deltas), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("n", "common", "own"), [(8, 616, 19), (14, 614, 11), (20, 608, 8)])
def test_iso_ctsshares_are_the_published_ones(n: int, common: int, own: int) -> None:
    assert shares(768, n, 0.8) == (common, own)


@given(st.integers(1, 200), st.integers(1, 30), st.floats(0, 1))
def test_iso_ctsshares_use_the_whole_rank(rank: int, n: int, fraction: float) -> None:
    common, own = shares(rank, n, fraction)
    assert common + n * own == rank
    assert min(common, own) >= 0


@pytest.mark.parametrize("method", SPECTRAL)
def test_an_expert_equal_to_the_base_adds_no_directions(method: str) -> None:
    delta = gaussian(8, 6)
    low = leading(delta, 3)
    found = merge(method, delta, torch.zeros_like(delta))
    assert svdvals(found).isfinite().all()
    if method == "tsv-merge":  # the half of the rank that the other expert has
        torch.testing.assert_close(found, (low[0] * low[1]) @ low[2], rtol=0, atol=1e-4)
    assert not merge(method, torch.zeros(8, 6), torch.zeros(8, 6)).any()


@pytest.mark.parametrize("method", SPECTRAL)
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(3)))
def test_the_order_of_the_experts_does_not_matter(method: str, order: list[int]) -> None:
    deltas = [gaussian(10, 7, seed=i) for i in range(3)]
    expected = merge(method, *deltas)
    torch.testing.assert_close(merge(method, *(deltas[i] for i in order)), expected, rtol=0, atol=1e-4)


def test_tsv_merge_of_equal_experts_keeps_their_leading_directions() -> None:
    delta = gaussian(9, 8)
    u, s, vt = leading(delta, 4)
    torch.testing.assert_close(merge("tsv-merge", delta, delta), (u * s) @ vt, rtol=0, atol=1e-4)


def test_a_rank_below_the_number_of_experts_gets_the_mean() -> None:
    deltas = [gaussian(1, 7, seed=i) for i in range(2)]
    torch.testing.assert_close(merge("tsv-merge", *deltas), sum(deltas) / 2, rtol=0, atol=1e-5)


def test_the_orthogonal_factor_has_orthonormal_columns_or_spans_their_space() -> None:
    matrix = gaussian(9, 4)
    factor = orthogonal(matrix)
    torch.testing.assert_close(factor.T @ factor, torch.eye(4), rtol=0, atol=1e-5)
    assert float((matrix.T @ factor).trace()) == pytest.approx(float(svdvals(matrix).sum()), rel=1e-5)
    twice = orthogonal(torch.cat([matrix, matrix], 1))
    torch.testing.assert_close(twice @ twice.T, factor @ factor.T, rtol=0, atol=1e-5)
