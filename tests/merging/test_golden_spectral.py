"""TSV-Merge, Iso, multi-SLERP and the Karcher mean give what the published implementations give."""

from typing import Any

import pytest
import torch
from golden import Golden, goldens

from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_with


def merged(case: Golden, method: str, *, base: bool = True, **options: Any) -> dict[str, torch.Tensor]:
    return merge_with(METHODS[method], case.experts, case.base if base else None, options)


@pytest.mark.parametrize("case", goldens("tsv_m_*"))
def test_tsv_merge(case: Golden) -> None:
    case.check(merged(case, "tsv-merge", scaling=case.hyper["alpha"]))


@pytest.mark.parametrize("case", goldens("iso_c_*"))
def test_iso_c(case: Golden) -> None:
    case.check(merged(case, "iso-c", scaling=case.hyper["alpha"]))


@pytest.mark.parametrize("case", goldens("iso_cts_*"))
def test_iso_cts(case: Golden) -> None:
    common = case.hyper["common_space_fraction"]
    case.check(merged(case, "iso-cts", scaling=case.hyper["alpha"], common_fraction=common))


@pytest.mark.parametrize("case", goldens("*_slerp_*"))
def test_slerp(case: Golden) -> None:
    """mergekit's base model is its first one."""
    case.check(merged(case, "slerp", base=False, t=case.hyper["t"]))


@pytest.mark.parametrize("case", goldens("*_nuslerp_*"))
def test_nuslerp(case: Golden) -> None:
    """mergekit's NuSLERP of whole tensors: the position from two weights, and hardly ever straight."""
    first, second = case.hyper["weights"]
    on_deltas = case.hyper.get("with_base", False)
    assert case.hyper.get("flatten", True), "by rows or columns: not an option here"
    options = {"t": second / (first + second), "lerp_above": 1.0}
    case.check(merged(case, "slerp", base=on_deltas, on="deltas" if on_deltas else "weights", **options))


@pytest.mark.parametrize("case", goldens("*_multislerp_*"))
def test_multi_slerp(case: Golden) -> None:
    on_deltas = case.hyper["with_base"]
    found = merged(
        case,
        "multi-slerp",
        base=on_deltas,
        on="deltas" if on_deltas else "weights",
        weights=case.hyper["weights"],
        normalize=case.hyper["normalize_weights"],
    )
    case.check(found)


@pytest.mark.parametrize("case", goldens("mergekit_karcher_*"))
def test_karcher(case: Golden) -> None:
    steps, tolerance = case.hyper["max_iter"], case.hyper["tol"]
    case.check(merged(case, "karcher", base=False, iterations=steps, tolerance=tolerance))


@pytest.mark.parametrize("method", ["tsv-merge", "iso-c", "iso-cts"])
@pytest.mark.parametrize("case", goldens("tsv_m_*"))
def test_reshaped_convolutions_change_the_kernels_alone(case: Golden, method: str) -> None:
    mean, reshaped = merged(case, method), merged(case, method, convolutions="reshape")
    assert [name for name in mean if not torch.equal(mean[name], reshaped[name])] == ["conv1.weight"]
