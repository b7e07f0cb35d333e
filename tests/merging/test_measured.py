"""What is measured on experts, Gram matrices and Fisher information, and what is merged from it."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_benches import PixelImages
from small_models import DIM, SmallTower, make_tower
from torch import nn
from torch.nn import functional as F

from neulig_ray.errors import InputError
from neulig_ray.merging import METHODS, fisher_information
from neulig_ray.merging.blocks import blocks_in_order
from neulig_ray.merging.engine import merge_with
from neulig_ray.merging.fisher_information import batch_fisher, exact_fisher
from neulig_ray.merging.grams import measure_grams
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.regression import regress
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_tower

State = dict[str, torch.Tensor]
EMBEDDINGS = {"positional_embedding", "class_embedding", "attnpool.positional_embedding"}


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Within a fraction of the largest number."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def tiny(arch: str, seed: int = 0) -> nn.Module:
    """A tower with parameters and BatchNorm statistics that are nowhere constant."""
    tower = build_tower(ARCHS[arch])
    with torch.no_grad():
        for name, tensor in tower.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.05 * gaussian(*tensor.shape, seed=seed + len(name)).abs())
    return tower


@pytest.fixture(scope="module", params=["tiny-vit", "tiny-rn"])
def tower(request: pytest.FixtureRequest) -> nn.Module:
    return tiny(request.param)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return gaussian(6, 3, 32, 32)


def gram(x: torch.Tensor) -> torch.Tensor:
    rows = x.flatten(0, -2)
    return rows.T @ rows / len(rows)


# Gram matrices.


def test_every_weight_of_a_tower_is_measured(tower: nn.Module, images: torch.Tensor) -> None:
    measured = {name.removesuffix(".T") for name in measure_grams(tower, [images])}
    weights = {name for name, p in tower.named_parameters() if p.dim() > 1}
    assert measured == weights - EMBEDDINGS


def inputs_of(tower: nn.Module, names: Sequence[str], images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What modules are called with, by hooks on them."""
    seen = {}
    handles = [
        tower.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen.update({name: args[0].detach().clone()})
        )
        for name in names
    ]
    with torch.no_grad():
        tower(images)
    for handle in handles:
        handle.remove()
    return seen


def with_identity(module: nn.Module, weight: str, bias: str | None = None) -> nn.Module:
    """A copy whose square `weight` passes its inputs on."""
    found = copy.deepcopy(module)
    with torch.no_grad():
        found.get_parameter(weight).copy_(torch.eye(len(found.get_parameter(weight))))
        if bias is not None:
            found.get_parameter(bias).zero_()
    return found


def test_grams_of_a_vision_transformer(images: torch.Tensor) -> None:
    tower = tiny("tiny-vit")
    measured = measure_grams(tower, images.split(4))
    for block in ("transformer.resblocks.0", "transformer.resblocks.3"):
        modules = [f"{block}.{name}" for name in ("attn", "mlp.c_fc", "mlp.c_proj")]
        seen = inputs_of(tower, modules, images)
        for name in modules[1:]:
            close(measured[f"{name}.weight"], gram(seen[name]))
        normed = seen[f"{block}.attn"]
        close(measured[f"{block}.attn.in_proj_weight"], gram(normed))
        passing = with_identity(tower.get_submodule(f"{block}.attn"), "out_proj.weight", "out_proj.bias")
        with torch.no_grad():
            mixed = passing(normed, normed, normed, need_weights=False)[0]
        close(measured[f"{block}.attn.out_proj.weight"], gram(mixed))
    with torch.no_grad():
        pooled = with_identity(tower, "proj")(images)
    close(measured["proj.T"], gram(pooled))
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, 192)
    close(measured["conv1.weight"], gram(patches))


def test_grams_of_a_residual_networks_attention_pool(images: torch.Tensor) -> None:
    tower = tiny("tiny-rn")
    measured = measure_grams(tower, images.split(4))
    pool = tower.attnpool
    x = inputs_of(tower, ["attnpool"], images)["attnpool"].flatten(2).permute(2, 0, 1)
    tokens = torch.cat([x.mean(0, keepdim=True), x]) + pool.positional_embedding[:, None]
    width = tokens.shape[-1]
    attention = nn.MultiheadAttention(width, pool.num_heads)
    projections = [pool.q_proj, pool.k_proj, pool.v_proj]
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        attention.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        attention.out_proj.weight.copy_(torch.eye(width))
        mixed = attention(tokens, tokens, tokens)[0]
        for projection in "qkv":
            close(measured[f"attnpool.{projection}_proj.weight"], gram(tokens.detach()))
    close(measured["attnpool.c_proj.weight"], gram(mixed))


