"""Averages, TIES, DARE and their like give what the published implementations give."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden import Golden, goldens

from neulig_ray.merging import METHODS, dropping
from neulig_ray.merging.engine import merge_with

State = dict[str, torch.Tensor]
MERGEKIT = {"trim_scope": "tensor", "threshold": "strict", "sign_ties": "positive"}


def merged(case: Golden, method: str, **options: Any) -> State:
    return merge_with(METHODS[method], case.experts, case.base, options)


def deltas(case: Golden, name: str) -> torch.Tensor:
    """The task vectors of one tensor, (n, size), float64."""
    base = case.base[name].double().flatten()
    return torch.stack([state[name].double().flatten() - base for state in case.experts.values()])


# Linear methods.


@pytest.mark.parametrize("case", goldens("average_*"))
@pytest.mark.parametrize("method", ["average", "fuse"])
def test_average(case: Golden, method: str) -> None:
    assert case.hyper["scaling"] == "1/T"
    case.check(merge_with(METHODS[method], case.experts))


@pytest.mark.parametrize("case", goldens("average_*"))
def test_the_average_is_task_arithmetic_with_one_over_n(case: Golden) -> None:
    case.check(merged(case, "task-arithmetic", scaling=1 / case.n))


@pytest.mark.parametrize("case", goldens("mergekit_linear_*"))
def test_weighted_average(case: Golden) -> None:
    options = {"weights": case.hyper["weights"], "normalize": case.hyper["normalize"]}
    case.check(merge_with(METHODS["weighted-average"], case.experts, None, options))


@pytest.mark.parametrize("case", goldens("task_arithmetic_*"))
def test_task_arithmetic(case: Golden) -> None:
    case.check(merged(case, "task-arithmetic", scaling=case.hyper["lam"]))


# TIES.


@pytest.mark.parametrize("case", goldens("ties_official_*", "ties_max_*", "ties_clip_*"))
def test_ties_over_the_whole_vector(case: Golden) -> None:
    hyper = case.hyper
    assert (hyper["scope"], hyper["zero_sign"]) == ("whole vector", "global majority")
    aggregate = hyper["merge"].removeprefix("dis-")
    options = {"density": hyper["K"] / 100, "aggregate": aggregate, "scaling": hyper["lam"]}
    case.check(merged(case, "ties", **options))


@pytest.mark.parametrize("case", goldens("ties_official_*"))
def test_ties_defaults_are_the_authors(case: Golden) -> None:
    assert (case.hyper["K"], case.hyper["merge"], case.hyper["lam"]) == (20, "dis-mean", 1.0)
    case.check(merged(case, "ties"))


@pytest.mark.parametrize(
    "change",
    [{"sign_ties": "positive"}, {"threshold": "strict"}, {"trim_scope": "tensor"}],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("case", goldens("ties_official_n3_s0"))  # where the majority is negative
def test_what_ties_varies_in_can_be_seen(case: Golden, change: dict[str, str]) -> None:
    """The inputs hold entries on the threshold and opposite pairs: each variant gives something else."""
    assert case.differences(merged(case, "ties", **change))


@pytest.mark.parametrize("case", goldens("mergekit_ties_*"))
def test_ties_of_mergekit(case: Golden) -> None:
    hyper = case.hyper
    options = {
        "density": hyper["density"],
        "scaling": hyper["lam"],
        "aggregate": "mean" if hyper["normalize"] else "sum",
        **MERGEKIT,
    }
    case.check(merged(case, "ties", weights=hyper["weights"], **options))
    if {*hyper["weights"]} == {1.0}:
        case.check(merged(case, "ties", **options))


def ties_of_tact(tau: torch.Tensor, density: float, zeros_count: bool) -> torch.Tensor:
    """tact-merge's TIES of (n, size), one entry fewer kept than asked for, with or without its zero counting.

    With it, entries that were trimmed agree with every sign and enter the mean's denominator. The threshold's
    rank is held inside the tensor, as an index of JAX is: of a single entry nothing is above it.
    """
    size = tau.shape[1]
    threshold = tau.abs().sort(1).values[:, min(round((1 - density) * size), size - 1)]
    trimmed = torch.where(tau.abs() > threshold[:, None], tau, 0)
    sign = trimmed.sum(0).sign()
    agree = trimmed * sign >= 0 if zeros_count else trimmed * sign > 0
    return (trimmed * agree).sum(0) / agree.sum(0).clamp(min=1)


@pytest.mark.parametrize("case", goldens("tact_ties_*"))
def test_ties_of_tact_merge_without_its_zero_counting(case: Golden) -> None:
    """Their zeros dilute the mean. Ours is their formula corrected, wherever an entry was diluted."""
    density, expected = case.hyper["top_k"], {}
    theirs, corrected = {}, {}
    for name, base in case.base.items():
        tau, size = deltas(case, name), base.numel()
        theirs[name] = (base + ties_of_tact(tau, density, True).view(base.shape)).float()
        # Their threshold's rank, as the density of our strict one.
        kept = size - 1 - min(round((1 - density) * size), size - 1)
        same = merge_with(
            METHODS["ties"],
            {label: {name: state[name]} for label, state in case.experts.items()},
            {name: base},
            {"density": max((kept + 0.5) / size, 1e-9), "sign_ties": "zero", "threshold": "strict"},
        )
        expected[name] = same[name]
        corrected[name] = (base + ties_of_tact(tau, density, False).view(base.shape)).float()
    case.check(theirs)  # that is what they do
    case.check(expected, corrected)  # and this is ours
    diluted = {name for name in case.base if not torch.equal(theirs[name], corrected[name])}
    assert diluted, "no entry was diluted: the file shows nothing"
    assert case.differences(expected).keys() == diluted


@pytest.mark.parametrize("zeros_count", [True, False])
def test_the_rewriting_of_tact_merge_keeps_nothing_of_a_single_number(zeros_count: bool) -> None:
    assert ties_of_tact(torch.tensor([[0.5], [1.0]]).double(), 0.2, zeros_count).tolist() == [0]


# DARE.


@pytest.fixture
def use_masks(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[State]], None]:
    """Let DARE keep what the given masks, one state for each expert, say instead of drawing."""

    def use(masks: list[State]) -> None:
        def kept(seed: int, name: str, expert: int, start: int, size: int, density: float) -> torch.Tensor:
            return masks[expert][name].flatten()[start : start + size].bool()

        monkeypatch.setattr(dropping, "kept", kept)

    return use


@pytest.mark.parametrize("case", goldens("dare_task_arithmetic_*"))
def test_dare_and_task_arithmetic(case: Golden, use_masks: Callable[[list[State]], None]) -> None:
    use_masks(case.groups("keep"))
    case.check(merged(case, "dare", density=1 - case.hyper["drop"], scaling=case.hyper["lam"]))


@pytest.mark.parametrize("case", goldens("mergekit_dare_linear_*"))
def test_dare_rescaled_to_the_l1_norm(case: Golden, use_masks: Callable[[list[State]], None]) -> None:
    use_masks(case.groups("keep"))
    (scaling,) = set(case.hyper["weights"])
    options = {"density": case.hyper["density"], "scaling": scaling}
    case.check(merged(case, "dare", rescale="l1", **options))
    assert case.differences(merged(case, "dare", **options))


@pytest.mark.parametrize("case", goldens("dare_mergelm_*"))
def test_dare_of_one_expert(case: Golden, use_masks: Callable[[list[State]], None]) -> None:
    options = {"density": 1 - case.hyper["drop"], "scaling": 1.0}
    for task, (label, state) in enumerate(case.experts.items()):
        use_masks([case.group(f"keep{task}")])
        found = merge_with(METHODS["dare"], {label: state}, case.base, options)
        case.check(found, case.group(f"out/task{task}"))


@pytest.mark.parametrize("case", goldens("dare_magnitude_*"))
def test_dare_of_the_smallest_magnitudes(case: Golden) -> None:
    assert case.hyper["scope"] == "per tensor"
    options = {"density": 1 - case.hyper["drop"], "scaling": 1.0, "strategy": "magnitude"}
    for task, (label, state) in enumerate(case.experts.items()):
        found = merge_with(METHODS["dare"], {label: state}, case.base, options)
        case.check(found, case.group(f"out/task{task}"))


# Breadcrumbs, MagMax, PCB.


def breadcrumbs_merged(case: Golden) -> State:
    (scaling,) = set(case.hyper["weights"])
    assert not case.hyper["normalize"]
    options = {"density": case.hyper["density"], "outliers": case.hyper["gamma"]}
    return merged(case, "breadcrumbs", scaling=scaling * case.hyper["lam"], **options)


@pytest.mark.parametrize("case", goldens("mergekit_breadcrumbs_n*", "mergekit_breadcrumbs_g01_*"))
def test_breadcrumbs_but_for_the_empty_slice(case: Golden) -> None:
    """mergekit's slice [a:-0] is empty: where no entry is an outlier it drops the whole task vector."""
    found, base, gamma = breadcrumbs_merged(case), case.base, case.hyper["gamma"]
    emptied = {
        name for name, t in base.items() if int(gamma * t.numel()) == 0 and deltas(case, name).abs().sum() > 0
    }
    assert case.differences(found).keys() == emptied
    expected = case.out
    for name in emptied:
        torch.testing.assert_close(expected[name], base[name], rtol=0, atol=case.tolerance)
        tau = deltas(case, name)
        kept = int(case.hyper["density"] * tau.shape[1])
        largest = tau.abs().topk(kept, 1).indices
        left = torch.zeros_like(tau).scatter(1, largest, tau.gather(1, largest))
        scaling = case.hyper["weights"][0] * case.hyper["lam"]
        expected[name] = (base[name] + scaling * left.sum(0).view(base[name].shape)).float()
    case.check(found, expected)


@pytest.mark.parametrize("case", goldens("mergekit_breadcrumbs_g01_*"))
def test_a_golden_file_shows_the_empty_slice(case: Golden) -> None:
    assert len(case.differences(breadcrumbs_merged(case))) > 10


@pytest.mark.parametrize("case", goldens("magmax_*"))
def test_magmax(case: Golden) -> None:
    case.check(merged(case, "magmax", scaling=case.hyper["lam"]))


@pytest.mark.parametrize("case", goldens("pcb_*"))
def test_pcb(case: Golden) -> None:
    hyper = case.hyper
    options = {"density": hyper["pcb_ratio"], "outliers": hyper["clamp"], "scaling": hyper["lam"]}
    case.check(merged(case, "pcb", **options))
