"""Models: what open_clip builds, what files of weights may hold, what heads and embeddings are."""

import dataclasses
import hashlib
import json
import pickle

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import normalize

from neulig_ray.errors import InputError
from neulig_ray.models import clip as clip_module
from neulig_ray.models.archs import ARCHS, Arch
from neulig_ray.models.clip import build_clip, build_tower, embed, preprocess, token_table, tokenize
from neulig_ray.models.heads import accuracy, zero_shot_head
from neulig_ray.models.origin_files import load_origin, origin_bytes, shipped
from neulig_ray.models.tower_files import describe, read_tower, tower_bytes, tower_spec, unpack
from neulig_ray.tasks import TASKS
from neulig_ray.weights.metadata import HEADER_KEY

TINY = ("tiny-rn", "tiny-vit")
NEW = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def images(count, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def packed(state, metadata):
    """A file with exactly these tensors and metadata, whether or not ours would ever write it."""
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    return safetensors.torch.save(tensors, None if metadata is None else {HEADER_KEY: json.dumps(metadata)})


# What open_clip builds


@pytest.mark.parametrize("name", TINY)
def test_open_clip_itself_knows_the_tiny_archs(name):
    model = open_clip.create_model(name, load_weights=False)
    tokens = open_clip.get_tokenizer(name)(["a photo of the number 7."])
    assert model.encode_text(tokens).shape == (1, 128)
    assert model.encode_image(torch.zeros(2, 3, 32, 32)).shape == (2, 128)


def test_an_arch_of_a_plugin_needs_nothing_but_its_configuration():
    arch = Arch(name="plugged-in", config=NEW, description="")
    assert embed(build_tower(arch), images(3), arch).shape == (3, 16)
    assert tokenize(["a", "b"], arch).shape == (2, 12)
    assert open_clip.create_model("plugged-in", load_weights=False).visual.image_size == (16, 16)


def test_an_arch_cannot_take_the_name_of_another_configuration():
    with pytest.raises(InputError, match=r"ViT-B-32.*rename"):
        build_clip(Arch(name="ViT-B-32", config=NEW, description=""))


def test_a_configuration_that_open_clip_cannot_build_is_named():
    broken = {**NEW, "vision_cfg": {**NEW["vision_cfg"], "widht": 3}}
    with pytest.raises(InputError, match=r"broken-arch.*widht"):
        build_clip(Arch(name="broken-arch", config=broken, description=""))
    with pytest.raises(InputError, match="text_cfg"):
        build_clip(Arch(name="textless", config={"embed_dim": 8, "vision_cfg": {}}, description=""))


def test_initial_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone():
    arch = ARCHS["tiny-vit"]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (build_clip(arch, seed=s).visual.proj for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_token_table_is_numpys_legacy_stream_frozen_and_of_the_known_hash():
    weight = build_clip(ARCHS["tiny-rn"], seed=3).token_embedding.weight
    assert not weight.requires_grad
    expected = (np.random.RandomState(0).standard_normal((49408, 64)) * 0.02).astype(np.float32)
    assert np.array_equal(weight.numpy(), expected)
    digest = hashlib.sha256(expected.tobytes()).hexdigest()
    assert digest == "8770664f956c038fbcf45d5851c50e751a7bbe754d6d544493e5360eb211769f"


def test_another_numpy_stream_is_noticed(monkeypatch):
    monkeypatch.setitem(clip_module.TOKEN_SHA256, (7, 11, 3), "0" * 64)
    with pytest.raises(RuntimeError, match="token table"):
        token_table(7, 11, 3)


# Images in, embeddings out


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (20, 31)])
def test_preprocessing_is_open_clips_own_transform(size):
    pixels = np.random.default_rng(1).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    transform = open_clip.image_transform(32, is_train=False)
    expected = torch.stack([transform(Image.fromarray(p)) for p in pixels])
    # Resized pixels may round differently by one of 255 levels (standard deviations are about 0.27).
    tolerance = 1e-5 if size == (32, 32) else 1.01 / 255 / 0.26
    torch.testing.assert_close(preprocess(pixels, ARCHS["tiny-rn"]), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", TINY)
def test_embeddings_are_the_towers_in_eval_mode_not_normalised_and_the_mode_is_kept(name):
    arch = ARCHS[name]
    tower = build_tower(arch).train()
    before = {k: v.clone() for k, v in tower.state_dict().items()}
    z = embed(tower, images(5), arch, batch_size=2)
    assert z.dtype == np.float32
    assert tower.training
    assert all(torch.equal(before[k], v) for k, v in tower.state_dict().items()), "BatchNorm was updated"
    with torch.no_grad():
        expected = tower.eval()(preprocess(images(5), arch))
    np.testing.assert_allclose(z, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_embedding_takes_read_only_arrays():
    pixels = images(3)
    pixels.setflags(write=False)
    assert embed(build_tower(ARCHS["tiny-vit"]), pixels, ARCHS["tiny-vit"]).shape == (3, 128)


# Heads


def test_a_head_is_the_scaled_normalised_mean_of_normalised_text_embeddings():
    arch = ARCHS["tiny-vit"]
    clip = build_clip(arch, seed=4)
    names, templates = ("cat", "traffic light"), ("a {}.", "two {}s", "the {}")
    head = zero_shot_head(clip, arch, names, templates)
    tokenizer = open_clip.get_tokenizer("tiny-vit")
    with torch.no_grad():
        for row, name in zip(head, names, strict=True):
            total = sum(normalize(clip.encode_text(tokenizer([t.format(name)]))[0], dim=0) for t in templates)
            expected = clip.logit_scale.exp() * total / total.norm()
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)
    assert not head.requires_grad
    torch.testing.assert_close(head.norm(dim=1), torch.full((2,), 1 / 0.07), rtol=1e-5, atol=0)


def test_accuracy_is_the_percentage_of_largest_cosines_and_refuses_nan():
    head = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    z = torch.tensor([[9.0, 1.0], [0.1, 0.2], [0.0, 5.0], [3.0, 2.0]])
    assert accuracy(z, head, torch.tensor([0, 1, 0, 0])) == 75.0
    with pytest.raises(ValueError, match="NaN"):
        accuracy(torch.full((1, 2), float("nan")), head, torch.tensor([0]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.01, 100))
def test_accuracy_does_not_depend_on_the_scale_of_embeddings(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    z, head = torch.randn(20, 6, generator=generator), torch.randn(4, 6, generator=generator)
    labels = torch.randint(4, (20,), generator=generator)
    assert accuracy(z * scale, head, labels) == accuracy(z, head, labels)


# Files of weights


@pytest.mark.parametrize("name", TINY)
def test_a_tower_comes_back_as_it_was_with_its_metadata(name, tmp_path):
    arch = ARCHS[name]
    tower = build_tower(arch)
    if name == "tiny-rn":
        tower.train()(torch.randn(4, 3, 32, 32))  # BatchNorm statistics that are not the initial ones
    path = tmp_path / "expert.safetensors"
    path.write_bytes(tower_bytes(tower.state_dict(), describe(arch, "tower", origin="seed-0", task="digits")))
    for given_arch in (arch, None):
        state, metadata = read_tower(path, given_arch)
        assert list(state) == list(tower.state_dict())
        for key, value in tower.state_dict().items():
            assert torch.equal(state[key], value)
            assert state[key].dtype == value.dtype
    assert (metadata["task"], metadata["activation"], metadata["format"]) == ("digits", "quick_gelu", 1)
    assert metadata["config"] == json.loads(json.dumps(arch.config))
    build_tower(arch).load_state_dict(state)


def test_half_precision_is_read_as_float32():
    arch = ARCHS["tiny-rn"]
    state = build_tower(arch).state_dict()
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    read, _ = read_tower(tower_bytes(half, describe(arch, "tower")), arch)
    assert {str(v.dtype) for v in read.values()} == {"torch.float32", "torch.int64"}
    assert torch.equal(read["conv1.weight"], state["conv1.weight"].half().float())


def test_nan_is_not_stored():
    state = build_tower(ARCHS["tiny-vit"]).state_dict()
    state["ln_post.bias"] = torch.full_like(state["ln_post.bias"], float("nan"))
    with pytest.raises(ValueError, match=r"ln_post\.bias"):
        tower_bytes(state, describe(ARCHS["tiny-vit"], "tower"))


def _bad_files():
    arch = ARCHS["tiny-vit"]
    state = build_tower(arch).state_dict()
    good = describe(arch, "tower")
    whole = packed(state, good)
    torn = pickle.dumps({"conv1.weight": [1.0]}, protocol=2)
    without = {k: v for k, v in state.items() if k not in ("proj", "ln_post.bias")}
    renamed = {("ln_pre.wieght" if k == "ln_pre.weight" else k): v for k, v in state.items()}
    prefixed = {f"model.visual.{k}": v for k, v in state.items()}
    nan = {**state, "proj": state["proj"].clone().fill_(float("nan"))}
    infinite = {**state, "class_embedding": torch.full_like(state["class_embedding"], float("inf"))}
    config = {**good["config"], "vision_cfg": {**good["config"]["vision_cfg"], "head_width": 64}}
    return {
        "empty": (b"", "not a safetensors file"),
        "text": (b"<html>404 not found</html>", "not a safetensors file"),
        "pickle": (torn, "pickle.*Convert it to safetensors"),
        "zip": (b"PK\x03\x04 archive", "zip.*torch.save.*Convert it to safetensors"),
        "header cut": (whole[:100], "truncated"),
        "tensors cut": (whole[:-10], "truncated"),
        "header spoilt": (whole[:20] + b"\xff" + whole[21:], "damaged"),
        "missing": (packed(without, good), r"lacks 2 tensors: proj, ln_post\.bias"),
        "near miss": (packed(renamed, good), r"ln_pre\.wieght \(near ln_pre\.weight\)"),
        "many names": (packed(prefixed, good), r"and \d+ more"),
        "extra": (packed({**state, "head.bias": torch.ones(3)}, good), r"1 foreign tensors: head\.bias"),
        "shape": (
            packed({**state, "proj": torch.ones(128, 64)}, good),
            r"proj \(128, 64\) instead of \(128, 128\)",
        ),
        "integers": (packed({**state, "proj": state["proj"].long()}, good), "proj int64"),
        "nan": (packed(nan, good), "NaN or infinite values in proj"),
        "inf": (packed(infinite, good), "NaN or infinite values in class_embedding"),
        "no metadata": (packed(state, None), "activation are unknown"),
        "format": (packed(state, {**good, "format": 99}), "format 99"),
        "arch": (packed(state, {**good, "arch": "tiny-rn"}), "arch is 'tiny-rn', but 'tiny-vit' is asked"),
        "activation": (
            packed(state, {**good, "activation": "gelu"}),
            "activation is 'gelu', but 'quick_gelu'",
        ),
        "config": (packed(state, {**good, "config": config}), r"differs in vision_cfg\.head_width"),
        "origin": (packed(state, {**good, "kind": "origin"}), "is an origin"),
    }


@pytest.mark.parametrize("case", _bad_files())
def test_an_unusable_file_is_refused_by_name_and_reason(case, tmp_path):
    data, message = _bad_files()[case]
    path = tmp_path / "suspect.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"(?s)suspect\.safetensors.*{message}"):
        read_tower(path, ARCHS["tiny-vit"])


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02"])
def test_a_header_whose_length_looks_like_a_zip_or_a_pickle_is_still_a_header(start):
    """The first bytes of safetensors are the header's length: one file in 256 begins as pickles do."""
    arch = ARCHS["tiny-vit"]
    state = build_tower(arch).state_dict()
    wanted = int.from_bytes(start, "little") + (0 if start == b"PK" else 1 << 16)
    length = int.from_bytes(tower_bytes(state, describe(arch, "tower", filled=""))[:8], "little")
    data = tower_bytes(state, describe(arch, "tower", filled="x" * (wanted - length)))
    assert data[:2] == start
    assert read_tower(data, arch)[0].keys() == state.keys()


def test_a_file_that_torch_save_wrote_is_refused_unread(tmp_path):
    path = tmp_path / "finetuned.pt"
    torch.save(build_tower(ARCHS["tiny-vit"]).state_dict(), path)
    with pytest.raises(InputError, match=r"finetuned\.pt is a zip file"):
        read_tower(path, ARCHS["tiny-vit"])


def test_a_file_that_is_not_there_and_bytes_with_a_label_are_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.safetensors cannot be read: No such file"):
        read_tower(tmp_path / "gone.safetensors", ARCHS["tiny-vit"])
    with pytest.raises(InputError, match="expert digits@seed-0 is not"):
        read_tower(b"", ARCHS["tiny-vit"], label="expert digits@seed-0")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_no_damage_to_the_header_gets_through_as_another_error(offset, patch):
    arch = ARCHS["tiny-vit"]
    whole = tower_bytes(build_tower(arch).state_dict(), describe(arch, "tower"))
    data = whole[:offset] + patch + whole[offset + len(patch) :]
    try:
        state, _ = read_tower(data, arch)
    except InputError:
        return
    assert {k: (tuple(v.shape), v.dtype) for k, v in state.items()} == dict(tower_spec(arch))


# Origins


@pytest.mark.parametrize("name", TINY)
def test_an_origin_is_the_clip_in_half_precision_without_its_token_table(name):
    arch = ARCHS[name]
    clip = build_clip(arch, seed=9)
    data = origin_bytes(clip, arch, {"origin": "seed-9"})
    assert len(data) < 3_000_000
    assert b"token_embedding" not in data
    metadata = unpack(data)[1]
    assert (metadata["origin"], metadata["arch"], metadata["kind"]) == ("seed-9", name, "origin")
    loaded = load_origin(data, arch).state_dict()
    for key, value in clip.state_dict().items():
        stored = value.is_floating_point() and key != "token_embedding.weight"
        rounded = value.half().float() if stored else value
        assert torch.equal(loaded[key], rounded), key


def test_an_origin_trained_with_another_token_table_is_refused():
    arch = ARCHS["tiny-vit"]
    other = dataclasses.replace(arch, token_seed=1)
    with pytest.raises(InputError, match=r"token table of seed 1.*seed 0"):
        load_origin(origin_bytes(build_clip(other), other, {}), arch)


def test_an_origin_whose_token_table_was_trained_is_not_written():
    arch = ARCHS["tiny-vit"]
    clip = build_clip(arch)
    clip.token_embedding.weight.data[5] += 1
    with pytest.raises(ValueError, match="token table"):
        origin_bytes(clip, arch, {})


def test_a_token_table_that_is_a_weight_like_any_other_is_stored():
    arch = Arch(name="plugged-in", config=NEW, description="", token_seed=None)
    clip = build_clip(arch, seed=2)
    assert clip.token_embedding.weight.requires_grad
    loaded = load_origin(origin_bytes(clip, arch, {}), arch)
    assert torch.equal(loaded.token_embedding.weight, clip.token_embedding.weight.half().float())


def test_an_origin_is_checked_like_a_tower(tmp_path):
    arch = ARCHS["tiny-rn"]
    data = origin_bytes(build_clip(arch), arch, {})
    with pytest.raises(InputError, match="origin of tests is truncated"):
        load_origin(data[:-1], arch, label="origin of tests")
    with pytest.raises(InputError, match="'tiny-vit' is asked"):
        load_origin(data, ARCHS["tiny-vit"])
    with pytest.raises(InputError, match="is a tower, not an origin"):
        load_origin(tower_bytes(build_tower(arch).state_dict(), describe(arch, "tower")), arch)


def test_what_is_shipped_is_small_and_says_how_it_was_made():
    files = [path for name in TINY for seed in (0, 1) if (path := shipped(name, f"seed-{seed}"))]
    assert len(files) == 4
    assert max(path.stat().st_size for path in files) <= 3_000_000
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    for path in files:
        record = json.loads(path.with_suffix(".json").read_text())
        assert {"command", "recipe", "seconds", "date", "zero_shot"} <= record.keys()
    assert shipped("tiny-vit", "seed-99") is None
    assert shipped("tiny-tiny", "seed-0") is None


@pytest.mark.parametrize("name", TINY)
def test_a_shipped_origin_has_the_recorded_accuracy_and_clips_usual_norm(name):
    arch, task = ARCHS[name], TASKS["digits"]
    path = shipped(name, "seed-0")
    clip, val = load_origin(path, arch), task.splits(0)["val"]
    z = embed(clip.visual, val.images, arch)
    head = zero_shot_head(clip, arch, task.class_names, task.templates)
    recorded = json.loads(path.with_suffix(".json").read_text())["zero_shot"]["digits"]["val"]
    measured = accuracy(torch.from_numpy(z), head, torch.from_numpy(val.labels))
    assert measured == pytest.approx(recorded, abs=1.0)
    assert 4 < np.linalg.norm(z, axis=1).mean() < 25, "10 on the mean over the pre-training images"
