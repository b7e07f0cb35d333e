"""Experts in: transformers, open_clip, TALL masks and plain towers, there and back, bit for bit."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from foreign import ARCH, embedded_by_open_clip, equal, expert_file, features, images_of, imported, moved
from transformers import CLIPModel, CLIPProcessor, CLIPVisionModel, CLIPVisionModelWithProjection

from neulig_ray.cli import main
from neulig_ray.errors import InputError
from neulig_ray.models.archs import ARCHS, Arch
from neulig_ray.models.clip import build_clip, preprocess, tokenize
from neulig_ray.models.formats.checkpoints import read_checkpoint
from neulig_ray.models.formats.export import whole_clip, write_huggingface, write_open_clip
from neulig_ray.models.formats.huggingface import check_config, clip_from, clip_to, config_of
from neulig_ray.models.formats.towers import find_tower
from neulig_ray.models.tower_files import read_tower

KINDS = {"vision": CLIPVisionModel, "projected": CLIPVisionModelWithProjection, "whole": CLIPModel}


# transformers


@pytest.mark.parametrize("quick", [True, False])
def test_whole_clips_come_back_from_transformers_names_bit_for_bit(quick, tmp_path):
    config = {**ARCH.config, "quick_gelu": True} if quick else {
        key: value for key, value in ARCH.config.items() if key != "quick_gelu"
    }  # fmt: skip
    arch = Arch(name=f"there-and-back-{quick}", config=config, description="", token_seed=None)
    clip = build_clip(arch, seed=2)
    state = clip.state_dict()
    assert equal(clip_from(clip_to(state)), state)
    write_huggingface(tmp_path / "hf", clip.visual.state_dict(), clip, arch, {}, "test")
    model = CLIPModel.from_pretrained(tmp_path / "hf").eval()
    assert model.config.vision_config.hidden_act == model.config.text_config.hidden_act == arch.activation
    images, tokens = images_of(arch), tokenize(["a photo of the number 7.", "stripes"], arch)
    with torch.no_grad():
        seen, read = model.get_image_features(images), model.get_text_features(input_ids=tokens)
        torch.testing.assert_close(features(seen), clip.encode_image(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(features(read), clip.encode_text(tokens), rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    assert equal(clip_from(read_checkpoint(tmp_path / "again").tensors), state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharded", [False, True])
def test_an_expert_of_transformers_is_imported_with_equal_embeddings(kind, sharded, tmp_path, capsys):
    state, clip = moved()
    write_huggingface(tmp_path / "whole", state, clip, ARCH, {}, "test")
    model = KINDS[kind].from_pretrained(tmp_path / "whole").eval()
    model.save_pretrained(tmp_path / "hf", max_shard_size="300KB" if sharded else "1GB")
    assert (tmp_path / "hf/model.safetensors.index.json").exists() == sharded
    assert imported(tmp_path / "hf", tmp_path / "out.safetensors") == 0
    found, metadata = read_tower(tmp_path / "out.safetensors", ARCH)
    told = capsys.readouterr().out
    if kind == "vision":
        state["proj"] = clip.visual.proj.detach()
        assert "projection into the embeddings is the origin's" in told
        assert metadata["projection"] == "the origin's"
    else:
        assert "projection" not in metadata
    assert equal(found, state)
    assert ("left out" in told) == (kind == "whole")
    if kind == "projected":
        images = images_of(ARCH)
        with torch.no_grad():
            seen = model(images).image_embeds
        torch.testing.assert_close(embedded_by_open_clip(ARCH, found, images), seen, rtol=0, atol=1e-5)
    assert (metadata["task"], metadata["origin"], metadata["arch"]) == ("digits", "seed-0", "tiny-vit")
    assert metadata["activation"] == "quick_gelu"
    assert len(metadata["source_sha256"]) == 64
    assert str(tmp_path.parent) not in json.dumps(metadata), "no folder of this machine"


def test_names_of_earlier_transformers_are_known_too(tmp_path):
    """4.x prefixes a CLIPVisionModel's tensors with `vision_model.`, and older files hold `position_ids`."""
    state, clip = moved()
    names = clip_to(whole_clip(state, clip))
    old = {name: tensor for name, tensor in names.items() if name.startswith("vision_model.")}
    old["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    (tmp_path / "config.json").write_text(json.dumps({**config_of(ARCH)["vision_config"]}))
    torch.save({name: tensor.clone() for name, tensor in old.items()}, tmp_path / "pytorch_model.bin")
    assert imported(tmp_path, tmp_path / "out.safetensors") == 0
    state["proj"] = clip.visual.proj.detach()
    assert equal(read_tower(tmp_path / "out.safetensors", ARCH)[0], state)


def test_a_tower_without_projection_needs_its_origin(tmp_path):
    state, clip = moved()
    names = clip_to(whole_clip(state, clip))
    path = tmp_path / "vision.safetensors"
    safetensors.torch.save_file(
        {name: t.clone() for name, t in names.items() if name.startswith("vision_model.")}, path
    )
    with pytest.raises(InputError, match=r"CLIPVisionModel, which ends before the projection.*--origin"):
        find_tower(read_checkpoint(path), ARCH)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "'gelu', that of ViT-B-32-quickgelu is .*: use the arch ViT-B-32$"),
        ({"patch_size": 16}, r"vision_config\.patch_size is 16, but 32 in ViT-B-32-quickgelu"),
        ({"model_type": "siglip"}, r"model_type is 'siglip'"),
    ],
)  # fmt: skip
def test_a_configuration_of_another_arch_or_activation_is_refused(change, words):
    """The files of transformers leave out what is its default, which is ViT-B-32 with QuickGELU."""
    arch = ARCHS["ViT-B-32-quickgelu"]
    check_config({"model_type": "clip_vision_model"}, arch, "config.json")
    with pytest.raises(InputError, match=words):
        check_config({"model_type": "clip_vision_model", **change}, arch, "config.json")
    with pytest.raises(InputError, match=r"vision_config\.hidden_size is 768, but 1024"):
        check_config({"model_type": "clip", "vision_config": {}}, ARCHS["ViT-L-14"], "config.json")


