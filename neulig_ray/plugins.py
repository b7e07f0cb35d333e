"""Files outside the package that add tasks, archs, methods, granularities: imported on every node too."""

import hashlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from neulig_ray.errors import InputError


@dataclass(frozen=True)
class Plugin:
    """A plugin file's name and text: what travels to the nodes, where the file itself may not be."""

    name: str
    text: str

    @property
    def module(self) -> str:
        """The module it becomes. The content's hash is part of it, and so of every fingerprint."""
        return f"neulig_plugin_{Path(self.name).stem}_{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"


class _Loader(importlib.abc.ExecutionLoader):
    """Imports a plugin from its text, which tracebacks and inspect find here: no file is left on a node."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    def get_filename(self, fullname: str) -> str:
        return f"{fullname}/{self._plugin.name}"

    def get_source(self, fullname: str) -> str:
        return self._plugin.text


def read_plugins(paths: Iterable[str]) -> tuple[Plugin, ...]:
    """Read the files; raises InputError for one that is not there, or is no text."""
    plugins = []
    for path in paths:
        try:
            data = Path(path).read_bytes()
            plugins.append(Plugin(Path(path).name, importlib.util.decode_source(data)))
        except (OSError, ValueError, SyntaxError) as error:  # no such encoding, or not in it
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise InputError(f"--plugins {path!r}: {reason}") from error
    return tuple(plugins)


def load_plugins(plugins: Iterable[Plugin]) -> None:
    """Import the plugins, once each in a process; raises InputError naming the file that fails."""
    for plugin in plugins:
        if plugin.module in sys.modules:
            continue
        spec = importlib.util.spec_from_loader(plugin.module, _Loader(plugin))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[plugin.module] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[plugin.module]
            raise InputError(
                f"plugin {plugin.name!r} does not import: {type(error).__name__}: {error}"
            ) from error
