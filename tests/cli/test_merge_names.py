"""Whose names count in a merge: prefixes of the base, and tensors that only some models have."""

from pathlib import Path

import pytest
import torch
from merge_cli_helpers import Run, State, refused
from safetensors.torch import load_file, save_file

from neulig_ray.errors import InputError
from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_masks, merge_with

INF = float("inf")


def model(seed: int, prefix: str = "", **more: torch.Tensor) -> State:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embeddings.weight": (5, 4), "encoder.layers.0.weight": (4, 4), "encoder.layers.0.bias": (4,)}
    found = {prefix + name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return found | {name.replace("__", "."): tensor for name, tensor in more.items()}


def merged(
    neulig: Run, folder: Path, base: State, *experts: State, method: str = "ties"
) -> tuple[State, str]:
    """The merged file and the notes; the base's file is called base, those of the experts a, b, ..."""
    names = ["base", *"abc"[: len(experts)]]
    for name, state in zip(names, (base, *experts), strict=True):
        save_file(state, folder / f"{name}.safetensors")
    paths = [folder / f"{name}.safetensors" for name in names]
    out = folder / "m.safetensors"
    status, _, told = neulig("merge", method, "--base", paths[0], "--experts", *paths[1:], "--out", out)
    assert status == 0, told
    return load_file(out), told


def expected(method: str = "ties", **more: torch.Tensor) -> State:
    return merge_with(METHODS[method], {"a": model(1, **more), "b": model(2, **more)}, model(0, **more))


def assert_parameters(found: State, prefix: str = "") -> None:
    for name, tensor in expected().items():
        assert torch.equal(found[prefix + name], tensor), name


# What only one side has -------------------------------------------------------------------------------------

IDS = torch.arange(5)[None]


@pytest.mark.parametrize(
    "extra",
    [
        {"emb.position_ids": IDS},
        {"attn.bias": torch.ones(3, 3, dtype=torch.bool).tril(), "attn.masked_bias": torch.tensor(-1e4)},
        {"bn.num_batches_tracked": torch.tensor(7)},
        {"text_model.w": torch.ones(3), "logit_scale": torch.tensor(4.6)},
        {"mask": torch.full((2, 2), -INF)},
    ],
    ids=["F6-position_ids", "masks of old GPT-2 files", "counter", "the rest of a model", "infinite mask"],
)
def test_what_only_the_base_has_is_left_out_and_told(neulig: Run, tmp_path: Path, extra: State) -> None:
    found, told = merged(neulig, tmp_path, model(0) | extra, model(1), model(2))
    assert found.keys() == model(0).keys()
    assert_parameters(found)
    assert f"only {tmp_path / 'base.safetensors'} has '{min(extra)}'" in told
    assert "left out" in told


@pytest.mark.parametrize(
    "extra",
    [
        {"emb.position_ids": IDS},
        {"attn.bias": torch.ones(3, 3, dtype=torch.bool).tril()},
        {"attn.bias": torch.ones(3, 3, dtype=torch.uint8).tril()},
        {"bn.num_batches_tracked": torch.tensor(7)},
        {"rotary_emb.inv_freq": torch.rand(8), "attn.masked_bias": torch.tensor(-1e4)},
        {"attn_mask": torch.full((3, 3), -INF).triu(1)},
    ],
    ids=[
        "F6-position_ids",
        "boolean mask",
        "mask of bytes",
        "counter",
        "rotary frequencies",
        "infinite mask",
    ],
)
@pytest.mark.parametrize("owner", [0, 1])
def test_buffers_that_some_experts_lack_are_lent_and_told(
    neulig: Run, tmp_path: Path, extra: State, owner: int
) -> None:
    experts = [model(1), model(2)]
    experts[owner] |= extra
    found, told = merged(neulig, tmp_path, model(0), *experts)
    assert found.keys() == model(0).keys() | extra.keys()
    assert_parameters(found)
    for name, tensor in extra.items():
        assert torch.equal(found[name], tensor)
    assert any(f"not all experts have '{name}'" in told for name in extra)
    assert f"copied from {tmp_path / 'ab'[owner]}.safetensors" in told


@pytest.mark.parametrize("method", ["ties", "karcher", "tall-mask", "tsv-merge"])
@pytest.mark.parametrize(
    "extra",
    [{"position_ids": IDS}, {"inv_freq": torch.rand(4)}, {"mask": torch.full((2, 2), -INF)}],
    ids=["F6-integers", "F8-frozen floats", "F8-infinite mask"],
)
def test_what_the_base_lacks_and_the_experts_share_is_copied(method: str, extra: State) -> None:
    experts = {"a": model(1) | extra, "b": model(2) | extra}
    if METHODS[method].masked:
        found = merge_masks(METHODS[method], experts, model(0)).dense("b")
    else:
        found = merge_with(METHODS[method], experts, model(0))
    (name,) = extra
    assert torch.equal(found[name], extra[name])
    again = merge_with(METHODS[method], experts, model(0), buffers="base")
    assert torch.equal(again["base/" * METHODS[method].masked + name], extra[name])


@pytest.mark.parametrize(
    ("base", "experts", "words"),
    [
        (model(0), [model(1), model(2, head=torch.ones(3))], ["'head'", "has not"]),
        (model(0), [model(1, head=torch.ones(3)), model(2, head=torch.zeros(3))], ["'head'", "the base"]),
        (model(0), [model(1, ids=IDS), model(2, head=torch.ones(3))], ["'head'"]),
        (model(0), [model(1, ids=IDS), model(2, ids=IDS + 1)], ["'ids' is int64 and differs"]),
        (
            {n.replace("weight", "wieght"): t for n, t in model(0).items()},
            [model(1), model(2)],
            ["'embeddings.weight'", "3 such", "near it: 'embeddings.wieght'"],
        ),
    ],
    ids=["one expert", "the base lacks", "integers too", "lent twice", "misspelt"],
)
def test_parameters_that_only_some_have_are_refused(
    base: State, experts: list[State], words: list[str]
) -> None:
    words = ["2 such" if word == "3 such" else word for word in words]
    with pytest.raises(InputError) as error:
        merge_with(METHODS["ties"], dict(zip("ab", experts, strict=True)), base)
    for word in words:
        assert word in str(error.value)


# Prefixes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "experts"),
    [
        ("vision_model.", ""),
        ("visual.", ""),
        ("model.", ""),
        ("module.", ""),
        ("clip.vision_model.", ""),
        ("clip.vision_model.", "vision_model."),
        ("", "vision_model."),
        ("", "module.model."),
        ("visual.trunk.", "module."),
    ],
    ids=[
        "F7-vision_model", "visual", "model", "module", "clip.vision_model", "clip.vision_model-vision_model",
        "experts-vision_model", "experts-module.model", "visual.trunk-module",
    ],
)  # fmt: skip
def test_any_one_prefix_of_the_base_is_found(neulig: Run, tmp_path: Path, base: str, experts: str) -> None:
    """transformers' vision_model. and others, on either side."""
    rest = {"text_model.w": torch.ones(3), "logit_scale": torch.tensor(4.6)}
    found, told = merged(neulig, tmp_path, model(0, base) | rest, model(1, experts), model(2, experts))
    assert found.keys() == model(0, experts).keys()
    assert_parameters(found, experts)
    assert str(tmp_path / "base.safetensors") in told
    if base == "visual.":
        assert "is a whole CLIP" in told
    else:
        assert repr(base or experts) in told or repr(base.removesuffix(experts)) in told


