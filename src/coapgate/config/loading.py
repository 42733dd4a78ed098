"""From a file and the environment to settings, or to every problem at once."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource

from coapgate.config.checks import CHECKS
from coapgate.config.settings import Settings
from coapgate.errors import ConfigError

Tree = dict[str, object]
"""What TOML holds: options, and tables of options."""
Key = tuple[str, ...]
"""An option: its name, or its table's and its own."""
Problem = tuple[str, str]

MAX_FILE_LENGTH = 1 << 20
"""Octets; whoever names a device or an image as the configuration gets an error, not a wait."""

_MESSAGES = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a number",
    "string_type": "must be text",
    "string_pattern_mismatch": "must be text without control characters",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
}
"""pydantic's type of an error -> what follows the option's name."""


def load(file: Path) -> Settings:
    """Read the configuration; variables such as COAPGATE_DTLS__BIND stand above the file.

    Names of files are made absolute: relative ones are relative to the file.

    Raises ConfigError with all that is wrong.
    """
    tree = _read(file)
    environment = EnvSettingsSource(Settings)()
    _merge(tree, environment)
    problems: list[Problem] = []
    wrong: set[Key] = set()
    while True:
        try:
            settings = Settings.model_validate(tree)
            break
        except ValidationError as error:
            # What is wrong is left out and the rest tried again: then the cross-field rules, which
            # need settings to look at, report in the same run.
            for details in error.errors(include_url=False):
                key = tuple(str(part) for part in details["loc"][:2])
                problems.append(_explain(key, details, from_environment=_has(environment, key)))
                wrong.add(key)
                _remove(tree, key)
    for check in CHECKS:
        if wrong.isdisjoint(check.keys) and check.is_broken(settings):
            problems.append((check.message, check.hint))
    if problems:
        raise ConfigError(tuple(problems))
    return _resolve(settings, file.absolute().parent)


def options() -> Iterator[tuple[Key, object]]:
    """Every option, with its default."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            for option, inner in _table(name).model_fields.items():
                yield (name, option), inner.default
        else:
            yield (name,), field.default


def description(key: Key) -> str:
    """What an option is, in a line; a table is told by its name."""
    table = Settings if len(key) == 1 else _table(key[0])
    return table.model_fields[key[-1]].description or f"options of {key[0]} stand below [{key[0]}]"


def _read(file: Path) -> Tree:
    try:
        with file.open("rb") as opened:
            octets = opened.read(MAX_FILE_LENGTH + 1)
    except OSError as error:
        hint = "name a file with --config or COAPGATE_CONFIG"
        raise ConfigError(((f"cannot read {str(file)!r}: {error.strerror}", hint),)) from error
    if len(octets) > MAX_FILE_LENGTH:
        raise ConfigError(((f"{str(file)!r} is too large", "is it a TOML file?"),))
    try:
        return tomllib.loads(octets.decode())
    except UnicodeDecodeError as error:
        hint = f"octet {error.start} is wrong; is it a TOML file?"
        raise ConfigError(((f"{str(file)!r} is not UTF-8", hint),)) from error
    except (ValueError, RecursionError) as error:
        # Besides TOMLDecodeError: numbers of thousands of digits, thousands of brackets.
        hint = 'text stands in quotes, as in root = "coapgate"'
        raise ConfigError(((f"{str(file)!r} is not TOML: {error}", hint),)) from error


def _explain(key: Key, details: ErrorDetails, *, from_environment: bool) -> Problem:
    """One problem in this house's words; what stands for an unknown option is never shown."""
    name = ".".join(key)
    if from_environment:
        name = f"{name} (COAPGATE_{'__'.join(key).upper()})"
    context = details.get("ctx", {})
    if details["type"] == "extra_forbidden":
        return f"{name}: there is no such option", _nearest(key)
    if details["type"] == "coapgate":
        return f"{name}: {context['message']}", context["hint"]
    message = _MESSAGES.get(details["type"], details["msg"]).format(**context)
    return f"{name}: {message}, not {_shown(details['input'])}", description(key)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 64 else text[:61] + "..."


def _nearest(key: Key) -> str:
    """The options that may have been meant."""
    table = Settings if len(key) == 1 else _table(key[0])
    similar = difflib.get_close_matches(key[-1], table.model_fields, n=1)
    if similar:
        return f"did you mean {'.'.join((*key[:-1], similar[0]))}?"
    elsewhere = [".".join(known) for known, _ in options() if known[-1] == key[-1]]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"there are {', '.join(table.model_fields)}"


def _table(name: str) -> type[BaseModel]:
    table = Settings.model_fields[name].annotation
    assert isinstance(table, type)
    assert issubclass(table, BaseModel)
    return table


def _merge(tree: Tree, above: Tree) -> None:
    for name, value in above.items():
        below = tree.get(name)
        if isinstance(below, dict) and isinstance(value, dict):
            _merge(below, value)
        elif not isinstance(value, dict) or below is None:
            tree[name] = value


def _has(tree: Tree, key: Key) -> bool:
    value: object = tree
    for part in key:
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _remove(tree: Tree, key: Key) -> None:
    table: object = tree
    for part in key[:-1]:
        table = table.get(part) if isinstance(table, dict) else None
    if isinstance(table, dict):
        table.pop(key[-1], None)


def _resolve(settings: Settings, base: Path) -> Settings:
    tables: Tree = {}
    for name, table in settings:
        if isinstance(table, BaseModel):
            files = {option: base / value for option, value in table if isinstance(value, Path)}
            tables[name] = table.model_copy(update=files)
    resolved = settings.model_copy(update=tables)
    resolved._base = base
    return resolved
