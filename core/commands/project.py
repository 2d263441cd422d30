"""YAML files of the user: their content with the lines of their keys, and single sections of config.yml."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import yaml


def parse_yaml(path: Path) -> "tuple[Any, yaml.Node | None]":
    """A YAML file's content, and the node it was made of, which knows its lines (both None for an empty file).

    Raises InputError for a file that is not there or cannot be read, and for broken YAML.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(path, None, "no such file. Name an existing one with --config.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, None, f"cannot be read: {error}") from None
    try:
        # Parsed twice, because making the content of a node writes merged keys (<<) into it.
        return yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise InputError(path, None, "not YAML that can be read: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        raise InputError(path, line, f"not YAML: {getattr(error, 'problem', None) or error}") from None


def read_section(config: Path, section: str) -> list[tuple[str, Any, int]]:
    """(key, value, line) of a section of config.yml; nothing where there is none. Raises InputError for broken YAML."""
    import yaml

    content, node = parse_yaml(config)
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        return []
    found = next((value for key, value in node.value if key.value == section), None)
    if content.get(section) is None or found is None:
        return []
    if not isinstance(found, yaml.MappingNode) or not isinstance(content[section], dict):
        raise InputError(config, found.start_mark.line + 1, f"{section}: expected `key: value` lines")
    lines = {str(key.value): key.start_mark.line + 1 for key, _ in found.value}
    return [(str(key), value, lines.get(str(key), 0)) for key, value in content[section].items()]
