"""Names to components: who offers what, and the code behind a spec on first use."""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advdistill.errors import PluginError, RecipeError, did_you_mean
from advdistill.hooks.manager import Plugin, cause, installed, load_file
from advdistill.hooks.origin import Origin
from advdistill.hooks.specs import KINDS, CommandSpec, Spec

# Names of the public API, looked up there on first use: listing plugins must not import torch.
_BASES = {
    "teacher": "VisionLanguageModel",
    "student": "VisionLanguageModel",
    "attack": "Attack",
    "strategy": "Strategy",
    "dataset": "Dataset",
    "reporter": "Reporter",
}
_RESERVED = {"use", "train"}


@dataclass(frozen=True)
class Entry:
    """A spec and the plugin that offers it."""

    spec: Spec
    plugin: Plugin

    @property
    def qualified(self) -> str:
        """`dist:name`, or `file-stem:name` for a single-file plugin."""
        return f"{self.plugin.dist or self.plugin.name}:{self.spec.name}"


class Registry:
    """What a set of plugins offers.

    Args:
        plugins: as `advdistill.hooks.manager` found them, broken ones included.
    """

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self.plugins: tuple[Plugin, ...] = tuple(plugins)
        self._entries = [
            Entry(offer, plugin) for plugin in self.plugins for offer in plugin.offers if isinstance(offer, Spec)
        ]

    @property
    def broken(self) -> list[Plugin]:
        """The plugins that could not be imported or asked."""
        return [plugin for plugin in self.plugins if plugin.error]

    def with_files(self, files: Iterable[str | Path]) -> Registry:
        """This registry and the single-file plugins at `files`; one that is in already is not added again.

        Raises:
            PluginError: a file is missing.
        """
        known = {plugin.sha256 for plugin in self.plugins if plugin.file}
        added = {plugin.sha256: plugin for plugin in map(load_file, files) if plugin.sha256 not in known}
        return Registry([*self.plugins, *added.values()]) if added else self

    def entries(self, kind: str | None = None) -> list[Entry]:
        """Entries of one kind, or of all, those of broken plugins left out; sorted by kind and name."""
        found = [e for e in self._entries if not e.plugin.error and kind in (None, e.spec.kind)]
        return sorted(found, key=lambda e: (list(KINDS).index(e.spec.kind), e.spec.name, e.qualified))

    def names(self, kind: str) -> list[str]:
        """Every name that `get(kind, name)` would take, unqualified."""
        return sorted({entry.spec.name for each in _served_by(kind) for entry in self.entries(each)})

    def get(self, kind: str, name: str) -> Entry:
        """Who offers `name`.

        Args:
            kind: a key of `specs.KINDS`; a "teacher" may also be any student.
            name: as written after `use:`; `dist:name` or `plugin:name` says whose.

        Raises:
            RecipeError: nobody offers it; the message suggests a close name.
            PluginError: its plugin is broken, or several plugins offer it.
        """
        owner, _, bare = name.rpartition(":")
        for each in _served_by(kind):
            found = [
                entry
                for entry in self._entries
                if entry.spec.kind == each
                and entry.spec.name == bare
                and (not owner or owner in (entry.plugin.dist, entry.plugin.name))
            ]
            found = [entry for entry in found if not entry.plugin.error] or found
            if len(found) > 1:
                ways = [entry.qualified for entry in found]
                if len(set(ways)) < len(ways):
                    ways = [f"{entry.plugin.name}:{bare}" for entry in found]
                raise PluginError(
                    f"{each} {bare!r} is offered by {' and by '.join(entry.plugin.label for entry in found)}",
                    f"Say which: use: {' or use: '.join(ways)}.",
                )
            if found:
                return self._working(found[0])
        raise self._unknown(kind, owner, bare)

    def load(self, spec: Spec, what: str = "target") -> Any:
        """The object behind `spec.target`, `spec.config`, `spec.check` or `spec.origin`, imported now and checked.

        Returns:
            A class (target, config), function (check) or `Origin`; None where the spec names none.

        Raises:
            PluginError: it cannot be imported or is not what it should be.
        """
        reference = getattr(spec, what)
        if reference is None:
            return None
        try:
            loaded = _import(reference)
            _verify(loaded, spec, what)
        except (Exception, SystemExit) as error:
            owner = next((entry.plugin.label for entry in self._entries if entry.spec is spec), "an unregistered spec")
            raise PluginError(
                f"{spec.kind} {spec.name!r} of plugin {owner}: its {what} {reference!r} cannot be used: {cause(error)}",
                "Repair or reinstall that plugin; -v shows the traceback.",
            ) from error
        return loaded

    def recipe_dirs(self) -> list[tuple[Path, Plugin]]:
        """Folders of recipes that working plugins offer."""
        return [
            (offer, plugin)
            for plugin in self.plugins
            if not plugin.error
            for offer in plugin.offers
            if isinstance(offer, Path)
        ]

    def commands(self) -> dict[str, tuple[CommandSpec, Plugin]]:
        """Subcommands that working plugins offer; of two with one name, neither.

        A command is not worth failing the whole tool for: `plugins list` shows both owners.
        """
        found: dict[str, list[tuple[CommandSpec, Plugin]]] = {}
        for plugin in self.plugins:
            for offer in plugin.offers if not plugin.error else ():
                if isinstance(offer, CommandSpec):
                    found.setdefault(offer.name, []).append((offer, plugin))
        return {name: owners[0] for name, owners in found.items() if len(owners) == 1}

    def conflicts(self) -> list[str]:
        """One line for each name that several working plugins offer."""
        owners: dict[tuple[str, str], list[str]] = {}
        for plugin in self.plugins:
            for offer in plugin.offers if not plugin.error else ():
                if isinstance(offer, (Spec, CommandSpec)):
                    owners.setdefault((offer.kind, offer.name), []).append(plugin.label)
        return [
            f"{kind} {name!r} is offered by {' and by '.join(labels)}"
            for (kind, name), labels in owners.items()
            if len(labels) > 1
        ]

    def _working(self, entry: Entry) -> Entry:
        if entry.plugin.error:
            raise PluginError(
                f"{entry.spec.kind} {entry.spec.name!r} comes from the plugin {entry.plugin.label}, which is broken: "
                f"{entry.plugin.cause}",
                "Repair or reinstall that plugin; `advdistill plugins list` shows the state of all.",
            ) from entry.plugin.error
        return entry

    def _unknown(self, kind: str, owner: str, name: str) -> PluginError | RecipeError:
        if owner:
            owners = [plugin for plugin in self.plugins if owner in (plugin.dist, plugin.name)]
            if not owners:
                return PluginError(
                    f"{kind} '{owner}:{name}' belongs to the plugin {owner!r}, which is not installed",
                    f"Install it: pip install {owner}.",
                )
            suspects = [plugin for plugin in owners if plugin.error]
        else:
            suspects = self.broken
        known = self.names(kind)
        message = f"there is no {kind} named {name!r}"
        if suspects:
            causes = "; ".join(f"{plugin.label}: {plugin.cause}" for plugin in suspects)
            message += f", unless it is one of a plugin's that could not be loaded ({causes})"
        message += did_you_mean(name, known)
        # A broken plugin's names cannot be known. Unless this is all but surely a misspelling, it is the likely owner.
        if suspects and not difflib.get_close_matches(name, known, n=1, cutoff=0.7):
            error = PluginError(message, "Repair or reinstall that plugin, or correct the name.")
            error.__cause__ = suspects[0].error
            return error
        return RecipeError(message, f"Known: {', '.join(known) or 'none'}.")


def _served_by(kind: str) -> Sequence[str]:
    return ("teacher", "student") if kind == "teacher" else (kind,)


def _import(reference: Any) -> Any:
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _verify(loaded: Any, spec: Spec, what: str) -> None:
    if what == "check":
        if not callable(loaded):
            raise TypeError("it is not a function")
        return
    if what == "origin":
        if not isinstance(loaded, Origin):
            raise TypeError("it is not an advdistill.Origin")
        return
    base = getattr(importlib.import_module("advdistill"), "Config" if what == "config" else _BASES[spec.kind])
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise TypeError(f"it is not a subclass of advdistill.{base.__name__}")
    if what == "config" and (taken := _RESERVED & set(getattr(loaded, "model_fields", ()))):
        raise TypeError(f"the field name {taken.pop()!r} is taken by the recipe itself")


@functools.cache
def default_registry() -> Registry:
    """Everything that is installed, loaded once per process."""
    return Registry(installed())
