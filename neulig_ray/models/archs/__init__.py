"""Architectures: one file each, found by name through ARCHS."""

from neulig_ray.models.archs._base import (
    ARCHS,
    Arch,
    FinetuneRecipe,
    PretrainRecipe,
    override,
    plain,
    register_arch,
)

__all__ = ["ARCHS", "Arch", "FinetuneRecipe", "PretrainRecipe", "override", "plain", "register_arch"]
