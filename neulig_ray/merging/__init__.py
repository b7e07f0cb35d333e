"""Merging methods, one file each in `methods`, found through METHODS, and the engine that runs them."""

from neulig_ray.merging._base import METHODS, Method, Tensors
from neulig_ray.merging._declarations import (
    ensemble,
    gated,
    masked,
    measured,
    reference,
    routed,
    streamed,
    trained,
)
from neulig_ray.merging._options import TENTHS, About, Density, Scaling, Seed, tuned

__all__ = [
    "METHODS",
    "TENTHS",
    "About",
    "Density",
    "Method",
    "Scaling",
    "Seed",
    "Tensors",
    "ensemble",
    "gated",
    "masked",
    "measured",
    "reference",
    "routed",
    "streamed",
    "trained",
    "tuned",
]
