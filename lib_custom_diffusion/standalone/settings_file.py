"""Files of settings for `train --config`: TOML or YAML by the flags' names, or the config.json of a training."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from ..storage import named_once, read_text, refuse_twice

_OF_A_RUN = {"checkpoint", "overwrite", "resume_from_checkpoint", "allow_changes"}
"""What config.json says of the run rather than of the training."""
_OF_A_COMMAND = {
    "config": "a file of settings cannot name: it would be a second one",
    "help": "is for the command line alone",
}
"""Flags that are no settings, and why."""


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a file by name. Sections, which kohya's files have, count for nothing.

    `library_version` is among those of a training's config.json.

    Raises UserError if it cannot be read, or says one setting twice.
    """
    if path.suffix.lower() not in _READERS:
        raise UserError(f"{path} is not a settings file: its name must end in .toml, .yaml or .json")
    content = read_text(path, f"the settings in {path}")
    try:
        found = _READERS[path.suffix.lower()](content)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged or of another kind: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} has no settings; write NAME = VALUE, with the names of the flags")
    settings: dict[str, Any] = {}
    for name, value in _flat(found):
        if name in settings:
            raise UserError(f"{path} says {name} twice")
        settings[name] = value
    for name in _OF_A_COMMAND.keys() & settings:
        raise UserError(f"{path} has {name}, which {_OF_A_COMMAND[name]}; leave it out")
    if "library_version" in settings:
        settings = {name: value for name, value in settings.items() if name not in _OF_A_RUN}
    return {name: value for name, value in settings.items() if value is not None}


def as_flags(settings: Mapping[str, Any], switches: set[str]) -> list[str]:
    """The settings as they would be given on the command line. switches: names of flags that take no value.

    Raises UserError for a value that no flag can have.
    """
    flags = []
    for name, value in settings.items():
        if name in switches:
            if not isinstance(value, bool):
                raise UserError(f"{name} is on or off: write true or false, not {value!r}")
            flags.append(f"--{name}" if value else f"--{name}=False")
        elif isinstance(value, (bool, dict)) or _nested(value):
            raise UserError(f"{name} must be a number or a text, not {value!r}")
        else:
            flags.append(f"--{name}={_text(name, value)}")
    return flags


def _text(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ("+" if name.endswith("_token") else ",").join(map(str, value))
    if isinstance(value, float) and value.is_integer():  # as some programs write 100
        return str(int(value))
    return str(value)


def _nested(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, (bool, list, dict)) for each in value)


def _flat(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in found.items():
        pairs += list(value.items()) if isinstance(value, dict) else [(str(name), value)]
    return pairs


def _toml(content: str) -> Any:
    try:
        tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ImportError as error:
        raise UserError("TOML needs Python 3.11, or tomli: pip install tomli; or write YAML") from error
    return tomllib.loads(content)


class _YamlLoader(yaml.SafeLoader):
    """Refuses what YAML's rules forbid and PyYAML passes over: a name twice in one map."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        refuse_twice(names)
        return super().construct_mapping(node, deep)


def _yaml(content: str) -> Any:
    return yaml.load(content, _YamlLoader)


def _json(content: str) -> Any:
    return json.loads(content, object_pairs_hook=named_once)


_READERS = {
    ".toml": _toml,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".json": _json,
}
