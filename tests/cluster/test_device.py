"""Everything after embedding on a GPU that is only pretended: the same results; and who is given a GPU."""

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evaluations import gated_rows, merge_rows
from pretended import GPU, Pretended, pretended_gpu
from small_benches import PixelImages, make_bench, make_vit, run
from small_models import ARCH, DIM, KEYS, SmallTower, make_data, make_images, make_states, make_tower
from torch import nn

from neulig_ray.cluster import device as placement
from neulig_ray.evaluation.context import EvaluationContext
from neulig_ray.evaluation.images import TaskImages
from neulig_ray.evaluation.method_models import Tuning
from neulig_ray.experiment.config import GRANULARITIES, Experiment
from neulig_ray.experiment.config import Cluster as Settings
from neulig_ray.ligand.portland import Portland
from neulig_ray.merging import METHODS, Scaling, tuned
from neulig_ray.merging.declare.masked import MaskedMethod
from neulig_ray.merging.declare.method import MergingMethod
from neulig_ray.merging.declare.streamed import StreamedMethod
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.stages.read_inputs import on_device

STATES = make_states()
STACK = ExpertStack.from_states(STATES)
BASE = make_tower(8).state_dict()
VAL, TEST = (make_data(split, STATES) for split in ("val", "test"))
IMAGES, UNLABELLED = make_images("test"), make_images("train")


def test_the_pretended_gpu_refuses_what_a_gpu_refuses() -> None:
    with pretended_gpu():
        there, here = torch.ones(3).to(GPU), torch.ones(3)
        assert there.device == torch.zeros(2, device=GPU).device == GPU
        assert (there * 2 + there.sum()).cpu().tolist() == [5.0, 5.0, 5.0]
        assert float((there * here.to(GPU)).sum() * torch.tensor(2.0)) == 6.0
        for refused in (lambda: there + here, lambda: torch.stack([there, here]), lambda: there.numpy()):
            with pytest.raises(RuntimeError, match=r"GPU and on the CPU|not supported"):
                refused()


def same_rows(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert found
    for row, other in zip(found, expected, strict=True):
        numbers = {name: value for name, value in other.items() if isinstance(value, float)}
        assert {name: row[name] for name in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-6)
        assert {**row, **numbers} == other


@pytest.mark.parametrize("mixed_on", ["gpu", "cpu"])
def test_a_ligands_rows_are_those_of_the_cpu(mixed_on: str) -> None:
    torch.manual_seed(4)
    portland = Portland([KEYS], torch.randn(1, 3, 18), torch.zeros(1, 3))

    def rows(stack: ExpertStack, tower: nn.Module) -> list[dict[str, Any]]:
        known = {"arch": ARCH, "val": VAL, "test": TEST, "images": IMAGES, "granularities": GRANULARITIES}
        given = {"sample_images": 3, "batch_size": 32, "order_seeds": (0,)}
        return gated_rows(portland, 0, stack=stack, tower=tower, **known, **given)

    expected = rows(STACK, SmallTower())
    with pretended_gpu():
        found = rows(STACK.to(GPU) if mixed_on == "gpu" else STACK, SmallTower().to(GPU))
    same_rows(found, expected)


def _towards(
    tensors: torch.Tensor, *, base: torch.Tensor, scaling: Scaling = tuned(0.2, (0.0, 0.2))
) -> torch.Tensor:
    return base + scaling * (tensors - base).sum(0)


def _signs(tensors: torch.Tensor, *, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (tensors - base).sum(0), (tensors - base).abs() > 0.1


STREAMED = StreamedMethod("towards", _towards, needs=("base",), elementwise=True)
MASKED = MaskedMethod("signs", _signs, needs=("base", "task at test"))


@pytest.mark.parametrize("method", [STREAMED, MASKED], ids=lambda m: m.name)
def test_merges_choices_on_val_and_new_statistics_are_those_of_the_cpu(method: MergingMethod) -> None:
    def rows(tower: nn.Module) -> list[dict[str, Any]]:
        val = EvaluationContext(KEYS, STACK, tower, ARCH, VAL, make_images("val"))
        tuning = Tuning({"scaling": (0.0, 0.2)}, val) if method is STREAMED else None
        return merge_rows(
            method, KEYS, stack=STACK, tower=tower, arch=ARCH, test=TEST, images=IMAGES,
            base=BASE, unlabelled=UNLABELLED, tuning=tuning,
        ).rows  # fmt: skip

    expected = rows(SmallTower())
    assert {row["buffers"] for row in expected} == {"average", "re-estimated"}
    with pretended_gpu():
        same_rows(rows(SmallTower().to(GPU)), expected)


def on_gpu(bench: MergeInputs) -> MergeInputs:
    """The tower on the GPU; experts, heads and base stay on the CPU, as a job reads them."""
    return replace(bench, tower=copy.deepcopy(bench.tower).to(GPU))


@pytest.mark.parametrize("name", ["adamerging", "adamerging-plus-plus", "regmean-plus-plus", "wemoe"])
def test_methods_that_look_at_images_compute_on_the_towers_device(name: str) -> None:
    bench = make_bench(make_vit(1))
    options = {"examples": 6} if name == "regmean-plus-plus" else {"steps": 2, "batch_size": 4}
    pixels = torch.cat([images.pixels(torch.arange(2)) for images in bench.images.values()])

    def seen(found: Any, images: torch.Tensor, tower: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            if isinstance(found, nn.Module):
                return found(images).cpu()
            model = copy.deepcopy(tower)
            model.load_state_dict(found)
            return model(images).cpu()

    expected = seen(run(name, bench, **options), pixels, bench.tower)
    with pretended_gpu():
        moved = on_gpu(bench)
        found = run(name, moved, **options)
        if name != "regmean-plus-plus":  # regressions are solved on the CPU
            state = found.state_dict() if isinstance(found, nn.Module) else found
            assert all(tensor.device == GPU for tensor in state.values())
        result = seen(found, pixels.to(GPU), moved.tower)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [("regmean", {}), ("fisher", {"form": "exact"}), ("fisher", {"form": "batch"})],
    ids=["regmean", "fisher-exact", "fisher-batch"],
)
def test_statistics_are_measured_on_the_towers_device(name: str, options: dict[str, Any]) -> None:
    measure, tower = METHODS[name].measure, make_vit(2)
    assert measure is not None
    torch.manual_seed(0)
    images, head = PixelImages(torch.randn(3, 3, 8, 8)), torch.randn(4, DIM)
    expected = measure(tower, images, head, examples=3, **options)
    with pretended_gpu():
        found = measure(copy.deepcopy(tower).to(GPU), images, head, examples=3, **options)
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert not isinstance(tensor, Pretended)
        torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=1e-5)


def test_images_are_prepared_on_the_device() -> None:
    images, rows = make_images("val")["a"], torch.tensor([3, 0])
    with pretended_gpu():
        found = TaskImages(images, ARCH, GPU).pixels(rows)
        assert found.device == GPU
        assert torch.equal(found.cpu(), TaskImages(images, ARCH).pixels(rows))


# What Ray gave ---------------------------------------------------------------------------------------------


@pytest.fixture
def ray_gives(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def gives(gpus: float, *, seen: bool = True, free: int = 0, total: int = 0) -> None:
        context = SimpleNamespace(get_assigned_resources=lambda: {"CPU": 1.0, "GPU": gpus})
        ray = SimpleNamespace(
            is_initialized=lambda: True,
            get_gpu_ids=lambda: ["0"] if gpus else [],
            get_runtime_context=lambda: context,
        )
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, total))

    return gives


