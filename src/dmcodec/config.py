"""Strict records and the TOML files that fill them.

Every configuration in the package is a frozen pydantic record that refuses unknown keys. This
module reads one TOML file into such a record and applies `--set a.b=c` on the way. What the keys
mean is written beside the class that each record configures.
"""

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError


class Record(BaseModel):
    """Base of all configuration records: immutable, unknown keys are errors.

    Infinity, where a key allows it, survives being saved as JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class ConfigError(ValueError):
    """A configuration file, a key in it or a `--set` that cannot be used."""


AnyRecord = TypeVar("AnyRecord", bound=BaseModel)


def parse_assignment(assignment: str) -> tuple[list[str], Any]:
    """Splits one `a.b=value` into its key path and its value.

    The value is read as TOML (`3`, `0.5`, `true`, `[1, 2]`, `"text"`); what is not one TOML value
    is text. Nothing after the `=` is refused: most often a shell variable was empty.
    """
    key, _, text = assignment.partition("=")
    path = [name.strip() for name in key.split(".")]
    if not text.strip() or not all(path):
        raise ConfigError(f"cannot use --set {assignment!r}: write key=value or group.key=value")
    try:
        table = _parse_toml(f"value = {text}")
    except ValueError:
        table = {}
    is_one_value = table.keys() == {"value"}
    return path, table["value"] if is_one_value else text.strip()


def apply_assignments(table: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Returns a copy of a nested table with each `a.b=value` set; missing groups are created."""
    result = _copy_tables(table)
    for assignment in assignments:
        path, value = parse_assignment(assignment)
        group = result
        for name in path[:-1]:
            group = group.setdefault(name, {})
            if not isinstance(group, dict):
                raise ConfigError(f"cannot use --set {assignment!r}: {name!r} is not a group")
        group[path[-1]] = value
    return result


def load_config(
    path: Path, record: type[AnyRecord], assignments: list[str] | None = None
) -> AnyRecord:
    """Reads a TOML file into a record; relative paths in it are left as they are.

    Raises FileNotFoundError for a missing file and ConfigError naming each wrong key otherwise.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file {path}")
    try:
        table = _parse_toml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return build_record(record, apply_assignments(table, assignments or []), source=str(path))


def build_record(record: type[AnyRecord], table: dict[str, Any], *, source: str) -> AnyRecord:
    """Validates a table; raises ConfigError with one line for each key that is wrong."""
    try:
        return record.model_validate(table)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(lines)) from error


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says; ValueError for whatever is wrong with it, deep nesting included."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply to be read") from error


def _parse_toml(text: str) -> dict[str, Any]:
    """As `parse_json`, of TOML."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply to be read") from error


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _copy_tables(table: dict[str, Any]) -> dict[str, Any]:
    return {k: _copy_tables(v) if isinstance(v, dict) else v for k, v in table.items()}