def test_shapes_tell_which_of_two_parts_is_the_base(neulig: Run, tmp_path: Path) -> None:
    base = model(0, "vision_model.") | {f"text_model.{n}": torch.ones(9, 9) for n in model(0)}
    found, told = merged(neulig, tmp_path, base, model(1), model(2))
    assert_parameters(found)
    assert "under 'vision_model.'" in told
    assert "3 others are left out" in told


@pytest.mark.parametrize("image", ["vision_model.", "visual.", "clip.vision_model.", "image_encoder."])
def test_of_parts_of_one_shape_the_image_tower_is_the_base(neulig: Run, tmp_path: Path, image: str) -> None:
    base = model(0, image) | model(9, "text_model.")
    found, told = merged(neulig, tmp_path, base, model(1), model(2))
    alone, _ = merged(neulig, tmp_path, model(0), model(1), model(2))
    assert all(torch.equal(found[name], alone[name]) for name in alone)
    assert "base.safetensors" in told


@pytest.mark.parametrize(
    "prefixes",
    [("model.", "ema."), ("a.tower.", "b.tower.", "c.tower."), ("visual.", "ema.visual.")],
)
def test_two_parts_that_fit_are_both_named(neulig: Run, tmp_path: Path, prefixes: tuple[str, ...]) -> None:
    base: State = {}
    for seed, prefix in enumerate(prefixes):
        base |= model(seed, prefix)
    for name, state in {"base": base, "a": model(1), "b": model(2)}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")]
    given = ["--base", paths[0], "--experts", *paths[1:], "--out", tmp_path / "m.safetensors"]
    told = refused(neulig, tmp_path, "ties", *given)
    for prefix in prefixes:
        assert repr(prefix) in told


def test_equal_names_go_before_a_prefix() -> None:
    base = model(0) | model(5, "ema.")
    found = merge_with(METHODS["ties"], {"a": model(1), "b": model(2)}, base)
    assert_parameters(found)


def test_a_prefix_holds_a_base_that_lacks_integers(neulig: Run, tmp_path: Path) -> None:
    experts = [model(seed, emb__position_ids=IDS) for seed in (1, 2)]
    found, told = merged(neulig, tmp_path, model(0, "vision_model."), *experts)
    assert torch.equal(found["emb.position_ids"], IDS)
    assert_parameters({n: t for n, t in found.items() if "ids" not in n})
    assert "lacks 'emb.position_ids'" in told