@pytest.mark.parametrize(
    ("gpus", "seen", "device"), [(1, True, "cuda"), (0.25, True, "cuda"), (0, True, "cpu"), (1, False, "cpu")]
)
def test_a_gpu_is_used_where_ray_gave_one(
    gpus: float, seen: bool, device: str, ray_gives: Callable[..., None]
) -> None:
    ray_gives(gpus, seen=seen)
    assert placement.device().type == device


def test_without_ray_it_is_the_cpu() -> None:
    assert placement.device().type == "cpu"


@pytest.mark.parametrize(
    ("gpus", "free", "total", "fits"),
    [
        (1, 2.0, 9.0, True),
        (1, 1.9, 9.0, False),  # too little is left by others
        (0.25, 8.0, 8.0, True),
        (0.25, 7.9, 7.9, False),  # three more will want as much
    ],
)
def test_experts_are_mixed_on_the_gpu_where_half_of_the_jobs_share_holds_them(
    gpus: float, free: float, total: float, fits: bool, ray_gives: Callable[..., None], monkeypatch: Any
) -> None:
    size = 4 * STACK.size * len(KEYS)
    ray_gives(gpus, free=int(free * size), total=int(total * size))
    moved: list[torch.device] = []
    monkeypatch.setattr(ExpertStack, "to", lambda stack, device: moved.append(device) or stack)
    on_device(STACK)
    assert [device.type for device in moved] == ["cuda"] * fits


def test_experts_stay_where_there_is_no_gpu() -> None:
    assert on_device(STACK) is STACK


def test_what_looks_at_stored_embeddings_alone_takes_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    e = Experiment(
        name="x", archs=("tiny-vit",), tasks=("digits", "signs"), n=(2,), alignment=("sup",),
        methods=("zeroshot", "expert", "ensemble-vote", "hard-routing", "average", "adamerging", "ligand"),
    )  # fmt: skip
    on_cpu = {(x.common["method"], not x.job.needs.gpu) for x in make_plan(e).evaluations}
    stored = {"zeroshot", "expert", "ensemble-vote", "hard-routing"}
    assert on_cpu == {(name, name in stored) for name in e.methods}


def test_a_plan_shares_a_gpu_among_evaluations_only() -> None:
    assert Settings(gpus_per_worker=1.0).evaluation_gpus == 1.0
    assert Settings(gpus_per_worker=1.0, gpus_per_evaluation=0.25).evaluation_gpus == 0.25
    assert Settings(gpus_per_evaluation=0.0, gpus_per_worker=1.0).evaluation_gpus == 0.0
