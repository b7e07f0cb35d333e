"""Merging methods, one file each in `methods`, found through METHODS, and the engine that runs them."""

from neulig_ray.merging.declare.ensemble import ensemble
from neulig_ray.merging.declare.gated import gated
from neulig_ray.merging.declare.masked import masked
from neulig_ray.merging.declare.measured import measured
from neulig_ray.merging.declare.method import METHODS, Method
from neulig_ray.merging.declare.reference import reference
from neulig_ray.merging.declare.routed import routed
from neulig_ray.merging.declare.streamed import streamed
from neulig_ray.merging.declare.trained import trained
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.merged_models import MergedModels
from neulig_ray.merging.models import Tensors
from neulig_ray.merging.options import TENTHS, About, Density, Scaling, Seed, tuned

__all__ = [
    "METHODS",
    "TENTHS",
    "About",
    "Density",
    "MergeInputs",
    "MergedModels",
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
