"""Parts of weights are not merged: codes and scales of quantised models, factors of adapters."""

from pathlib import Path

import pytest
import torch
from merge_cli_helpers import Run, State, refused
from safetensors.torch import load_file, save_file
from streamed_samples import STREAMED, filled, number_of_experts

from neulig_ray.errors import InputError
from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_with
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.merging.task_vectors import TaskVectors


def floats(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def codes(seed: int, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gptq(seed: int) -> State:
    return {
        "l.qweight": codes(seed, 16, 32),
        "l.qzeros": codes(seed, 1, 4),
        "l.scales": floats(seed, 1, 32, dtype=torch.float16),
        "l.g_idx": torch.arange(128, dtype=torch.int32),
    }


def nf4(seed: int) -> State:
    """The same codes in all models: QLoRA's base, whose scales alone would be averaged."""
    return {
        "l.weight": codes(0, 64, 1, dtype=torch.uint8),
        "l.weight.absmax": floats(seed, 8),
        "l.weight.quant_map": torch.linspace(-1, 1, 16),
        "l.weight.quant_state.bitsandbytes__nf4": codes(0, 90, dtype=torch.uint8),
    }


QUANTISED = {
    "F4-gptq": lambda seed: {name: t for name, t in gptq(seed).items() if name in ("l.qweight", "l.scales")},
    "gptq-with-order": gptq,
    "bitsandbytes-nf4": nf4,
    "bitsandbytes-int8": lambda seed: {
        "l.weight": codes(0, 8, 8, dtype=torch.int8), "l.SCB": floats(seed, 8), "n.weight": floats(seed, 8),
    },
    "fp8-dequantised-beside-its-scale": lambda seed: {
        "l.weight": floats(seed, 8, 8, dtype=torch.bfloat16), "l.weight_scale_inv": floats(seed, 1, 1),
    },
    "mxfp4": lambda seed: {
        "mlp.experts.down_proj_blocks": codes(0, 2, 8, dtype=torch.uint8),
        "mlp.experts.down_proj_scales": codes(0, 2, 1, dtype=torch.uint8),
        "router.weight": floats(seed, 2, 8),
    },
    "compressed-tensors": lambda seed: {
        "l.weight_packed": codes(0, 8, 2), "l.weight_scale": floats(seed, 8, 1), "l.shape": codes(0, 2),
    },
    "quanto": lambda seed: {
        "l.weight._data": codes(0, 8, 8, dtype=torch.int8), "l.weight._scale": floats(seed, 8, 1),
    },
    "torchao": lambda seed: {
        "l.weight:qdata": codes(0, 8, 8, dtype=torch.int8), "l.weight:scale": floats(seed, 8, 1),
    },
    "hqq": lambda seed: {"l.W_q": codes(seed, 8, 8, dtype=torch.uint8), "l.scale": floats(seed, 8, 1)},
    "plain-int8-weights": lambda seed: {"l.weight": codes(0, 8, 8, dtype=torch.int8), "l.s": floats(seed, 8)},
    "table-that-differs": lambda seed: {"w": floats(seed, 4), "vocabulary.ids": codes(seed, 9)},
}  # fmt: skip


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_models_are_refused_by_name(neulig: Run, tmp_path: Path, kind: str) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for seed, path in enumerate(paths):
        save_file(QUANTISED[kind](seed), path)
    told = refused(neulig, tmp_path, "average", "--experts", *paths, "--out", tmp_path / "m.safetensors")
    for word in (str(paths[0]), "bytes are integers", "quantised", "merge the originals"):
        assert word in told
    assert any(f"'{name}'" in told for name in QUANTISED[kind](0))


@pytest.mark.parametrize("name", STREAMED)
def test_every_method_refuses_quantised_models(name: str) -> None:
    experts = {str(seed): {**gptq(seed), "w": floats(seed, 4, 4)} for seed in range(number_of_experts(name))}
    with pytest.raises(InputError, match=r"'l\.qweight'.*merge the originals"):
        merge_with(METHODS[name], experts, {**gptq(9), "w": floats(9, 4, 4)}, filled(name, {}, 3))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_floats_of_a_byte_are_codes(dtype: torch.dtype) -> None:
    experts = {name: {"w": floats(seed, 4).to(dtype)} for seed, name in enumerate("ab")}
    with pytest.raises(InputError, match=r"quantised \(weights of torch.float8"):
        merge_with(METHODS["average"], experts)


def test_pipelines_copy_no_integers_that_differ() -> None:
    states = {name: {"w": floats(seed, 4), "ids": codes(seed, 5)} for seed, name in enumerate("ab")}
    with pytest.raises(InputError, match="'ids' is int32 and differs"):
        ExpertStack.from_states(states)
    with pytest.raises(InputError, match="'ids' is int32 and differs"):
        TaskVectors.of({"w": floats(9, 4), "ids": codes(9, 5)}, states)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(5)[None],
        codes(0, 7, 7, dtype=torch.int64),
        torch.ones(4, 4, dtype=torch.bool).tril(),
        codes(0, 3, dtype=torch.uint8),
        torch.zeros(0, 3, dtype=torch.int64),
        torch.tensor([1 + 2j, 3]),
    ],
    ids=["position_ids", "relative_position_index", "causal mask", "bytes", "empty", "complex frequencies"],
)
def test_what_is_the_same_in_all_models_is_copied(tensor: torch.Tensor) -> None:
    experts = {name: {"w": floats(seed, 4), "x": tensor.clone()} for seed, name in enumerate("ab")}
    base = {"w": floats(9, 4), "x": tensor + 1 if tensor.dtype == torch.int64 else tensor}
    for found in (
        merge_with(METHODS["average"], experts),
        merge_with(METHODS["ties"], experts, base),
    ):
        assert torch.equal(found["x"], tensor)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_counters_of_one_number_may_differ(shape: tuple[int, ...]) -> None:
    experts = {
        n: {"w": floats(i, 4), "bn.num_batches_tracked": torch.full(shape, i)} for i, n in enumerate("ab")
    }
    assert merge_with(METHODS["average"], experts)["bn.num_batches_tracked"].item() == 0


