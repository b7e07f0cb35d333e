"""Named things that live one to a file: found by importing the files of a package, never listed."""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from neulig_ray.errors import InputError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """The members of one kind. Public files of `package`, not its folders, are imported at the first look-up.

    `elsewhere` names a module for names that no file declares, imported when one is looked up: its
    `find(name)` gives the item or None, its `names()` are the near misses that it adds. What it gives is not
    listed.
    """

    def __init__(self, kind: str, package: str, elsewhere: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._elsewhere = elsewhere
        self._items: dict[str, T] = {}
        self._modules: dict[str, str] = {}
        self._discovered = False

    def register(self, name: str, item: T, *, module: str) -> T:
        """Add what the file `module` declares; raises InputError when another file already took the name."""
        self._discover()
        if self._modules.setdefault(name, module) != module:
            raise InputError(
                f"{self._modules[name]} and {module} both define the {self.kind} {name!r}: rename one of them"
            )
        self._items[name] = item
        return item

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.ispkg and not module.name.startswith("_"):
                importlib.import_module(f"{self._package}.{module.name}")

    def __getitem__(self, name: str) -> T:
        self._discover()
        if name in self._items:
            return self._items[name]
        near: Iterable[str] = ()
        if self._elsewhere is not None:
            other = importlib.import_module(self._elsewhere)
            found: T | None = other.find(name)
            if found is not None:
                return found
            near = other.names()
        remedy = f"`neulig ls {self.kind}s` describes them; --plugins adds a file."
        raise unknown(self.kind, name, self._items, remedy, near=near)

    def module(self, name: str) -> str:
        """The module that declares `name`. A plugin's carries its content's hash: fingerprints use it."""
        self[name]
        return self._modules.get(name, str(self._elsewhere))

    def __contains__(self, name: object) -> bool:
        """Whether a file declares `name`."""
        self._discover()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(sorted(self._items))

    def values(self) -> list[T]:
        return [self._items[name] for name in self]
