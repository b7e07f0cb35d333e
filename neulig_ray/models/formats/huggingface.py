"""The mapping between open_clip's names of a CLIP's tensors and transformers', both ways, bit for bit."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from neulig_ray.errors import InputError
from neulig_ray.models.archs import ARCHS, Arch, plain

State = dict[str, Tensor]
PATCHES = "embeddings.patch_embedding.weight"  # the tensor by which a transformers tower is known

# open_clip -> transformers, each with .weight and .bias
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_VISION = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": PATCHES,
    "ln_pre.weight": "pre_layrnorm.weight",  # transformers' own spelling
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
# transformers' defaults, which its files leave out
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_TEXT_DEFAULTS = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


def config_of(arch: Arch) -> dict[str, Any]:
    """The config.json of transformers' CLIPModel for an arch.

    Raises InputError for an arch that this class cannot express: ResNets, and ViTs of another build.
    """
    vision, text = dict(arch.config["vision_cfg"]), dict(arch.config["text_cfg"])
    layers, width, head = vision.pop("layers"), vision.pop("width"), vision.pop("head_width", 64)
    known = {"image_size", "patch_size", "mlp_ratio"}
    text_known = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
    if isinstance(layers, (list, tuple)):
        raise InputError(
            f"arch {arch.name!r}: Hugging Face's CLIP has no ResNet tower; use open_clip's format"
        )
    if other := sorted({*(vision.keys() - known), *(text.keys() - text_known)}):
        raise InputError(
            f"arch {arch.name!r}: Hugging Face's CLIP has no equivalent of its {', '.join(other)}; "
            "use open_clip's format"
        )
    shared = {"projection_dim": arch.config["embed_dim"], "hidden_act": arch.activation}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": arch.config["embed_dim"],
        "logit_scale_init_value": 2.6592,
        "vision_config": {
            **_VISION_DEFAULTS,
            **shared,
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": int(width * vision.get("mlp_ratio", 4.0)),
            "num_hidden_layers": layers,
            "num_attention_heads": width // head,
            "image_size": vision.get("image_size", 224),
            "patch_size": vision["patch_size"],
        },
        "text_config": {
            **_TEXT_DEFAULTS,
            **shared,
            "model_type": "clip_text_model",
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4.0)),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "bos_token_id": 49406,
            "eos_token_id": 49407,  # 2, the old default, would pool at the largest id: the same token
        },
    }


def check_config(config: Mapping[str, Any], arch: Arch, where: str, *, text: bool = False) -> None:
    """Raises InputError unless a config.json has the sizes and activation of `arch`: its tower's, or all."""
    kind = config.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise InputError(f"{where}: model_type is {kind!r}, and CLIPs are read: clip or clip_vision_model")
    wanted = config_of(arch)
    parts = [("vision_config", _VISION_DEFAULTS)] + ([("text_config", _TEXT_DEFAULTS)] if text else [])
    for part, defaults in parts:
        given = config if kind == "clip_vision_model" else config.get(part) or {}
        if not isinstance(given, Mapping):
            raise InputError(f"{where}: its {part} is {type(given).__name__}, and not an object of settings")
        for key, default in defaults.items():
            found, asked = given.get(key, default), wanted[part][key]
            if key == "hidden_act" and found != asked:
                twin = f"{plain(arch.name)}-quickgelu" if found == "quick_gelu" else plain(arch.name)
                remedy = f": use the arch {twin}" if twin != arch.name and twin in ARCHS else ""
                raise InputError(
                    f"{where}: its activation is {found!r}, that of {arch.name} is {asked!r}{remedy}"
                )
            if found != asked and key != "projection_dim":  # a tower without projection keeps the default
                raise InputError(
                    f"{where}: {part}.{key} is {found}, but {asked} in {arch.name}: name its own arch"
                )


def tower_from(tensors: Mapping[str, Tensor]) -> State:
    """A visual tower in open_clip's names, of a CLIPVisionModel (whose `proj` is missing) or a CLIPModel.

    Tensors of the text side, and `position_ids` of old files, are left out.
    """
    prefix = next(name for name in tensors if name.endswith(PATCHES)).removesuffix(PATCHES)
    state = _from(_under(tensors, prefix), _VISION, "transformer.")
    projection = f"{prefix.removesuffix('vision_model.')}visual_projection.weight"
    if projection in tensors:
        state["proj"] = tensors[projection].T.contiguous()
    return state


def clip_from(tensors: Mapping[str, Tensor]) -> State:
    """A whole CLIP in open_clip's names, of a CLIPModel."""
    state = {f"visual.{name}": tensor for name, tensor in tower_from(tensors).items()}
    state |= _from(_under(tensors, "text_model."), _TEXT, "transformer.")
    if "text_projection.weight" in tensors:
        state["text_projection"] = tensors["text_projection.weight"].T.contiguous()
    if "logit_scale" in tensors:
        state["logit_scale"] = tensors["logit_scale"].reshape(())
    return state


def clip_to(state: Mapping[str, Tensor]) -> State:
    """A whole CLIP in the names of transformers' CLIPModel, from open_clip's."""
    visual = _under(state, "visual.")
    text = {name: tensor for name, tensor in state.items() if not name.startswith("visual.")}
    found = {
        "logit_scale": text["logit_scale"].reshape(()),
        "visual_projection.weight": visual["proj"].T.contiguous(),
        "text_projection.weight": text["text_projection"].T.contiguous(),
    }
    found |= {f"vision_model.{name}": tensor for name, tensor in _to(visual, _VISION)}
    found |= {f"text_model.{name}": tensor for name, tensor in _to(text, _TEXT)}
    return found


def _under(tensors: Mapping[str, Tensor], prefix: str) -> State:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _from(tensors: Mapping[str, Tensor], names: Mapping[str, str], blocks: str) -> State:
    state = {ours: tensors[theirs] for ours, theirs in names.items() if theirs in tensors}
    layer = 0
    while f"encoder.layers.{layer}.layer_norm1.weight" in tensors:
        theirs, ours = f"encoder.layers.{layer}.", f"{blocks}resblocks.{layer}."
        for kind in ("weight", "bias"):
            parts = [tensors.get(f"{theirs}self_attn.{p}_proj.{kind}") for p in "qkv"]
            if all(part is not None for part in parts):
                state[f"{ours}attn.in_proj_{kind}"] = torch.cat([p for p in parts if p is not None])
            for mine, other in _BLOCK.items():
                if (tensor := tensors.get(f"{theirs}{other}.{kind}")) is not None:
                    state[f"{ours}{mine}.{kind}"] = tensor
        layer += 1
    return state


def _to(state: Mapping[str, Tensor], names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    for ours, theirs in names.items():
        yield theirs, state[ours]
    layer = 0
    while (ours := f"transformer.resblocks.{layer}.") + "ln_1.weight" in state:
        theirs = f"encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            for part, tensor in zip("qkv", state[f"{ours}attn.in_proj_{kind}"].chunk(3), strict=True):
                yield f"{theirs}self_attn.{part}_proj.{kind}", tensor.contiguous()
            for mine, other in _BLOCK.items():
                yield f"{theirs}{other}.{kind}", state[f"{ours}{mine}.{kind}"]
        layer += 1
