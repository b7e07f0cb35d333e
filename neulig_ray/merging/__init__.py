"""Merging methods: one file each, found by name through METHODS."""

from neulig_ray.merging._base import METHODS, Method, ensemble, gated, reference, streamed

__all__ = ["METHODS", "Method", "ensemble", "gated", "reference", "streamed"]
