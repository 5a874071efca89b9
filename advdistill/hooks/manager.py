"""Finds plugins and asks each what it offers, one at a time, so that a bad one never takes the tool down."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from advdistill.errors import PluginError
from advdistill.hooks import builtin, hookspecs

GROUP = "advdistill"


@dataclass(frozen=True)
class Plugin:
    """One plugin: an entry point, a single file, or the host itself.

    Attributes:
        name: the entry point's name, or the file's stem.
        dist: the distribution that ships it; "" for a single file.
        version: of the distribution; "" for a single file.
        offers: the specs and recipe folders its hooks yielded, up to the error if there was one.
        error: the exception that importing it or calling its hooks raised; None: it works.
        file: the single file it is; None for an installed one.
        sha256: of that file's content; "" for an installed one.
    """

    name: str
    dist: str = ""
    version: str = ""
    offers: tuple[Any, ...] = ()
    error: BaseException | None = None
    file: Path | None = None
    sha256: str = ""

    @property
    def cause(self) -> str:
        """The error in one line; "" where there is none."""
        return cause(self.error) if self.error else ""

    @property
    def label(self) -> str:
        """How messages name it: `name (dist version)` or the file."""
        return str(self.file) if self.file else f"{self.name} ({self.dist} {self.version})"


def installed() -> Iterator[Plugin]:
    """The host's own components, then every entry point of the group `advdistill`, working or not."""
    yield _examine(lambda: builtin, name="advdistill", dist="advdistill", version=host_version())
    points = importlib.metadata.entry_points(group=GROUP)
    for point in sorted(points, key=lambda point: (point.dist.name if point.dist else "", point.name)):
        dist, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "")
        yield _examine(point.load, name=point.name, dist=dist, version=version)


def load_file(path: str | Path) -> Plugin:
    """The single-file plugin at `path`. A file that fails to import gives a plugin with its error.

    Raises:
        PluginError: there is no such file.
    """
    file = Path(path).expanduser().resolve()
    try:
        content = file.read_bytes()
    except OSError as error:
        raise PluginError(
            f"cannot read the plugin file {path}: {error.strerror}", "Give the path of a Python file with hookimpls."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    # The digest in the name lets one process hold two versions, and gives one version the same classes each time.
    module_name = f"advdistill_file_{re.sub(r'[^0-9A-Za-z_]', '_', file.stem)}_{digest[:12]}"
    return _examine(lambda: _import_file(file, module_name), name=file.stem, file=file, sha256=digest)


def cause(error: BaseException) -> str:
    """What was raised, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def host_version() -> str:
    """The installed version of advdistill, "0" when it runs from a bare source tree."""
    try:
        return importlib.metadata.version("advdistill")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def _import_file(file: Path, module_name: str) -> ModuleType:
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _examine(load: Callable[[], Any], **identity: Any) -> Plugin:
    offers: list[Any] = []
    error: BaseException | None = None
    try:
        # stdout belongs to results: what a plugin prints while it loads must not end up in `--json`.
        with contextlib.redirect_stdout(sys.stderr):
            manager = pluggy.PluginManager(GROUP)
            manager.add_hookspecs(hookspecs)
            manager.register(load(), identity["name"])
            manager.check_pending()
            for hook, expected in hookspecs.YIELDS.items():
                for result in getattr(manager.hook, hook)():
                    for offer in result:
                        if not isinstance(offer, expected):
                            raise TypeError(f"{hook} yielded {offer!r}, not a {expected.__name__}")
                        offers.append(offer)
    except (Exception, SystemExit) as caught:
        error = caught
    return Plugin(offers=tuple(offers), error=error, **identity)
