"""Origins from everywhere: our files, checkpoints, folders, hub repositories and open_clip's tags."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from neulig_ray.errors import InputError
from neulig_ray.models.archs import Arch
from neulig_ray.models.clip import build_clip, skeleton
from neulig_ray.models.formats.checkpoints import Checkpoint, digest, locate, read_checkpoint
from neulig_ray.models.formats.huggingface import PATCHES, clip_from
from neulig_ray.models.origin_files import load_origin, origin_bytes, shipped
from neulig_ray.models.origin_source import HUB, OriginSource
from neulig_ray.models.tower_files import check_state, spec_of
from neulig_ray.weights.factors import check_factors
from neulig_ray.weights.metadata import HEADER_KEY
from neulig_ray.weights.tensor_file import Spec, TensorFile, looks_safe

_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # in OpenAI's own files


@dataclass(frozen=True)
class LoadedOrigin:
    """An origin's model, float32, in eval mode; `about`: place and sha256, for its artifact's manifest."""

    clip: Any
    about: Mapping[str, str]


def check_origin(arch: Arch, source: OriginSource) -> None:
    """Raises InputError for an origin that there is no way to have, before anything is downloaded or read."""
    if source.kind == "path" and not Path(source.place).expanduser().exists():
        raise InputError(f"origin {source.place!r}: there is no such file or folder")
    if source.kind not in ("tag", "path", "hub"):
        return
    from neulig_ray.models.formats import tags  # imports open_clip: seconds

    if source.kind == "tag" and not tags.known(source.place):
        near = difflib.get_close_matches(source.place, ["seed-0", "seed-1", *tags.every()], n=2)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise InputError(
            f"unknown origin {source.place!r} of {arch.name}.{hint} Use seed-K (K = 0, 1, ...: our own "
            "pre-training; seed-0 and seed-1 of the tiny archs are shipped), an open_clip tag (openai), "
            f"a path (a .safetensors or .pt file, a folder of open_clip or transformers) or {HUB}OWNER/NAME"
        )
    # A file that is called as a tag is taken for the tag's weights, placed by hand.
    if source.kind == "tag" or tags.known(source.name):
        tags.check_tag(arch, source.place if source.kind == "tag" else source.name)


def open_origin(arch: Arch, source: OriginSource) -> LoadedOrigin:
    """The model of an origin, downloaded where it has to be.

    Raises InputError for one that cannot be had or read, or is of another arch or activation; a seed that
    comes with no shipped file is for the pipeline to train.
    """
    check_origin(arch, source)
    if source.kind == "seed":
        path = shipped(arch.name, source.place)
        if path is None:
            raise InputError(
                f"origin {source.place} of {arch.name} is not shipped: make it with `neulig pretrain`, "
                "then name its file"
            )
        return LoadedOrigin(load_origin(path, arch), {"source": path.name, "sha256": digest(path)})
    if source.kind == "tag":
        from neulig_ray.models.formats import tags

        path = tags.download_tag(arch, source.place)
    else:
        path = locate(HUB + source.place if source.kind == "hub" else source.place, source.name)
    if is_ours(path):
        return LoadedOrigin(load_origin(path, arch), {"source": path.name, "sha256": digest(path)})
    checkpoint = read_checkpoint(path)
    named = path.name if source.kind == "path" else f"{source.kind} {source.place}"
    return LoadedOrigin(clip_of(checkpoint, arch), {"source": named, "sha256": checkpoint.sha256})


def is_ours(path: Path) -> bool:
    """Whether a file is a safetensors file that neulig wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return looks_safe(stream.read(64)) and HEADER_KEY in TensorFile(path).metadata


def clip_of(checkpoint: Checkpoint, arch: Arch) -> Any:
    """The whole CLIP of a foreign checkpoint; raises InputError without a text tower, or for another arch."""
    checkpoint.check(arch, text=True)
    where, tensors = checkpoint.where, checkpoint.tensors
    check_factors(where, {name: Spec(tuple(t.shape), t.dtype) for name, t in tensors.items()})
    of_transformers = any(name.endswith(PATCHES) for name in tensors)
    state = clip_from(tensors) if of_transformers else _unwrapped(tensors)
    spec = spec_of(skeleton(arch))
    if not any(name in state for name in spec if not name.startswith("visual.")):
        raise InputError(
            f"{where} has no text tower, which writes the heads: an origin is a whole CLIP (open_clip's, or "
            "transformers' CLIPModel). A tower alone is an expert: `neulig import`"
        )
    if "logit_scale" in state:
        state["logit_scale"] = state["logit_scale"].reshape(spec["logit_scale"][0])
    clip = build_clip(arch)
    clip.load_state_dict(check_state(state, spec, where))
    return clip


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that a wrapper left (module., model.), and without what is no weight."""
    start = next((name for name in tensors if name.endswith("visual.conv1.weight")), "visual.conv1.weight")
    prefix = start.removesuffix("visual.conv1.weight")
    found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return {name: t for name, t in found.items() if name not in _NOT_WEIGHTS}


def foreign_origin_bytes(arch: Arch, source: OriginSource) -> tuple[bytes, dict[str, Any]]:
    """An origin of another project as an origin file of ours, in full precision, and what it was made of."""
    opened = open_origin(arch, source)
    about = {**opened.about, "origin": source.name}
    try:
        return origin_bytes(opened.clip, arch, about, half=False), about
    except ValueError as error:  # another token table than the frozen one of our tiny archs
        raise InputError(f"origin {source.place!r} of {arch.name}: {error}") from error