ADAPTERS = {
    "F5-lora": ("q.lora_A.weight", "q.lora_B.weight"),
    "F5-lora-up-down": ("lora_unet_down_q.lora_down.weight", "lora_unet_down_q.lora_up.weight"),
    "F5-hada": ("l.hada_w1_a", "l.hada_w1_b", "l.hada_w2_a", "l.hada_w2_b"),
    "F5-dora-magnitude": ("l.base_layer.weight", "l.lora_magnitude_vector.default.weight"),
    "lora-with-adapter-names": ("m.q.lora_A.default.weight", "m.q.lora_B.default.weight"),
    "lora-in-a-whole-model": ("q.weight", "q.lora_A", "q.lora_B"),
    "lora-of-torchtune": ("q_proj.lora_a.weight", "q_proj.lora_b.weight"),
    "lora-of-clip-lora": ("attn.q_proj.w_lora_A", "attn.q_proj.w_lora_B"),
    "lora-of-embeddings": ("e.lora_embedding_A", "e.lora_embedding_B"),
    "lora-of-diffusers": ("attn1.processor.to_q_lora.down.weight", "attn1.processor.to_q_lora.up.weight"),
    "dora-of-kohya": ("l.weight", "l.dora_scale"),
    "lokr": ("l.lokr_w1", "l.lokr_w2_a", "l.lokr_w2_b"),
    "vera": ("l.vera_lambda_b", "l.vera_lambda_d"),
    "oft": ("l.oft_blocks",),
    "boft": ("l.boft_R", "l.boft_s"),
    "ia3": ("mlp.ia3_l",),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_are_refused_with_the_remedy(neulig: Run, tmp_path: Path, kind: str) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for seed, path in enumerate(paths):
        save_file({name: floats(seed, 4, 4) for name in ADAPTERS[kind]}, path)
    told = refused(neulig, tmp_path, "average", "--experts", *paths, "--out", tmp_path / "m.safetensors")
    for word in (str(paths[0]), "adapter", "merge the adapters into their base first", "merge_and_unload"):
        assert word in told
    assert any(f"'{name}'" in told for name in ADAPTERS[kind])


def test_an_adapter_beside_the_tensors_of_a_base_is_seen(neulig: Run, tmp_path: Path) -> None:
    """It is no tensor of the experts, but part of a weight that the base lends them."""
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")]
    for seed, path in enumerate(paths):
        more = {"q.lora_A.weight": floats(8, 2, 4), "q.lora_B.weight": floats(9, 4, 2)} if seed == 0 else {}
        save_file({"q.weight": floats(seed, 4, 4), **more}, path)
    given = ["--base", paths[0], "--experts", *paths[1:], "--out", tmp_path / "m.safetensors"]
    assert "merge the adapters into their base first" in refused(neulig, tmp_path, "ties", *given)


def test_pruned_weights_are_two_tensors() -> None:
    experts = {
        n: {"l.weight_orig": floats(i, 4), "l.weight_mask": floats(i, 4).sign()} for i, n in enumerate("ab")
    }
    with pytest.raises(InputError, match=r"'l\.weight_orig'.*prune\.remove"):
        merge_with(METHODS["average"], experts)


@pytest.mark.parametrize(
    "name",
    [
        "lora_proj.weight",
        "attn.w_lora.lora.0.weight",
        "kv_lora_norm.weight",
        "layer.scales",
        "blocks.0.ls1.scale",
        "attn.W_q.weight",
        "scb.conv.weight",
        "quantizer.codebook",
        "conv.weight_g",
        "down.weight",
        "prompt_embeddings",
        "absmax_pool.weight",
        "token_blocks",
    ],
)
def test_modules_with_such_names_are_merged(name: str) -> None:
    a, b = floats(1, 4, 4), floats(2, 4, 4)
    found = merge_with(METHODS["average"], {"a": {name: a}, "b": {name: b}})
    assert torch.equal(found[name], torch.stack([a, b]).mean(0))


def test_an_import_takes_no_adapter_for_a_tower(neulig: Run, tmp_path: Path) -> None:
    from foreign import expert_file

    path, state = expert_file(tmp_path)
    block = "visual.transformer.resblocks.0.attn.out_proj"
    adapted = {f"visual.{name}": tensor for name, tensor in state.items()}
    adapted |= {f"{block}.lora_A.weight": floats(0, 2, 4), f"{block}.lora_B.weight": floats(1, 4, 2)}
    save_file(adapted, path)
    out = tmp_path / "imported.safetensors"
    given = ["--arch", "tiny-vit", "--task", "digits", "--origin", "seed-0", "--out", out]
    status, _, told = neulig("import", path, *given)
    assert status == 2
    assert "merge the adapters into their base first" in told
    assert not out.exists()
    assert load_file(path).keys() == adapted.keys()
