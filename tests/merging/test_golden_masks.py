"""TALL masks, Consensus merging and EMR give what the published implementations give, masks exactly."""

from typing import Any

import pytest
import torch
from golden import Golden, check_equal, goldens

from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_masks, merge_with
from neulig_ray.merging.masks import MaskedModel


def masked_model(case: Golden, method: str, **options: Any) -> MaskedModel:
    return merge_masks(METHODS[method], case.experts, case.base, options)


def check_tasks(case: Golden, found: MaskedModel) -> None:
    """Each task's dense model and its mask."""
    for task, label in enumerate(case.experts):
        check_equal(
            {name: found.mask(name, task) for name in case.base},
            {name: mask.bool() for name, mask in case.group(f"out_aux/mask{task}").items()},
        )
        if expected := case.group(f"out/task{task}"):
            case.check(found.dense(label), expected)


@pytest.mark.parametrize("case", goldens("tall_masks_*"))
def test_tall_masks(case: Golden) -> None:
    assert (case.hyper["tau_mtl"], case.hyper["lam"]) == ("sum of task vectors", 1.0)
    check_tasks(case, masked_model(case, "tall-mask", mask_lambda=case.hyper["mask_lambda"]))
    check_tasks(case, masked_model(case, "tall-mask", mask_lambda=(case.hyper["mask_lambda"],) * case.n))


@pytest.mark.parametrize("case", goldens("tact_tall_*"))
def test_tall_masks_of_tact_merge(case: Golden) -> None:
    """Not strict: what nobody moved is in every mask."""
    options = {"mask_lambda": case.hyper["mask_lambda"]}
    check_tasks(case, masked_model(case, "tall-mask", strict=False, **options))
    scaling = {"scaling": case.hyper["lam"]}
    case.check(merge_with(METHODS["task-arithmetic"], case.experts, case.base, scaling))
    strict = masked_model(case, "tall-mask", **options)
    frozen = "ln_pre.bias"
    assert case.group("out_aux/mask0")[frozen].all()
    assert not strict.mask(frozen, 0).any()


@pytest.mark.parametrize("case", goldens("consensus_*"))
def test_consensus(case: Golden) -> None:
    hyper = case.hyper
    assert hyper["tau_mtl"] == "sum of task vectors"
    options = {"mask_lambda": hyper["mask_lambda"], "agreement": hyper["k"], "scaling": hyper["lam"]}
    found = merge_with(METHODS["consensus"], case.experts, case.base, options)
    case.check(found)
    masks = case.group("out_aux/consensus_mask")
    moved = {name: (found[name] != case.base[name]) for name in masks}
    for name, mask in masks.items():
        assert not (moved[name] & (mask == 0)).any(), name


@pytest.mark.parametrize("case", goldens("emr_*"))
def test_emr(case: Golden) -> None:
    found = masked_model(case, "emr")
    check_tasks(case, found)
    shared = {
        name: found.source.read(f"shared/{name}").view(tensor.shape) for name, tensor in case.base.items()
    }
    case.check(shared, case.group("out_aux/unified"))
    rescalers = case.tensors["out_aux/rescalers"].float()
    torch.testing.assert_close(found.source.read("rescalers"), rescalers, rtol=1e-6, atol=0)
