"""The user's project file, config.yml, as `rnow` has it: the parts that commands take options from."""

from pathlib import Path
from typing import Any

from ..errors import InputError


def read_section(config: Path, section: str) -> list[tuple[str, Any, int]]:
    """(key, value, line) of a section of config.yml; nothing where there is none. Raises InputError for broken YAML."""
    import yaml

    try:
        text = config.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(config, None, f"cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        raise InputError(config, line, f"not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        return []
    found = next((value for key, value in node.value if key.value == section), None)
    if content.get(section) is None or found is None:
        return []
    if not isinstance(found, yaml.MappingNode) or not isinstance(content[section], dict):
        raise InputError(config, found.start_mark.line + 1, f"{section}: expected `key: value` lines")
    lines = {str(key.value): key.start_mark.line + 1 for key, _ in found.value}
    return [(str(key), value, lines.get(str(key), 0)) for key, value in content[section].items()]
