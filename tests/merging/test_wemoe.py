"""WeMoE: MLPs merged anew for each sample, on a vision transformer of a few hundred parameters."""

from typing import Any

import pytest
import torch
from small_benches import entropies, make_bench, make_vit, run
from small_models import SmallTower, make_tower
from torch.func import functional_call

from neulig_ray.errors import InputError
from neulig_ray.merging import METHODS, weight_ensembling
from neulig_ray.merging.coefficients import task_vectors
from neulig_ray.merging.engine import merge_with
from neulig_ray.merging.weight_ensembling import MergedProduct
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_tower


@pytest.mark.parametrize("routing", ["sample", "batch"])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_wemoe_without_task_vectors_is_the_base(routing: str, layers: int) -> None:
    bench = make_bench(make_vit(0), size=0.0)
    model = run("wemoe", bench, steps=2, routing=routing, router_layers=layers)
    images = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(model(images), bench.tower(images).detach(), rtol=1e-4, atol=1e-5)


def test_wemoe_starts_near_task_arithmetic_and_free_scalars_exactly_there() -> None:
    bench = make_bench(make_vit(0))
    assert bench.base is not None
    merged = merge_with(METHODS["task-arithmetic"], bench.experts, bench.base, {"scaling": 0.3})
    images = torch.randn(5, 3, 8, 8)
    expected = functional_call(bench.tower, merged, (images,)).detach()
    for layers, nearness in ((0, 1e-5), (1, 0.1), (2, 0.1)):
        model = run("wemoe", bench, steps=0, router_layers=layers)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=nearness)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_wemoe_is_the_network_with_each_samples_own_weights(layers: int) -> None:
    """Against one forward pass for each sample, on weights merged by what its routers say."""
    bench = make_bench(make_vit(0), size=0.2)
    model = run("wemoe", bench, steps=5, router_layers=layers, learning_rate=0.1)
    images = torch.randn(4, 3, 8, 8)
    weights: dict[int, torch.Tensor] = {}
    for index, block in enumerate(model.transformer.resblocks):
        block.mlp.router.register_forward_hook(lambda _, __, out, index=index: weights.update({index: out}))
    found = model(images)
    assert bench.base is not None
    vectors = task_vectors(bench)
    for sample, image in enumerate(images):
        state = vectors.state(torch.full((len(vectors.names), 3), 0.3))
        for name in vectors.names:
            if ".mlp." in name:
                w = weights[int(name.split(".")[2])][sample]
                state[name] = vectors.base[name] + (w @ vectors.deltas[name]).view(vectors.base[name].shape)
        alone = functional_call(bench.tower, state, (image[None],))
        torch.testing.assert_close(found[sample : sample + 1], alone, rtol=1e-4, atol=1e-4)
    spread = torch.stack(list(weights.values())).std(1).max()
    assert spread > 1e-3 if layers else spread == 0


def test_only_batch_routing_looks_at_the_rest_of_the_batch() -> None:
    bench = make_bench(make_vit(0), size=0.3)
    images = torch.cat([torch.randn(3, 3, 8, 8), 5 * torch.randn(6, 3, 8, 8)])
    sample, batch = (
        run("wemoe", bench, steps=5, routing=routing, learning_rate=0.1) for routing in ("sample", "batch")
    )
    torch.testing.assert_close(sample(images)[:3], sample(images[:3]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sample(images)[:1], sample(images[:1]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(batch(images)[:3], batch(images[:3]), atol=1e-2)


@pytest.mark.parametrize(("routing", "layers"), [("sample", 0), ("sample", 1), ("sample", 2), ("batch", 2)])
def test_wemoe_lowers_the_entropy_by_its_routers_alone(routing: str, layers: int) -> None:
    bench = make_bench(make_vit(0), size=0.2)
    options: dict[str, Any] = {"routing": routing, "router_layers": layers, "learning_rate": 0.02}
    start, end = (run("wemoe", bench, steps=steps, **options) for steps in (0, 40))
    assert entropies(bench, end) < 0.98 * entropies(bench, start)
    after = end.state_dict()
    changed = {name for name, tensor in start.state_dict().items() if not tensor.equal(after[name])}
    assert changed == {name for name in after if ".router." in name}


def test_wemoe_keeps_the_merged_model_and_an_mlp_and_a_router_column_for_each_task() -> None:
    bench = make_bench(make_vit(0))
    model = run("wemoe", bench, steps=0)
    assert bench.base is not None
    base = sum(tensor.numel() for tensor in bench.base.values())
    mlps = sum(tensor.numel() for name, tensor in bench.base.items() if ".mlp." in name)
    routers = 2 * (16 * 16 + 16 + 16 * 3 + 3)
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == base + 3 * mlps + routers
    assert not model.training


def test_wemoe_is_not_defined_for_resnets() -> None:
    method = METHODS["wemoe"]
    reason = method.unsupported_reason(build_tower(ARCHS["tiny-rn"]))
    assert reason is not None
    assert "not defined for CNNs" in reason
    assert "ModifiedResNet" in reason
    assert method.unsupported_reason(build_tower(ARCHS["tiny-vit"])) is None
    assert METHODS["adamerging"].unsupported_reason(SmallTower()) is None
    with pytest.raises(InputError, match="not defined for CNNs"):
        run("wemoe", make_bench(make_tower(0)))


@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])  # one sample at a time, two, all
def test_merged_product(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_ensembling, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    hidden, scales, matrices = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in [(5, 3, 4), (5, 3), (3, 4, 5)]
    )
    hidden.requires_grad_()
    scales.requires_grad_()
    expected = torch.einsum("bni,bk,kio->bno", hidden, scales, matrices)
    torch.testing.assert_close(MergedProduct.apply(hidden, scales, matrices), expected)
    assert torch.autograd.gradcheck(lambda h, s: MergedProduct.apply(h, s, matrices), (hidden, scales))
