"""Tensors that are parts of a weight and no weights: factors of adapters, codes and scales of quantisation.

A weight that is a product of factors is not merged by merging these: mean(A) mean(B) is not mean(A B), and
the mean of codes is no code. Names tell: those that adapters' and quantisers' own programs write.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Final

from neulig_ray.errors import InputError
from neulig_ray.weights.tensor_file import Spec

# What stands between dots in a tensor's name, in lower case. Real modules are called lora_proj, scale, W_q or
# codebook: only what these programs alone write is listed.
_ADAPTERS = {
    "LoRA": r"(\w+_)?lora_(a|b|down|up|mid|embedding_a|embedding_b|e|magnitude_vector)|dora_scale",
    "LoHa": r"hada_(w[12](_[ab])?|t[12])",
    "LoKr": r"lokr_(w[12](_[ab])?|t[12])",
    "VeRA": r"vera_(a|b|lambda_[bd])|randlora_(a|b|lambda|gamma)|vblora_\w+",
    "OFT": r"oft_(blocks|diag|r|s)|boft_[rs]|hra_u",
    "IA3": r"ia3_l",
    "FourierFT": r"fourierft_spectrum",
    # diffusers: to_q_lora.down.weight, lora_linear_layer.up.weight, to_q.lora.down.weight
    "LoRA of diffusers": r"(\w+_)?lora(_linear_layer)?\.(down|up)",
}
# At the end of a name.
_QUANTISED = {
    "GPTQ or AWQ": r"qweight|qzeros|g_idx|wscales|wzeros",
    "bitsandbytes": r"scb|absmax|quant_map|nested_absmax|nested_quant_map|bitsandbytes__\w+",
    "fp8": r"weight_scale_inv|scaled_fp8",
    "compressed-tensors": r"weight_packed|weight_global_scale",
    "QuIP": r"qidxs",
    "PyTorch": r"_packed_params",
    "torchao": r".*[:_]qdata|qdata",
    "quanto": r"(\w+_)?weight\._(data|scale|shift)",
}
_PATTERNS: Final = (
    *(("adapter", program, re.compile(rf"(^|\.)({parts})(\.|$)")) for program, parts in _ADAPTERS.items()),
    *(("quantised", program, re.compile(rf"(^|\.)({parts})$")) for program, parts in _QUANTISED.items()),
)
# Of WHOLE + ending, where WHOLE + partner is there as well: neither name tells anything alone.
_TOGETHER = (
    ("_blocks", "_scales", "quantised", "mxfp4"),
    ("_orig", "_mask", "pruned", "torch.nn.utils.prune"),
)
_ENDINGS = tuple(ending for ending, *_ in _TOGETHER)
_WEIGHT = re.compile(r"(^|[._])weights?$")
_REMEDIES = {
    "adapter": "merge the adapters into their base first (peft: merge_and_unload), and give whole models",
    "quantised": "merge the originals, in float16, bfloat16 or float32, and quantise the result",
    "pruned": "make the pruning permanent first (torch.nn.utils.prune.remove)",
}


def check_factors(label: str, specs: Mapping[str, Spec]) -> None:
    """Raises InputError, naming model, tensor and remedy, for a model whose weights lie there in factors."""
    found = {name: part for name in specs if (part := _kind(name, specs))}
    if not found:
        return
    name, (kind, program) = next(iter(found.items()))
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    share = f"; {integer_share(specs.values())}" if kind == "quantised" else ""
    raise InputError(
        f"{label!r} has no whole weights, it is {'an adapter' if kind == 'adapter' else kind} ({program}: "
        f"{name!r}{more} of {len(specs)} tensors{share}). Parts of weights do not merge as weights do: "
        f"{_REMEDIES[kind]}"
    )


def integer_share(specs: Iterable[Spec]) -> str:
    """How much of a model is integers, for people."""
    found = list(specs)
    integers = sum(spec.nbytes for spec in found if is_integer(spec))
    return f"{integers} of {sum(spec.nbytes for spec in found)} bytes are integers"


def is_integer(spec: Spec) -> bool:
    """Whether a tensor holds integers or booleans."""
    return not spec.dtype.is_floating_point and not spec.dtype.is_complex


def _kind(name: str, specs: Mapping[str, Spec]) -> tuple[str, str] | None:
    """(what the model is, whose format it is) by one of its tensors; None where that is a tensor like any."""
    if found := _by_name(name):
        return found
    for ending, partner, kind, program in _TOGETHER if name.endswith(_ENDINGS) else ():
        if name.endswith(ending) and name.removesuffix(ending) + partner in specs:
            return kind, program
    spec = specs[name]
    # A weight of integers is made of codes, and so is one of floats of a byte: none comes without a scale.
    codes = spec.numel > 1 and _WEIGHT.search(name) if is_integer(spec) else spec.dtype.itemsize == 1
    return ("quantised", f"weights of {spec.dtype}") if codes else None


@functools.lru_cache(maxsize=1 << 16)  # experiments merge the same names hundreds of times
def _by_name(name: str) -> tuple[str, str] | None:
    for kind, program, pattern in _PATTERNS:
        if pattern.search(name.lower()):
            return kind, program
    return None
