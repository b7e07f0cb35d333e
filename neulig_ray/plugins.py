"""Files outside the package that add tasks, archs or methods: imported here and on every node."""

import hashlib
import sys
import tempfile
import types
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


def read_plugins(paths: Iterable[str]) -> tuple[Plugin, ...]:
    """Read the files; raises InputError for one that is not there."""
    plugins = []
    for path in paths:
        try:
            plugins.append(Plugin(Path(path).name, Path(path).read_text()))
        except OSError as error:
            raise InputError(f"--plugins {path!r}: {error.strerror or error}") from error
    return tuple(plugins)


def load_plugins(plugins: Iterable[Plugin]) -> None:
    """Import the plugins, once each in a process; raises InputError naming the file that fails."""
    for plugin in plugins:
        if plugin.module in sys.modules:
            continue
        # A real file, so that tracebacks show its lines and inspect finds its signatures' sources.
        path = Path(tempfile.mkdtemp(prefix="neulig-plugin-")) / plugin.name
        path.write_text(plugin.text)
        module = types.ModuleType(plugin.module)
        module.__file__ = str(path)
        sys.modules[plugin.module] = module
        try:
            exec(compile(plugin.text, str(path), "exec"), module.__dict__)  # noqa: S102 - the user's own file
        except Exception as error:
            del sys.modules[plugin.module]
            raise InputError(
                f"plugin {plugin.name!r} does not import: {type(error).__name__}: {error}"
            ) from error
