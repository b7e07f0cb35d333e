"""How a step is computed: the same expert, up to rounding, however its batches are cut up."""

import threading
from typing import Any

import pytest
import torch
from test_training import equal, tune
from torch import nn

from neulig_ray.errors import InputError
from neulig_ray.models.archs import ARCHS, FinetuneRecipe
from neulig_ray.models.clip import build_tower
from neulig_ray.training.execution import Execution, ahead


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def largest_difference(one: Any, other: Any) -> float:
    """Without the biases of keys: attention does not depend on them, and Adam scales their rounding up."""
    names = [name for name in one if not name.endswith("in_proj_bias")]
    return max(float((one[k].double() - other[k].double()).abs().max()) for k in names)


def states(name: str, **recipe: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The expert by plain steps, and by steps of the given recipe."""
    plain, other = tune(name, epochs=1)[1], tune(name, epochs=1, **recipe)[1]
    return dict(plain.state_dict()), dict(other.state_dict())


@pytest.mark.parametrize("micro_batch", [1, 5, 16, 99])
def test_micro_batches_add_up_to_the_batch(micro_batch: int) -> None:
    plain, cut = states("micro", micro_batch=micro_batch)
    assert largest_difference(plain, cut) < 1e-5
    assert equal(plain, cut) == (micro_batch >= 16)


def test_checkpointed_activations_give_the_same_gradients() -> None:
    plain, again = states("tiny-vit", gradient_checkpointing=True)
    assert largest_difference(plain, again) < 1e-6
    with pytest.raises(InputError, match="a Linear has none; leave it out"):
        Execution(FinetuneRecipe(gradient_checkpointing=True), torch.device("cpu")).prepare(nn.Linear(1, 1))


def test_channels_last_is_a_layout_and_no_other_network() -> None:
    plain, laid_out = states("tiny-rn", channels_last=True)
    assert 0 < largest_difference(plain, laid_out) < 0.05  # BatchNorm and ReLU amplify the rounding


def test_frozen_batchnorm_keeps_the_origins_statistics_and_makes_micro_batches_exact() -> None:
    before = build_tower(ARCHS["tiny-rn"]).state_dict()
    frozen = tune("tiny-rn", epochs=1, batchnorm="frozen")[1]
    cut = tune("tiny-rn", epochs=1, batchnorm="frozen", micro_batch=4)[1]
    for name, tensor in frozen.state_dict().items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(tensor, before[name])
    moved = [n for n, t in frozen.state_dict().items() if not torch.equal(t, before[n])]
    assert moved
    assert largest_difference(frozen.state_dict(), cut.state_dict()) < 1e-4
    trained = tune("tiny-rn", epochs=1)[1].state_dict()
    assert not torch.equal(trained["bn1.running_mean"], before["bn1.running_mean"])


def test_bfloat16_computes_in_half_precision_and_keeps_float32_weights() -> None:
    plain, half = states("micro", precision="bfloat16")
    assert all(t.dtype == torch.float32 for t in half.values() if t.is_floating_point())
    assert 1e-6 < largest_difference(plain, half) < 0.05


def test_batchnorm_cannot_be_synchronised_on_cpus() -> None:
    recipe = FinetuneRecipe(batchnorm="synchronised")
    with pytest.raises(InputError, match="works on GPUs only; use 'frozen' here, or one worker"):
        Execution(recipe, torch.device("cpu"), world_size=2).prepare(nn.BatchNorm1d(2))
    Execution(recipe, torch.device("cpu"), world_size=1).prepare(nn.BatchNorm1d(2))


class Exchanging(nn.Linear):
    """Counts backward passes in which gradients would be exchanged."""

    exchanges = 0
    silent = False

    def no_sync(self) -> Any:
        outer = self

        class Silence:
            def __enter__(self) -> None:
                outer.silent = True

            def __exit__(self, *_: object) -> None:
                outer.silent = False

        return Silence()


def test_workers_exchange_gradients_once_a_step() -> None:
    module = Exchanging(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    seen: list[tuple[slice, bool]] = []

    def loss(rows: slice) -> torch.Tensor:
        seen.append((rows, module.silent))
        return module(torch.ones(rows.stop - rows.start, 2)).sum()

    execution = Execution(FinetuneRecipe(micro_batch=3), torch.device("cpu"))
    with torch.no_grad():
        expected = float(0.5 * module(torch.ones(7, 2)).sum())
    total = execution.backward(module, optimizer, loss, 7, 0.5)
    assert [silent for _, silent in seen] == [True, True, False]
    assert [rows.stop - rows.start for rows, _ in seen] == [2, 2, 3]
    assert torch.allclose(module.bias.grad, torch.tensor([3.5]))
    assert total == pytest.approx(expected)


def test_reading_ahead_keeps_the_order_and_looks_a_few_items_ahead() -> None:
    asked: list[int] = []
    here = threading.get_ident()

    def read(item: int) -> int:
        assert threading.get_ident() != here
        asked.append(item)
        return -item

    run = ahead(read, range(6), depth=2)
    assert next(run) == 0
    assert max(asked, default=0) <= 2
    assert list(run) == [-1, -2, -3, -4, -5]
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda item: 1 // item, [1, 0, 1]))