@pytest.mark.parametrize("name", ["tiny-rn", "RN50", "ViT-H-14-CLIPA", "ViT-B-32-256"])
def test_what_transformers_cannot_express_is_said(name):
    if name == "ViT-B-32-256":
        assert config_of(ARCHS[name])["vision_config"]["image_size"] == 256
        return
    with pytest.raises(InputError, match="Hugging Face's CLIP has no"):
        config_of(ARCHS[name])


def test_the_exported_folder_prepares_images_and_texts_as_open_clip_does(tmp_path):
    path, _ = expert_file(tmp_path)
    assert main(["export", str(path), "--format", "hf", "--out", str(tmp_path / "hf")]) == 0
    processor = CLIPProcessor.from_pretrained(tmp_path / "hf")
    texts = ["a photo of a cat's 7 eyes, really!", "Größe 12", "the letter Q"]
    ids = processor.tokenizer(texts, padding="max_length", max_length=20, return_tensors="pt")
    ours = tokenize(texts, ARCH)
    assert torch.equal(ids["input_ids"] * ids["attention_mask"], ours)
    pixels = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    seen = processor.image_processor(images=list(pixels), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen, preprocess(pixels, ARCH), rtol=0, atol=1e-5)


# open_clip, TALL masks, plain towers


def tall(clip, state):
    """A task_vectors-like ImageEncoder's state dict: the CLIP without its text transformer."""
    whole = whole_clip(state, clip)
    return {f"model.{n}": t.clone() for n, t in whole.items() if not n.startswith("transformer.")}


