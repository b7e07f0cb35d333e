"""open_clip's pretrained tags: which arch and activation each is for, and its weights' file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip import pretrained
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

from neulig_ray.errors import InputError
from neulig_ray.models.archs import Arch, plain
from neulig_ray.models.formats import hub
from neulig_ray.models.formats.preprocessing import check_preprocessing


def every() -> list[str]:
    """All tags, in alphabetical order."""
    return sorted({tag for _, tag in pretrained.list_pretrained()})


def known(tag: str) -> bool:
    """Whether open_clip has a pretrained model of that tag."""
    return bool(pretrained.list_pretrained_models_by_tag(tag))


def check_tag(arch: Arch, tag: str) -> dict[str, Any]:
    """open_clip's entry for the tag, for exactly this arch.

    Raises InputError, naming the right arch, for a tag of another arch or activation, and for weights that
    were trained on images prepared in another way than ours.
    """
    entry: dict[str, Any] = pretrained.get_pretrained_cfg(arch.name, tag)
    activation = "quick_gelu" if entry.get("quick_gelu") else "gelu"
    fitting = [name for name in pretrained.list_pretrained_models_by_tag(tag) if _has(name, tag)]
    # Where open_clip has one configuration alone, that is what the weights were trained with, whatever the
    # tag's entry says (roberta-ViT-B-32).
    if not entry or (activation != arch.activation and fitting):
        twin = next((name for name in fitting if plain(name) == plain(arch.name)), None)
        if twin is not None:
            needed = "plain GELU" if arch.activation == "quick_gelu" else "QuickGELU"
            raise InputError(
                f"origin {tag!r} of {arch.name}: these weights need {needed}, and {arch.name} has "
                f"{arch.activation}: use the arch {twin}"
            )
        own = [t for t in pretrained.list_pretrained_tags_by_model(arch.name) if _has(arch.name, t)]
        raise InputError(
            f"unknown origin {tag!r} of {arch.name}: open_clip has it for {', '.join(fitting) or 'no arch'}. "
            f"For {arch.name} it has {', '.join(own) or 'none'}; seed-K, paths, hf-hub:OWNER/NAME serve too"
        )
    check_preprocessing(entry, f"origin {tag!r} of {arch.name}")
    return entry


def _has(name: str, tag: str) -> bool:
    """Whether the tag's activation is the arch's: open_clip lists QuickGELU weights under both."""
    config = open_clip.get_model_config(name) or {}
    quick = bool(pretrained.get_pretrained_cfg(name, tag).get("quick_gelu"))
    return bool(config.get("quick_gelu")) == quick


def on_hub(entry: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The hub's repository of an entry and its weights' files there, the preferred first; "" for a URL's."""
    repository, _, file = str(entry.get("hf_hub", "")).rpartition("/")
    if file:
        return repository, [str(Path(file).with_suffix(".safetensors")), file]
    return repository, [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]


def from_url(entry: Mapping[str, Any]) -> Path:
    """Where open_clip keeps the file that it downloads from an entry's URL."""
    return Path("~/.cache/clip").expanduser() / Path(str(entry.get("url", ""))).name


def download_tag(arch: Arch, tag: str) -> Path:
    """The file of the tag's weights, downloaded unless it lies in the cache.

    Raises InputError as `check_tag`, and `hub.explained`.
    """
    entry = check_tag(arch, tag)
    repository, files = on_hub(entry)
    what, url = f"origin {tag!r} of {arch.name}", str(entry.get("url", ""))
    if not repository:
        with hub.explained(what, [url], f"{tag}=/path/to/{Path(url).name}"):
            return Path(pretrained.download_pretrained(entry))
    with hub.explained(what, [hub.url(repository, f) for f in files], f"{tag}=/path/to/{files[0]}"):
        return hub.first(repository, files)
