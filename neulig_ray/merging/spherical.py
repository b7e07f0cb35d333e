"""Tensors as directions on a sphere: what SLERP, multi-SLERP and the Karcher mean share.

Each of them gives a linear combination sum_i c_i x_i of the n tensors of one name, with coefficients that
depend on the tensors' inner products alone. So a first pass collects those, one (n, n) matrix a tensor, and
the merge is elementwise: memory depends neither on n nor on the largest tensor.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch

from neulig_ray.errors import NotApplicable
from neulig_ray.merging.models import Models
from neulig_ray.merging.options import About

On = Annotated[
    Literal["weights", "deltas"], About("what lies on the sphere: parameters, or differences from the base")
]
Coefficients = dict[str, torch.Tensor]
TINY = 1e-8  # a norm, or the sine of an angle, that directions cannot be told from
# The length of a mean of unit vectors, or the sine of an angle near pi, that cannot be told from none: inner
# products are exact to 1e-15 or so, lengths and angles there to the root of it.
CANCELLED = 1e-5
_SMALLEST = torch.finfo(torch.float32).tiny
_LOSS = 32  # how many times larger than the result terms may be that are added up in float32


def check_base(method: str, models: Models, on: str) -> None:
    """Raises NotApplicable where the base is wanted and missing, as for experts of different origins."""
    if on == "deltas" and models.base is None:
        raise NotApplicable(
            f"{method} on deltas needs the base model: give its origin, or use on = 'weights'"
        )


def coefficients(
    models: Models, on: str, rule: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Coefficients:
    """name -> c (n,): what `rule` makes of each tensor's norms (n,) and cosines (n, n), both float64.

    The cosines of a zero tensor are zero. In float64: models of one origin are at small angles. c is float32,
    or float64 where the sum of the c_i x_i would be lost to rounding in float32.
    """
    products: dict[str, torch.Tensor] = {}
    for piece, found in models.map("angles", _products, elementwise=True, on=on):
        products[piece.name] = products[piece.name] + found if piece.name in products else found
    return {name: _precise_enough(rule(*_angles(gram)), gram) for name, gram in products.items()}


def _precise_enough(c: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    terms = c.abs() @ gram.diagonal().sqrt()
    result = (c @ gram @ c).clamp(min=0).sqrt()
    narrow = c.float()
    held = narrow.isfinite().all() and (narrow.abs() >= _SMALLEST)[c != 0].all()
    return narrow if held and terms <= _LOSS * result else c


def _products(tensors: torch.Tensor, *, base: torch.Tensor | None = None, on: str) -> torch.Tensor:
    rows = vectors(tensors, base, on).double()
    return rows @ rows.T


def _angles(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    norms = gram.diagonal().sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0)
    return norms, (gram * inverse * inverse[:, None]).clamp(-1, 1)


def vectors(tensors: torch.Tensor, base: torch.Tensor | None, on: str) -> torch.Tensor:
    """The tensors (n, size), or their differences from the base."""
    if on == "weights":
        return tensors
    assert base is not None, "refused by check_base"
    return tensors - base


def combine(
    tensors: torch.Tensor, base: torch.Tensor | None, on: str, coefficients: torch.Tensor
) -> torch.Tensor:
    """sum_i c_i x_i of tensors (n, size), or of their differences from the base, and then on top of it."""
    found = (coefficients @ vectors(tensors, base, on).to(coefficients.dtype)).float()
    return found + base if on == "deltas" and base is not None else found
