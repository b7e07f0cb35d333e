"""Archs by name, the activation that goes with each pretrained tag, and where origins come from."""

import dataclasses
import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip import pretrained

from neulig_ray.config import Experiment
from neulig_ray.errors import InputError
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_clip
from neulig_ray.models.foreign.export import whole_clip, write_open_clip
from neulig_ray.models.foreign.origins import open_origin
from neulig_ray.models.foreign.tags import check_tag
from neulig_ray.models.sources import parse_origin
from neulig_ray.models.weights import tower_spec
from neulig_ray.stages.origins import FILE, load_clip, plan_origin, store_file
from neulig_ray.stages.plan import make_plan
from neulig_ray.stages.storage import Storage
from neulig_ray.training.optimisation import scheduled

PAPER = ("RN50", "ViT-B-32", "ViT-B-16", "ViT-L-14")
REAL = Experiment(
    name="real", archs=("ViT-B-32-quickgelu",), origins=("openai",), tasks=("digits", "textures"), n=(2,)
)
HUB = "somebody/a-clip"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub's library, which the tests' environment keeps from asking the hub itself."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def place(cache: Path, repository: str, **files: bytes) -> None:
    """Files of a repository, as a download would have left them in the cache."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text("0" * 40)
    folder = root / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)


def checkpoint(tmp_path: Path, name: str = "tiny-vit", seed: int = 5) -> tuple[Path, dict[str, torch.Tensor]]:
    """An open_clip checkpoint of random weights, and its state."""
    clip = build_clip(ARCHS[name], seed=seed)
    path = tmp_path / f"{name}-{seed}.safetensors"
    write_open_clip(path, clip.visual.state_dict(), clip, {"arch": name}, "test")
    return path, whole_clip(clip.visual.state_dict(), clip)


def same(clip, state) -> bool:
    found = clip.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


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


# Origins by name


@pytest.mark.parametrize(
    ("given", "name", "kind"),
    [
        ("seed-3", "seed-3", "seed"),
        ("openai", "openai", "tag"),
        ("weights/my.clip.safetensors", "my.clip", "path"),
        ("finetuned.pt", "finetuned", "path"),
        ("./folder/clip", "clip", "path"),
        ("hf-hub:laion/CLIP-ViT-B-32", "CLIP-ViT-B-32", "hub"),
        ("laion=hf-hub:laion/CLIP-ViT-B-32", "laion", "hub"),
        ("openai=/models/ViT-B-32.pt", "openai", "path"),
    ],
)
def test_origins_have_short_names(given, name, kind):
    source = parse_origin(given)
    assert (source.name, source.kind) == (name, kind)


@pytest.mark.parametrize("given", ["some@where.safetensors", "dir/a+b.pt", "x=seed-1"])
def test_a_name_that_would_break_keys_is_refused(given):
    with pytest.raises(InputError, match="name"):
        parse_origin(given)


def test_several_origins_of_one_arch_each_have_their_own_experts_and_heads():
    plan = make_plan(
        dataclasses.replace(REAL, origins=("openai", "laion400m_e32", "other=hf-hub:a/b"), mixed_origins=(2,))
    )
    assert [origin.label for origin in plan.origins] == [
        "ViT-B-32-quickgelu/openai", "ViT-B-32-quickgelu/laion400m_e32", "ViT-B-32-quickgelu/other",
    ]  # fmt: skip
    assert len({origin.artifact.fingerprint for origin in plan.origins}) == 3
    assert all(origin.fetch and origin.job is None for origin in plan.origins)
    assert len(plan.experts) == len(plan.heads) == 6
    assert "openai+laion400m_e32+other" in {group.origin for group in plan.groups}


def test_two_origins_of_one_name_are_refused():
    with pytest.raises(InputError, match=r"two of them are called 'clip'"):
        make_plan(dataclasses.replace(REAL, origins=("hf-hub:a/clip", "hf-hub:b/clip")))


# Origins as artifacts


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_open_clip_checkpoint_becomes_an_origin_in_full_precision(suffix, tmp_path):
    clip = build_clip(ARCHS["tiny-rn"], seed=7)
    path = tmp_path / f"mine{suffix}"
    write_open_clip(path, clip.visual.state_dict(), clip, {}, "test")
    storage = Storage(str(tmp_path / "storage"))
    origin = plan_origin(Experiment(name="x"), "tiny-rn", str(path))
    assert (origin.name, origin.path) == ("mine", path)
    store_file(origin, storage)
    assert same(load_clip(storage, origin.artifact, "tiny-rn"), clip.state_dict())
    info = storage.manifest(origin.artifact)["info"]
    assert info["source"] == path.name
    assert len(info["sha256"]) == 64


def test_the_training_checkpoint_of_a_wrapped_model_is_an_origin(tmp_path):
    clip = build_clip(ARCHS["tiny-vit"], seed=3)
    state = {f"module.{name}": tensor for name, tensor in clip.state_dict().items()}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}}
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer}, tmp_path / "epoch_3.pt"
    )
    opened = open_origin(ARCHS["tiny-vit"], parse_origin(str(tmp_path / "epoch_3.pt")))
    assert same(opened.clip, clip.state_dict())


def test_a_tower_alone_is_no_origin(tmp_path):
    path = tmp_path / "tower.pt"
    state = build_clip(ARCHS["tiny-vit"]).visual.state_dict()
    torch.save({f"visual.{name}": tensor for name, tensor in state.items()}, path)
    with pytest.raises(InputError, match=r"tower\.pt has no text tower.*neulig import"):
        open_origin(ARCHS["tiny-vit"], parse_origin(str(path)))


def test_a_file_that_is_called_as_a_tag_is_held_to_the_tags_activation(tmp_path):
    path, _ = checkpoint(tmp_path)
    with pytest.raises(InputError, match="use the arch ViT-B-32-quickgelu"):
        make_plan(dataclasses.replace(REAL, archs=("ViT-B-32",), origins=(f"openai={path}",)))


def test_a_tag_is_fetched_once_by_a_job_and_named_by_arch_and_tag(tmp_path, hub_cache, monkeypatch):
    entry = {"hf_hub": f"{HUB}/", "quick_gelu": True}
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-vit", {"made_up": entry})
    path, state = checkpoint(tmp_path)
    place(hub_cache, HUB, open_clip_model__safetensors=path.read_bytes())
    storage = Storage(str(tmp_path / "storage"))
    origin = plan_origin(Experiment(name="x"), "tiny-vit", "made_up")
    origin.fetch.run(storage)
    assert same(load_clip(storage, origin.artifact, "tiny-vit"), state)
    info = storage.manifest(origin.artifact)["info"]
    assert info["source"] == "tag made_up"
    assert plan_origin(Experiment(name="y", seed=4), "tiny-vit", "made_up").artifact == origin.artifact
    assert storage.load(origin.artifact, FILE)[8:9] == b"{"


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_a_hub_repository_of_either_library_is_an_origin(library, tmp_path, hub_cache):
    from neulig_ray.models.foreign.export import write_huggingface

    arch = ARCHS["tiny-vit"]
    path, state = checkpoint(tmp_path)
    if library == "open_clip":
        config = json.dumps(
            {"model_cfg": dict(arch.config), "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073]}}
        )
        place(
            hub_cache,
            HUB,
            open_clip_config__json=config.encode(),
            open_clip_model__safetensors=path.read_bytes(),
        )
    else:
        clip = build_clip(arch, seed=5)
        write_huggingface(tmp_path / "hf", clip.visual.state_dict(), clip, arch, {}, "test")
        files = {f.name.replace(".", "__"): f.read_bytes() for f in (tmp_path / "hf").iterdir()}
        place(hub_cache, HUB, **files)
    origin = plan_origin(Experiment(name="x"), "tiny-vit", f"hf-hub:{HUB}")
    assert origin.name == "a-clip"
    storage = Storage(str(tmp_path / "storage"))
    origin.fetch.run(storage)
    assert same(load_clip(storage, origin.artifact, "tiny-vit"), state)


def test_a_folder_of_another_arch_or_of_other_images_is_refused(tmp_path):
    path, _ = checkpoint(tmp_path)
    path.rename(tmp_path / "open_clip_model.safetensors")
    config = tmp_path / "open_clip_config.json"
    source = parse_origin(str(tmp_path))
    config.write_text(json.dumps({"model_cfg": dict(ARCHS["tiny-rn"].config)}))
    with pytest.raises(InputError, match=r"not of 'tiny-vit' \(differs in vision_cfg"):
        open_origin(ARCHS["tiny-vit"], source)
    plain = {key: value for key, value in ARCHS["tiny-vit"].config.items() if key != "quick_gelu"}
    config.write_text(json.dumps({"model_cfg": plain}))
    with pytest.raises(InputError, match="differs in quick_gelu"):
        open_origin(ARCHS["tiny-vit"], source)
    mean = {"model_cfg": dict(ARCHS["tiny-vit"].config), "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    config.write_text(json.dumps(mean))
    with pytest.raises(InputError, match=r"mean \(0\.5, 0\.5, 0\.5\)"):
        open_origin(ARCHS["tiny-vit"], source)


# No network: what these tests can really see


@pytest.mark.parametrize(
    ("arch", "given", "words"),
    [
        (
            "ViT-B-32-quickgelu",
            "openai",
            ["origin 'openai' of ViT-B-32-quickgelu", "timm/vit_base_patch32_clip_224.openai/resolve/main/"
             "open_clip_model.safetensors", "openai=/path/to/open_clip_model.safetensors"],
        ),
        (
            "tiny-vit",
            f"hf-hub:{HUB}",
            [f"hub repository '{HUB}'", f"{HUB}/resolve/main/config.json", "a-clip=/path/to/folder"],
        ),
    ],
)  # fmt: skip
def test_an_unreachable_hub_tells_what_from_where_and_how_to_do_without(
    arch, given, words, hub_cache, tmp_path
):
    origin = plan_origin(Experiment(name="x"), arch, given)
    with pytest.raises(InputError) as caught:
        origin.fetch.run(Storage(str(tmp_path / "storage")))
    for word in [*words, "cannot be downloaded", "HF_HOME", "HF_HUB_OFFLINE"]:
        assert word in str(caught.value)
    assert not Storage(str(tmp_path / "storage")).exists(origin.artifact)


def test_a_damaged_download_is_named(tmp_path, hub_cache, monkeypatch):
    monkeypatch.setitem(
        pretrained._PRETRAINED, "tiny-vit", {"made_up": {"hf_hub": f"{HUB}/", "quick_gelu": True}}
    )
    path, _ = checkpoint(tmp_path)
    place(hub_cache, HUB, open_clip_model__safetensors=path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"open_clip_model\.safetensors is truncated"):
        open_origin(ARCHS["tiny-vit"], parse_origin("made_up"))
