"""Plugins that are gone when a test is over."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from neulig_ray.evaluation.granularity import RULES
from neulig_ray.merging import METHODS
from neulig_ray.models.archs import ARCHS
from neulig_ray.results.granularities import GRANULARITIES, OWN
from neulig_ray.tasks import TASKS


@contextmanager
def only_the_packages_own() -> Iterator[None]:
    """Registries without what other tests' plugins added, and afterwards as they were before."""
    registries = (METHODS, ARCHS, TASKS, RULES)
    before = [(set(registry), dict(registry._items), dict(registry._modules)) for registry in registries]
    granularities = dict(GRANULARITIES)
    for name in granularities.keys() - set(OWN):
        del GRANULARITIES[name]
    modules = set(sys.modules)
    for registry in registries:
        for name, module in [*registry._modules.items()]:
            if not module.startswith("neulig_ray."):
                del registry._items[name], registry._modules[name]
    try:
        yield
    finally:
        for registry, (_, items, owners) in zip(registries, before, strict=True):
            registry._items, registry._modules = items, owners
        GRANULARITIES.clear()
        GRANULARITIES.update(granularities)
        for name in set(sys.modules) - modules:
            if name.startswith("neulig_plugin_"):
                del sys.modules[name]
