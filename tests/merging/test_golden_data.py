"""RegMean and Fisher merging give what the published implementations give, measured and merged."""

from typing import Any

import pytest
import torch
from golden import Golden, goldens
from networks import Classifier

from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_with
from neulig_ray.merging.fisher_information import batch_fisher, exact_fisher
from neulig_ray.merging.grams import measure_grams

State = dict[str, torch.Tensor]


def merged(case: Golden, method: str, statistics: list[State], **options: Any) -> State:
    return merge_with(METHODS[method], case.experts, None, options, statistics=statistics)


def data(case: Golden, batch_size: int) -> list[tuple[Classifier, tuple[torch.Tensor, ...]]]:
    """Each expert with its images, in the order of the file."""
    return [
        (Classifier(state), case.tensors[f"data{i}"].split(batch_size))
        for i, state in enumerate(case.experts.values())
    ]


def identity(logits: torch.Tensor) -> torch.Tensor:
    return logits


def given_grams(case: Golden) -> list[State]:
    return [{f"{module}.weight": gram for module, gram in known.items()} for known in case.groups("gram")]


@pytest.mark.parametrize("case", goldens("regmean_*"))
def test_regmean_from_given_grams(case: Golden) -> None:
    case.check(merged(case, "regmean", given_grams(case), offdiagonal=case.hyper["a"]))


@pytest.mark.parametrize("case", goldens("regmean_a*"))
def test_regmean_from_images(case: Golden) -> None:
    measured = [measure_grams(tower, batches) for tower, batches in data(case, 16)]
    for ours, theirs in zip(measured, given_grams(case), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    case.check(merged(case, "regmean", measured, offdiagonal=case.hyper["a"]))


def exact_options(case: Golden) -> dict[str, Any]:
    hyper = case.hyper
    return {
        "floor": hyper["floor"],
        "floor_on": "first" if "model 0 only" in hyper["floor_on"] else "all",
        "normalize": bool(hyper["normalize"]),
        "weights": None if hyper["coefficients"] == "1/T" else hyper["coefficients"],
    }


@pytest.mark.parametrize("case", goldens("fisher_exact_*"))
def test_exact_fisher_given(case: Golden) -> None:
    case.check(merged(case, "fisher", case.groups("fisher"), **exact_options(case)))


@pytest.mark.parametrize("case", goldens("fisher_exact_*"))
def test_exact_fisher_from_images(case: Golden) -> None:
    measured = [exact_fisher(tower, batches, identity) for tower, batches in data(case, 5)]
    for ours, theirs in zip(measured, case.groups("fisher"), strict=True):
        torch.testing.assert_close(ours, {k: v.float() for k, v in theirs.items()}, rtol=1e-4, atol=1e-9)
    case.check(merged(case, "fisher", measured, **exact_options(case)))


@pytest.mark.parametrize("case", goldens("fisher_mergelm_*"))
def test_batch_form_of_fisher(case: Golden) -> None:
    measured = [batch_fisher(tower, batches, identity) for tower, batches in data(case, case.hyper["batch"])]
    options = {
        "normalize": case.hyper["normalize"],
        "floor": case.hyper["floor"],
        "floor_by": "addition",
        "weights": case.hyper["coefficients"],
    }
    case.check(merged(case, "fisher", measured, **options))
