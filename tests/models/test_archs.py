"""Archs by name, their recipe, and the activation that goes with each pretrained tag."""

import dataclasses
import json

import open_clip
import pytest
import torch
from open_clip import pretrained

from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.formats.tags import check_tag
from neulig_ray.models.tower_files import tower_spec
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.training.optimisation import scheduled

PAPER = ("RN50", "ViT-B-32", "ViT-B-16", "ViT-L-14")
REAL = Experiment(
    name="real", archs=("ViT-B-32-quickgelu",), origins=("openai",), tasks=("digits", "textures"), n=(2,)
)


# Archs


@pytest.mark.parametrize("name", [n + suffix for n in PAPER for suffix in ("", "-quickgelu")])
def test_the_papers_archs_are_open_clips_configurations(name):
    arch = ARCHS[name]
    assert json.loads(json.dumps(arch.config)) == open_clip.get_model_config(name)
    assert arch.activation == ("quick_gelu" if name.endswith("quickgelu") else "gelu")
    assert arch.token_seed is None
    assert name in list(ARCHS)


def test_any_open_clip_model_with_a_known_tower_is_an_arch_by_its_name():
    arch = ARCHS["ViT-H-14-quickgelu"]
    assert arch.config == open_clip.get_model_config("ViT-H-14-quickgelu")
    assert tower_spec(arch)["conv1.weight"][0] == (1280, 3, 14, 14)
    assert ARCHS["RN101"].config["vision_cfg"]["layers"] == [3, 4, 23, 3]
    assert "ViT-H-14-quickgelu" not in list(ARCHS), "what no file declares is not listed"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("convnext_base", ["timm's convnext_base", "ViT-* or RN*"]),
        ("EVA02-B-16", ["timm's eva02_base_patch16_clip_224"]),
        ("coca_ViT-B-32", ["tokens", "CoCa"]),
        ("ViT-B-23", ["unknown arch 'ViT-B-23'", "'ViT-B-32'"]),
        ("RN100", ["unknown arch 'RN100'", "'RN101'"]),
        ("hf-hub:some/body", ["unknown arch"]),
    ],
)
def test_a_tower_that_we_do_not_know_is_refused(name, words):
    with pytest.raises(InputError) as caught:
        ARCHS[name]
    for word in words:
        assert word in str(caught.value)


def test_shapes_cost_no_weights():
    """300 million parameters of ViT-L-14, named without being made."""
    spec = tower_spec(ARCHS["ViT-L-14-quickgelu"])
    assert spec["proj"] == ((1024, 768), torch.float32)
    assert sum(torch.Size(shape).numel() for shape, _ in spec.values()) == 303_966_208


def test_experts_of_clips_are_made_by_the_fields_recipe():
    arch = ARCHS["ViT-B-32-quickgelu"]
    recipe = arch.recipe("stl10")
    assert (recipe.learning_rate, recipe.weight_decay, recipe.batch_size) == (1e-5, 0.1, 128)
    assert (recipe.epochs, arch.recipe("MNIST").epochs, arch.recipe("fashion-mnist").epochs) == (50, 5, 5)
    assert arch.recipe("somebody's").epochs == arch.finetune.epochs
    rates = [scheduled(step, 2000, recipe.learning_rate, recipe.warmup) for step in range(2000)]
    assert rates[0] == pytest.approx(1e-5 / 500)
    assert rates.index(max(rates)) == 499
    assert max(rates) == pytest.approx(1e-5)
    assert ARCHS["tiny-vit"].recipe("mnist-5k") == ARCHS["tiny-vit"].finetune


# Tags and activations


@pytest.mark.parametrize(
    ("arch", "tag", "right"),
    [
        ("ViT-B-32", "openai", "ViT-B-32-quickgelu"),
        ("ViT-L-14", "openai", "ViT-L-14-quickgelu"),
        ("RN50", "openai", "RN50-quickgelu"),
        ("ViT-B-32", "laion400m_e32", "ViT-B-32-quickgelu"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "ViT-B-32"),
        ("ViT-B-16-quickgelu", "laion400m_e32", "ViT-B-16"),
    ],
)
def test_the_wrong_activation_is_an_error_that_names_the_right_arch(arch, tag, right):
    with pytest.raises(InputError, match=rf"{tag}.*use the arch {right}$"):
        make_plan(dataclasses.replace(REAL, archs=(arch,), origins=(tag,)))
    check_tag(ARCHS[right], tag)


def test_every_tag_of_a_known_arch_is_taken_or_refused_with_the_reason():
    taken: list[bool] = []
    explained: set[bool] = set()
    for name, tag in pretrained.list_pretrained():
        try:
            arch = ARCHS[name]
        except InputError:
            continue
        quick = pretrained.get_pretrained_cfg(name, tag).get("quick_gelu", False)
        try:
            check_tag(arch, tag)
        except InputError as error:
            reasons = ("use the arch", "these weights want images")
            explained.add(any(reason in str(error) for reason in reasons))
        else:
            taken.append((arch.config.get("quick_gelu", False) == quick) or "roberta" in name)
    assert explained == {True}
    assert all(taken)
    assert len(taken) > 50


def test_weights_for_images_prepared_otherwise_are_refused():
    with pytest.raises(InputError, match=r"laion2b_s32b_b82k.*mean \(0\.5, 0\.5, 0\.5\)"):
        check_tag(ARCHS["ViT-L-14"], "laion2b_s32b_b82k")


def test_a_tag_of_another_arch_names_the_archs_that_have_it():
    with pytest.raises(InputError, match=r"'laion2b_s34b_b88k' of ViT-B-32: open_clip has it for ViT-B-16,"):
        check_tag(ARCHS["ViT-B-32"], "laion2b_s34b_b88k")
