"""Features of an origin's blocks, against forward passes written out by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neulig_ray.errors import InputError
from neulig_ray.models.archs import ARCHS, Arch
from neulig_ray.models.block_features import block_features, block_width
from neulig_ray.models.clip import build_tower, preprocess

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}


def images(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def plugin(name: str, **vision: object) -> Arch:
    """An arch as a plugin's, with a timm model or options of open_clip's ViT."""
    return Arch(
        name=name,
        description="",
        config={"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT},
        token_seed=None,
    )


def timm_arch(model: str) -> Arch:
    return plugin(f"blocks-{model}", timm_model_name=model, timm_pool="", timm_proj="linear", image_size=160)


def of_a_vit(tower: nn.Module, pixels: Tensor) -> list[Tensor]:
    grid = tower.conv1(pixels).flatten(2).transpose(1, 2)
    first = tower.class_embedding.expand(len(pixels), 1, -1)
    tokens = tower.ln_pre(torch.cat([first, grid], 1) + tower.positional_embedding)
    found = []
    for block in tower.transformer.resblocks:
        normed = block.ln_1(tokens)
        tokens = tokens + block.attn(normed, normed, normed, need_weights=False)[0]
        tokens = tokens + block.mlp(block.ln_2(tokens))
        found += [tokens[:, 0], tokens[:, 1:].mean(1)]
    return [*found, tower.ln_post(tokens[:, 0]) @ tower.proj]


def of_a_resnet(tower: nn.Module, pixels: Tensor) -> list[Tensor]:
    maps, found = tower.stem(pixels), []
    for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        for block in layer:
            maps = block(maps)
            flat = maps.flatten(2)
            found += [flat.mean(2), flat.max(2).values]
    return [*found, tower.attnpool(maps)]


BY_HAND = {"tiny-vit": of_a_vit, "tiny-rn": of_a_resnet}
DEEP = Arch(
    name="blocks-rn",
    description="two residual blocks in a stage",
    config={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [2, 1, 1, 2], "width": 8, "head_width": 16},
        "text_cfg": TEXT,
    },
)


@pytest.mark.parametrize("arch", [ARCHS["tiny-vit"], ARCHS["tiny-rn"], DEEP], ids=lambda arch: arch.name)
@torch.no_grad()
def test_features_are_those_of_a_forward_pass_by_hand(arch: Arch) -> None:
    tower = build_tower(arch)
    expected = BY_HAND.get(arch.name, of_a_resnet)(tower, preprocess(images(5), arch))
    tower.train()
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    found = block_features(tower, images(5), arch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch.cat(expected, 1).numpy(), rtol=1e-4, atol=1e-5)
    assert tower.training
    assert all(torch.equal(before[name], value) for name, value in tower.state_dict().items())
    assert not any(module._forward_hooks for module in tower.modules())


@pytest.mark.parametrize(
    ("name", "width"), [("tiny-vit", 1152), ("tiny-rn", 2048), ("ViT-B-32", 18944), ("RN50", 31232)]
)
def test_the_width_is_known_without_weights(name: str, width: int) -> None:
    assert block_width(name) == width


@pytest.mark.parametrize("name", BY_HAND)
def test_the_size_of_batches_changes_nothing(name: str) -> None:
    tower = build_tower(ARCHS[name])
    whole = block_features(tower, images(7), ARCHS[name])
    assert whole.shape == (7, block_width(name))
    parts = block_features(tower, images(7), ARCHS[name], batch_size=3)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_class_token_is_the_one_that_stands_first() -> None:
    """What no image decides: with attention and feed-forward silenced it passes through every block."""
    tower = build_tower(ARCHS["tiny-vit"])
    for block in tower.transformer.resblocks:
        for last in (block.attn.out_proj, block.mlp.c_proj):
            last.weight.zero_()
            last.bias.zero_()
    found = block_features(tower, images(3), ARCHS["tiny-vit"])[:, :-128].reshape(3, 4, 2, 128)
    token = tower.ln_pre(tower.class_embedding + tower.positional_embedding[0])
    np.testing.assert_allclose(found[:, :, 0], np.broadcast_to(token, (3, 4, 128)), atol=1e-5)
    assert (found[0, :, 1] != found[1, :, 1]).all()


@pytest.mark.parametrize(
    "options",
    [
        {"pool_type": "avg"},
        {"final_ln_after_pool": True, "no_ln_pre": True},
        {"attentional_pool": True, "attn_pooler_queries": 3, "attn_pooler_heads": 2},
        {"block_type": "custom", "qk_norm": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_any_pooling_and_any_attention_of_open_clips_vit(options: dict[str, object]) -> None:
    arch = plugin("blocks-" + next(iter(options)).replace("_", "-"), **VIT, **options)
    tower = build_tower(arch)
    found = block_features(tower, images(3, 16), arch)
    assert found.shape == (3, 2 * 2 * 32 + 16)
    with torch.no_grad():
        np.testing.assert_allclose(found[:, -16:], tower(preprocess(images(3, 16), arch)), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "second"), [("test_vit", "mean"), ("test_vit4", "amax"), ("test_convnext", "amax")]
)
@torch.no_grad()
def test_towers_of_timm(model: str, second: str) -> None:
    arch = timm_arch(model)
    tower = build_tower(arch)
    found = block_features(tower, images(2, 160), arch)
    trunk, pixels = tower.trunk, preprocess(images(2, 160), arch)
    expected, extra = [], {} if model == "test_convnext" else {"return_prefix_tokens": True}
    for maps in trunk.forward_intermediates(pixels, intermediates_only=True, **extra):
        prefix = None
        if isinstance(maps, tuple):
            maps, prefix = maps
        one, other = maps.mean((2, 3)), maps.amax((2, 3))
        expected += [one, other] if second == "amax" else [prefix[:, 0], one]
    expected.append(tower(pixels))
    np.testing.assert_allclose(found, torch.cat(expected, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "kind"), [("test_mambaout", r"mambaout\.MambaOut"), ("test_resnet", r"resnet\.ResNet")]
)
def test_a_tower_whose_blocks_are_not_known_is_refused_by_name(model: str, kind: str) -> None:
    arch = timm_arch(model)
    with pytest.raises(InputError, match=rf"'{arch.name}'.*{kind}.*not known.*open_clip.*ModifiedResNet"):
        block_features(build_tower(arch), images(1, 160), arch)