@settings(max_examples=30, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
)
def test_a_convolutions_gram_gives_the_energy_of_its_output(
    kernel: tuple[int, int], stride: int, padding: int, dilation: int, groups: int
) -> None:
    """mean over positions and images of |y|^2 = trace(W G W^T), for each group."""
    torch.manual_seed(0)
    layer = nn.Conv2d(
        4, 6, kernel, stride, padding=padding, dilation=dilation, groups=groups, bias=False
    ).requires_grad_(False)
    x = gaussian(3, 4, 9, 8)
    grams = measure_grams(layer, [x[:2], x[2:]])["weight"]
    y = layer(x)
    rows = layer.weight.flatten(1).view(groups, 6 // groups, -1)
    assert grams.shape[-1] == rows.shape[-1]
    energy = (rows @ grams.view(groups, rows.shape[-1], -1)).mul(rows).sum()
    torch.testing.assert_close(energy, y.square().sum() / (3 * y.shape[2:].numel()), rtol=1e-4, atol=1e-5)


def test_attention_between_different_inputs_has_a_gram_for_each(images: torch.Tensor) -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attn(x[:, :3], x, 2 * x, need_weights=False)[0]

    x = gaussian(5, 3, 8)
    found = measure_grams(Cross().eval(), [x])["attn.in_proj_weight"]
    assert found.shape == (3, 8, 8)
    close(found, torch.stack([gram(x), gram(x), 4 * gram(x)]))


def test_an_attention_that_cannot_be_followed_is_refused() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, add_bias_kv=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attn(x, x, x, need_weights=False)[0]

    with pytest.raises(InputError, match=r"attention before 'attn.out_proj.weight' does more"):
        measure_grams(Masked().eval(), [gaussian(4, 2, 8)])


def test_measuring_leaves_the_tower_and_its_embeddings_as_they_are(
    tower: nn.Module, images: torch.Tensor
) -> None:
    before, expected = copy.deepcopy(tower.state_dict()), tower(images).detach()
    measure_grams(tower, [images])
    torch.testing.assert_close(tower.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(tower(images).detach(), expected)


def test_a_part_is_measured_as_the_whole_is(tower: nn.Module, images: torch.Tensor) -> None:
    whole = measure_grams(tower, [images])
    middle = list(whole)[5:7]
    part = measure_grams(tower, images.split(2), only=middle)
    assert list(part) == middle
    for name in middle:
        close(part[name], whole[name])


def test_no_image_is_refused() -> None:
    with pytest.raises(InputError, match="at least one image"):
        measure_grams(nn.Linear(2, 2), [])
    with pytest.raises(InputError, match="at least one"):
        exact_fisher(nn.Linear(2, 2), [], lambda z: z)


# RegMean.


def objective(w: torch.Tensor, weights: Sequence[torch.Tensor], grams: Sequence[torch.Tensor]) -> float:
    """sum_t mean over rows of |x W^T - x W_t^T|^2."""
    terms = (((w - v).double() @ g.double()) * (w - v).double() for v, g in zip(weights, grams, strict=True))
    return float(sum(term.sum() for term in terms))


def test_the_regression_minimises_its_objective() -> None:
    weights = [gaussian(5, 7, seed=i) for i in range(3)]
    grams = [gram(gaussian(40, 7, seed=10 + i) * (i + 1)) for i in range(3)]
    found = regress(weights, grams, 1.0)
    least = objective(found, weights, grams)
    assert least < 0.8 * objective(sum(weights) / 3, weights, grams)
    for seed in range(20):
        assert least < objective(found + 0.01 * gaussian(5, 7, seed=seed), weights, grams)


def test_a_transposed_and_a_grouped_map_are_the_same_regression() -> None:
    weights = [gaussian(6, 4, seed=i) for i in range(2)]
    grams = [gram(gaussian(30, 4, seed=10 + i)) for i in range(2)]
    expected = regress(weights, grams, 0.9)
    transposed = regress([w.T.contiguous() for w in weights], grams, 0.9, transposed=True)
    torch.testing.assert_close(transposed.T, expected)
    halves = [torch.stack([g, 2 * g.flip(0, 1)]) for g in grams]
    grouped = regress([w.view(6, 2, 2, 1) for w in weights], halves, 0.9)
    assert grouped.shape == (6, 2, 2, 1)
    torch.testing.assert_close(grouped.view(6, 4)[:3], expected[:3])
    last = regress([w[3:] for w in weights], [h[1] for h in halves], 0.9)
    torch.testing.assert_close(grouped.view(6, 4)[3:], last)


def test_without_what_is_off_the_diagonal_it_is_a_weighted_mean() -> None:
    weights = [gaussian(3, 4, seed=i) for i in range(2)]
    grams = [gram(gaussian(30, 4, seed=10 + i)) for i in range(2)]
    shares = [g.diagonal() for g in grams]
    expected = sum(w * d for w, d in zip(weights, shares, strict=True)) / sum(shares)
    torch.testing.assert_close(regress(weights, grams, 0.0), expected)


@pytest.mark.parametrize("offdiagonal", [0.9, 1.0])
def test_inputs_that_never_come_leave_the_average(offdiagonal: float) -> None:
    weights = [gaussian(3, 6, seed=i) for i in range(2)]
    dead = torch.tensor([1.0, 1, 0, 1, 0, 1])
    grams = [gram(gaussian(50, 6, seed=10 + i) * dead) for i in range(2)]
    found = regress(weights, grams, offdiagonal)
    torch.testing.assert_close(found[:, dead == 0], (sum(weights) / 2)[:, dead == 0])
    assert regress(weights, [torch.zeros(6, 6)] * 2, offdiagonal).equal((sum(weights) / 2).float())


def regmean(towers: Sequence[nn.Module], images: Sequence[torch.Tensor], **options: Any) -> State:
    experts = {str(i): tower.state_dict() for i, tower in enumerate(towers)}
    measured = [measure_grams(tower, [x]) for tower, x in zip(towers, images, strict=True)]
    return merge_with(METHODS["regmean"], experts, None, options, statistics=measured)


def test_regmean_of_identical_experts_is_the_expert(tower: nn.Module, images: torch.Tensor) -> None:
    state = tower.state_dict()
    found = regmean([tower, tower], [images[:2], images[2:]])
    torch.testing.assert_close(found, state, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", ["tiny-vit", "tiny-rn"])
def test_regmean_regresses_all_weights_and_averages_the_rest(arch: str, images: torch.Tensor) -> None:
    towers = [tiny(arch, seed) for seed in (0, 50)]
    found = regmean(towers, [images[:3], images[3:]])
    average = merge_with(METHODS["average"], {str(i): t.state_dict() for i, t in enumerate(towers)})
    differ = {name for name in found if not torch.allclose(found[name], average[name], atol=1e-6)}
    assert differ == {n for n, p in towers[0].named_parameters() if p.dim() > 1} - EMBEDDINGS


def test_regmean_needs_its_statistics_of_every_expert() -> None:
    layer = nn.Linear(3, 2)
    experts = {"a": layer.state_dict(), "b": layer.state_dict()}
    measured = measure_grams(layer, [gaussian(4, 3)])
    with pytest.raises(InputError, match="give its statistics"):
        merge_with(METHODS["regmean"], experts)
    with pytest.raises(InputError, match="only some experts' statistics have 'other'"):
        merge_with(METHODS["regmean"], experts, statistics=[measured, {"other": torch.zeros(1)}])


# RegMean++.


def bench_of(towers: Sequence[nn.Module], images: Sequence[torch.Tensor], **more: Any) -> MergeInputs:
    labels = [chr(ord("a") + i) for i in range(len(towers))]
    return MergeInputs(
        tower=copy.deepcopy(towers[0]),
        experts={label: tower.state_dict() for label, tower in zip(labels, towers, strict=True)},
        base=None,
        images={label: PixelImages(x) for label, x in zip(labels, images, strict=True)},
        heads={},
        score=more.pop("score", lambda state: {}),
    )


def test_blocks_come_in_the_order_of_the_computation(images: torch.Tensor) -> None:
    vit = [{name.split(".ln_1")[0] for name in block} for block in blocks_in_order(tiny("tiny-vit"), images)]
    starts = [next(iter(sorted(block))) for block in vit]
    assert [s for s in starts if s.startswith("transformer")] == [
        f"transformer.resblocks.{i}" for i in range(4)
    ]
    assert starts[0] == "conv1.weight"
    assert starts[-1] == "proj"
    tower = tiny("tiny-rn")
    blocks = blocks_in_order(tower, images)
    assert [block[0] for block in blocks] == [
        "conv1.weight", "bn1.weight", "conv2.weight", "bn2.weight", "conv3.weight", "bn3.weight",
        "layer1.0.conv1.weight", "layer2.0.conv1.weight", "layer3.0.conv1.weight", "layer4.0.conv1.weight",
        "attnpool.positional_embedding",
    ]  # fmt: skip
    assert sorted(name for block in blocks for name in block) == sorted(tower.state_dict())
    assert "layer1.0.bn2.running_var" in blocks[6]


def plus_plus(towers: Sequence[nn.Module], images: Sequence[torch.Tensor], **options: Any) -> State:
    return METHODS["regmean-plus-plus"].function(bench_of(towers, images), **options)


def test_regmean_plus_plus_regresses_on_inputs_from_the_merged_layers() -> None:
    """Two linear layers, by hand."""
    towers = []
    for seed in range(2):
        torch.manual_seed(seed)
        towers.append(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).eval())
    images = [gaussian(40, 5, seed=10 + i) for i in range(2)]
    found = plus_plus(towers, images, offdiagonal=0.8)
    first = regress([t[0].weight.detach() for t in towers], [gram(x) for x in images], 0.8)
    bias = (towers[0][0].bias + towers[1][0].bias).detach() / 2
    hidden = [(x @ first.T + bias).relu() for x in images]
    second = regress([t[2].weight.detach() for t in towers], [gram(h) for h in hidden], 0.8)
    close(found["0.weight"], first)
    close(found["2.weight"], second)
    plain = regmean(towers, images, offdiagonal=0.8)
    close(found["0.weight"], plain["0.weight"])
    assert not torch.allclose(found["2.weight"], plain["2.weight"], atol=1e-4)


@pytest.mark.parametrize("arch", ["tiny-vit", "tiny-rn"])
def test_regmean_plus_plus_on_towers(arch: str, images: torch.Tensor) -> None:
    towers = [tiny(arch, seed) for seed in (0, 50)]
    halves = [images[:3], images[3:]]
    bench = bench_of(towers, halves)
    before = copy.deepcopy(bench.tower.state_dict())
    found = METHODS["regmean-plus-plus"].function(bench)
    torch.testing.assert_close(bench.tower.state_dict(), before, rtol=0, atol=0)
    plain = regmean(towers, halves)
    close(found["conv1.weight"], plain["conv1.weight"])
    weights = {n for n, p in towers[0].named_parameters() if p.dim() > 1} - EMBEDDINGS - {"conv1.weight"}
    differ = {name for name in found if not torch.allclose(found[name], plain[name], atol=1e-6)}
    assert differ == weights
    same = plus_plus([towers[0], towers[0]], halves)
    torch.testing.assert_close(same, towers[0].state_dict(), rtol=1e-5, atol=1e-6)


def test_regmean_plus_plus_needs_images_of_every_task() -> None:
    towers = [nn.Linear(2, 2)] * 2
    with pytest.raises(InputError, match="no train image of 'b'"):
        plus_plus(towers, [gaussian(3, 2), gaussian(0, 2)])


# Fisher information and merging.


HEAD = gaussian(4, DIM, seed=5) * 3


def readout(embeddings: torch.Tensor) -> torch.Tensor:
    return F.normalize(embeddings, dim=-1) @ HEAD.T


def looped(tower: nn.Module, images: torch.Tensor, readout: Any) -> State:
    """A gradient for each image and label, in float64."""
    tower = copy.deepcopy(tower).double()
    names, parameters = zip(*tower.named_parameters(), strict=True)
    total = {name: torch.zeros_like(p) for name, p in zip(names, parameters, strict=True)}
    for image in images.double():
        log_p = readout(tower(image[None])).log_softmax(-1)[0]
        for value in log_p:
            gradients = torch.autograd.grad(value, parameters, retain_graph=True)
            for name, gradient in zip(names, gradients, strict=True):
                total[name] += value.exp().detach() * gradient**2 / len(images)
    return {name: sums.float() for name, sums in total.items()}


def test_exact_fisher_is_the_double_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    tower, images = make_tower(0), gaussian(5, 3, 8, 8)
    expected = looped(tower, images, lambda z: F.normalize(z, dim=-1) @ HEAD.double().T)
    found = exact_fisher(tower, images.split(2), readout)
    assert found.keys() == dict(tower.named_parameters()).keys()
    for name, tensor in expected.items():
        close(found[name], tensor)
    size = 4 * sum(p.numel() for p in tower.parameters())
    for budget in (1, 3 * size, 9 * size):  # one label at a time, three labels, two images
        monkeypatch.setattr(fisher_information, "_BUDGET", budget)
        for name, tensor in exact_fisher(tower, images.split(3), readout).items():
            close(tensor, found[name])


def test_exact_fisher_of_a_transformer_is_the_double_loop() -> None:
    tower, images, head = tiny("tiny-vit"), gaussian(2, 3, 32, 32), gaussian(3, 128, seed=2) * 3
    expected = looped(tower, images, lambda z: F.normalize(z, dim=-1) @ head.double().T)
    found = exact_fisher(tower, [images], lambda z: F.normalize(z, dim=-1) @ head.T)
    for name, tensor in expected.items():
        close(found[name], tensor, 1e-3)


def test_batch_fisher_of_single_labels_and_images_differs_from_the_exact_one() -> None:
    """Squares of sums over the labels: what the batch form keeps, and the exact form has not."""
    tower, images = make_tower(0), gaussian(4, 3, 8, 8)
    found = batch_fisher(tower, images.split(1), readout)
    log_p = readout(tower(images[:1])).log_softmax(-1)
    ((log_p / 2).exp().detach() * log_p).sum().backward()
    one = batch_fisher(tower, [images[:1]], readout)
    close(one["conv.weight"], tower.conv.weight.grad.square())
    assert not torch.allclose(found["conv.weight"], exact_fisher(tower, [images], readout)["conv.weight"])
    assert not torch.allclose(found["conv.weight"], batch_fisher(tower, [images], readout)["conv.weight"])


def test_the_methods_measure_what_their_options_say() -> None:
    tower, images = make_tower(1), PixelImages(gaussian(9, 3, 8, 8))
    fisher = METHODS["fisher"]
    assert fisher.measure is not None
    found = fisher.measure(tower, images, HEAD, examples=9)
    for name, tensor in exact_fisher(tower, [images.all], readout).items():
        close(found[name], tensor)
    fewer = fisher.measure(tower, images, HEAD, examples=4)
    again = fisher.measure(tower, images, HEAD, examples=4)
    other = fisher.measure(tower, images, HEAD, 1, examples=4)
    assert torch.equal(fewer["proj.bias"], again["proj.bias"])
    assert not torch.allclose(fewer["proj.bias"], found["proj.bias"])
    assert not torch.allclose(fewer["proj.bias"], other["proj.bias"])
    batch = fisher.measure(tower, images, HEAD, form="batch", batch_size=3)
    assert not torch.allclose(batch["proj.bias"], found["proj.bias"])
    regmean = METHODS["regmean"]
    assert regmean.measure is not None
    grams = regmean.measure(tower, images, HEAD, examples=9)
    for name, tensor in measure_grams(tower, [images.all]).items():
        close(grams[name], tensor)


def fisher(values: Sequence[State], information: Sequence[State], **options: Any) -> State:
    experts = {str(i): state for i, state in enumerate(values)}
    return merge_with(METHODS["fisher"], experts, None, options, statistics=list(information))


def test_fisher_weighs_each_number_by_its_normalised_information() -> None:
    values = [{"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([3.0, 3.0])}]
    information = [{"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([0.8, 0.6])}]
    expected = torch.tensor([(0.6 + 3 * 0.8) / 1.4, (0.8 + 3 * 0.6) / 1.4])
    torch.testing.assert_close(fisher(values, information)["w"], expected)
    plain = torch.tensor([(3 + 3 * 0.8) / 3.8, (4 + 3 * 0.6) / 4.6])
    torch.testing.assert_close(fisher(values, information, normalize=False)["w"], plain)
    weighted = fisher(values, information, weights=(1, 3))["w"]
    torch.testing.assert_close(weighted, torch.tensor([(0.6 + 9 * 0.8) / 3.0, (0.8 + 9 * 0.6) / 2.6]))


def test_fishers_norm_goes_over_the_model_without_its_scalars() -> None:
    values = [
        {"w": torch.ones(2), "scale": torch.tensor(1.0)},
        {"w": torch.zeros(2), "scale": torch.tensor(2.0)},
    ]
    information = [
        {"w": torch.ones(2), "scale": torch.tensor(1e6)},
        {"w": torch.ones(2), "scale": torch.tensor(1e6)},
    ]
    torch.testing.assert_close(fisher(values, information)["scale"], torch.tensor(1.5))
    information[0]["scale"] = torch.tensor(3e6)
    found = fisher(values, information)
    torch.testing.assert_close(found["w"], torch.full((2,), 0.5))
    torch.testing.assert_close(found["scale"], torch.tensor((3 + 2) / 4))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"floor_on": "all"}, 0.5),
        ({"floor_on": "first"}, 1.0),
        ({"floor_on": "all", "floor_by": "addition"}, 0.5),
        ({"floor": 0.0}, 0.5),
    ],
)
def test_numbers_without_information(options: dict[str, Any], expected: float) -> None:
    values = [{"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([0.0, 0.0])}]
    information = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([1.0, 0.0])}]
    found = fisher(values, information, **options)["w"]
    torch.testing.assert_close(found, torch.tensor([0.5, expected]))


def test_an_expert_without_any_information_does_not_count() -> None:
    values = [{"w": torch.ones(2)}, {"w": torch.zeros(2)}]
    found = fisher(values, [{"w": torch.ones(2)}, {"w": torch.zeros(2)}])
    torch.testing.assert_close(found["w"], torch.ones(2))


def test_fisher_averages_batchnorm_statistics_and_is_exact_for_equal_experts() -> None:
    towers = [make_tower(0), make_tower(1)]
    information = [exact_fisher(t, [gaussian(3, 3, 8, 8)], readout) for t in towers]
    found = fisher([t.state_dict() for t in towers], information)
    variances = [t.bn.running_var for t in towers]
    torch.testing.assert_close(found["bn.running_var"], sum(variances) / 2)
    same = fisher([towers[0].state_dict()] * 2, information)
    torch.testing.assert_close(same, towers[0].state_dict(), rtol=1e-6, atol=1e-6)


def test_fisher_refuses_weights_that_are_all_zero() -> None:
    values = [{"w": torch.ones(2)}, {"w": torch.zeros(2)}]
    with pytest.raises(InputError, match="weights are all zero"):
        fisher(values, values, weights=(0, 0))


# The greedy soup.


def soup(accuracies: Any, count: int = 3) -> tuple[State, Iterator[State]]:
    """Experts that are one number each, 0, 1, 2 and so on, and the states that were scored."""
    towers = [SmallTower() for _ in range(count)]
    seen: list[State] = []

    def score(state: State) -> dict[str, float]:
        seen.append(dict(state))
        value = accuracies(float(state["w"]))
        return {"a": value - 1, "b": value + 1}

    bench = bench_of(towers, [torch.zeros(0)] * count, score=score)
    experts = {
        label: {"w": torch.tensor(float(i)), "count": torch.tensor(i)}
        for i, label in enumerate(bench.experts)
    }
    bench = MergeInputs(bench.tower, experts, None, bench.images, {}, score)
    return METHODS["soup-greedy"].function(bench), iter(seen)


def test_greedy_soup_tries_the_best_first_and_keeps_what_improves() -> None:
    # Alone, 0, 1 and 2 have 50, 70 and 60; with 1: 2 gives 1.5, then 0 gives 1.0.
    accuracies = {0.0: 50.0, 1.0: 70.0, 2.0: 60.0, 1.5: 75.0}
    found, seen = soup(lambda w: accuracies[w])
    assert float(found["w"]) == 1.5
    assert int(found["count"]) == 1  # the best expert's
    assert [float(state["w"]) for state in seen] == [0, 1, 2, 1.5, 1.0]


def test_greedy_soup_of_all_is_the_average() -> None:
    # Always better with one more: in the order of their own accuracy 3, 2, 1, 0.
    path = {3.0: 40.0, 2.5: 50.0, 2.0: 60.0, 1.5: 70.0}
    alone = iter([10.0, 20.0, 30.0, 40.0])
    found, seen = soup(lambda w: next(alone, path.get(round(w, 4))), 4)
    assert [float(state["w"]) for state in seen] == pytest.approx([0, 1, 2, 3, 2.5, 2, 1.5])
    assert float(found["w"]) == pytest.approx(1.5)


def test_greedy_soup_refuses_what_is_only_as_good() -> None:
    found, _ = soup(lambda w: 70.0)
    assert float(found["w"]) == 0.0