LAYOUTS = {
    "open_clip": lambda clip, state: whole_clip(state, clip),
    "42-compiled": lambda clip, state: {
        f"module._orig_mod.{n}": t for n, t in whole_clip(state, clip).items()
    },
    "42-peft": lambda clip, state: {f"base_model.model.{n}": t for n, t in whole_clip(state, clip).items()},
    "wrapped": lambda clip, state: {f"module.{n}": t for n, t in whole_clip(state, clip).items()},
    "tall": tall,
    "tower": lambda clip, state: state,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_every_layout_of_open_clips_names_is_found(layout, name, tmp_path, capsys):
    arch = ARCHS[name]
    state, clip = moved(arch)
    source = {n: t.clone() for n, t in LAYOUTS[layout](clip, state).items()}
    safetensors.torch.save_file(source, tmp_path / "in.safetensors")
    assert imported(tmp_path / "in.safetensors", tmp_path / "out.safetensors", arch=name) == 0
    found, metadata = read_tower(tmp_path / "out.safetensors", arch)
    assert equal(found, state)
    assert metadata["source_sha256"] == hashlib.sha256((tmp_path / "in.safetensors").read_bytes()).hexdigest()
    left_out = len(source) - len(state)
    assert (f"left out: {left_out} tensors" in capsys.readouterr().out) == (left_out > 0)


def test_half_precision_becomes_float32(tmp_path):
    state, _ = moved()
    torch.save({n: t.bfloat16() for n, t in state.items()}, tmp_path / "half.pt")
    assert imported(tmp_path / "half.pt", tmp_path / "out.safetensors") == 0
    found, _ = read_tower(tmp_path / "out.safetensors", ARCH)
    assert torch.equal(found["proj"], state["proj"].bfloat16().float())


def test_a_full_size_rn50_is_imported_with_its_batchnorm_statistics(tmp_path):
    arch = ARCHS["RN50-quickgelu"]
    state = build_clip(arch, seed=1).visual.state_dict()
    for name, tensor in state.items():
        if name.endswith(("running_mean", "num_batches_tracked")):
            tensor.add_(2)
    safetensors.torch.save_file({f"visual.{n}": t for n, t in state.items()}, tmp_path / "rn50.safetensors")
    tower = find_tower(read_checkpoint(tmp_path / "rn50.safetensors"), arch)
    assert equal(tower.state, state)
    assert tower.state["bn1.num_batches_tracked"].dtype == torch.int64


# Bad input


def test_a_checkpoint_of_another_arch_names_the_arch_that_it_fits(tmp_path, capsys):
    state, _ = moved()
    safetensors.torch.save_file(state, tmp_path / "vit.safetensors")
    assert imported(tmp_path / "vit.safetensors", tmp_path / "out.safetensors", arch="tiny-rn") == 2
    error = capsys.readouterr().err
    assert "vit.safetensors" in error
    assert "Its shapes are those of tiny-vit" in error
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: {n: t for n, t in s.items() if n != "proj"}, "lacks 1 tensors: proj"),
        (lambda s: {**s, "proj": torch.ones(128, 64)}, "proj (128, 64) instead of (128, 128)"),
        (lambda s: {**s, "proj": s["proj"] * float("nan")}, "NaN or infinite values in proj"),
        (lambda s: {"classification_head.weight": torch.ones(10, 128)}, "holds no visual tower of a CLIP"),
        (lambda s: {**s, "logits.bias": torch.ones(3)}, "1 foreign tensors: logits.bias"),
    ],
)
def test_a_tower_that_is_not_whole_is_refused(spoil, words, tmp_path, capsys):
    safetensors.torch.save_file(spoil(moved()[0]), tmp_path / "in.safetensors")
    assert imported(tmp_path / "in.safetensors", tmp_path / "out.safetensors") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--arch", "convnext_base"], "timm's convnext_base"),
        (["--arch", "ViT-B-32", "--origin", "openai"], "use the arch ViT-B-32-quickgelu"),
        (["--origin", "nowhere"], "unknown origin 'nowhere' of tiny-vit"),
        (["--out", "expert.pt"], "a tower file ends in .safetensors"),
        (["--task", "a@b"], "--task 'a@b'"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(flags, words, tmp_path, capsys):
    path, _ = expert_file(tmp_path)
    assert imported(path, tmp_path / "out.safetensors", *flags) == 2
    assert words in capsys.readouterr().err


def test_sources_that_are_not_there_or_ours_already(tmp_path, capsys):
    assert imported(tmp_path / "gone.pt", tmp_path / "out.safetensors") == 2
    assert "there is no such file or folder" in capsys.readouterr().err
    assert imported(expert_file(tmp_path)[0], tmp_path / "out.safetensors") == 2
    assert "is a tower file of neulig already" in capsys.readouterr().err
    assert imported("hf-hub:somebody/clip", tmp_path / "out.safetensors") == 2
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    assert imported(tmp_path / "folder", tmp_path / "out.safetensors") == 2
    assert "neither open_clip_config.json nor config.json" in capsys.readouterr().err
    (tmp_path / "folder/config.json").write_text("{}")
    assert imported(tmp_path / "folder", tmp_path / "out.safetensors") == 2
    assert "none of model.safetensors" in capsys.readouterr().err


# Full size


@pytest.mark.slow
def test_a_full_size_vit_goes_to_transformers_and_back(tmp_path):
    """151 million random weights: open_clip -> transformers -> open_clip, and as origin of an expert."""
    arch = ARCHS["ViT-B-32-quickgelu"]
    clip = build_clip(arch, seed=4)
    state = clip.visual.state_dict()
    write_huggingface(tmp_path / "hf", state, clip, arch, {}, "test")
    images = images_of(arch, 2)
    with torch.no_grad():
        seen = CLIPModel.from_pretrained(tmp_path / "hf").eval().get_image_features(images)
        torch.testing.assert_close(features(seen), clip.encode_image(images), rtol=0, atol=1e-5)
    write_open_clip(tmp_path / "open_clip.safetensors", state, clip, {}, "test")
    CLIPVisionModel.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "vision")
    flags = ["--arch", arch.name, "--task", "sun397", "--out", str(tmp_path / "sun397.safetensors")]
    origin = f"openai={tmp_path / 'open_clip.safetensors'}"
    assert main(["import", str(tmp_path / "vision"), *flags, "--origin", origin]) == 0
    found, metadata = read_tower(tmp_path / "sun397.safetensors", arch)
    assert equal(found, state)
    assert metadata["origin"] == "openai"
    assert equal(clip_from(read_checkpoint(tmp_path / "hf").tensors), clip.state_dict())
