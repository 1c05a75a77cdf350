"""YAML with the line of each value, and nothing that a policy has no use for: no tags, no duplicate keys, no depth."""

from typing import Any

import yaml

from streams.errors import PolicyError

__all__ = ["Path", "place", "read_yaml"]

_DEEPEST, _LONGEST = 32, 100_000

Path = tuple[str, ...]
"""Where a value stands: the keys that lead to it."""


def read_yaml(data: bytes, file: str) -> tuple[Any, dict[Path, int]]:
    """Return a document and the line of each value; `file` is its name in messages.

    Raises:
        PolicyError: it is not YAML as it is wanted here.
    """
    kind = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    lines: dict[Path, int] = {}
    try:
        _refuse_depth(kind(data))
    except yaml.YAMLError as error:
        raise _not_yaml(file, error) from None
    loader = kind(data)
    try:
        node = loader.get_single_node()
        return (None if node is None else _construct(loader, node, (), lines)), lines
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _not_yaml(file, error) from None
    finally:
        loader.dispose()


def _not_yaml(file: str, error: Exception) -> PolicyError:
    if not isinstance(error, yaml.MarkedYAMLError):
        return PolicyError(file, ["it is not YAML in UTF-8"])
    mark = error.problem_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return PolicyError(file, [f"{where}it is not YAML: {error.problem}"])


def _refuse_depth(loader: Any) -> None:
    # The loader walks nodes by recursion in C, which ends the process where this ends the reading.
    depth = 0
    try:
        while not loader.check_event(yaml.StreamEndEvent):
            event = loader.get_event()
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise yaml.MarkedYAMLError(problem="nested deeper than any policy", problem_mark=event.start_mark)
    finally:
        loader.dispose()


_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


def _construct(loader: Any, node: yaml.Node, path: Path, lines: dict[Path, int]) -> Any:
    # An alias is constructed anew wherever it stands, so that each place has its line; this bounds what that can cost.
    if len(lines) > _LONGEST or len(path) > _DEEPEST:
        raise yaml.MarkedYAMLError(problem="aliases make it larger than any policy", problem_mark=node.start_mark)
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN_TAGS:
        raise yaml.MarkedYAMLError(problem=f"tag `{node.tag}` has no meaning here", problem_mark=node.start_mark)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _scalar(loader, key_node) if key_node.tag == "tag:yaml.org,2002:str" else None
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem="wanted a name as a key", problem_mark=key_node.start_mark)
            if key in mapping:
                raise yaml.MarkedYAMLError(problem=f"`{key}` is given twice", problem_mark=key_node.start_mark)
            mapping[key] = _construct(loader, value_node, (*path, key), lines)
            lines[(*path, key)] = key_node.start_mark.line + 1
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*path, str(index)), lines) for index, item in enumerate(node.value)]
    return _scalar(loader, node)


def _scalar(loader: Any, node: yaml.Node) -> Any:
    try:
        return loader.construct_object(node)
    except ValueError:
        message = "the value cannot be read; put it in quotes"
        raise yaml.MarkedYAMLError(problem=message, problem_mark=node.start_mark) from None


def place(lines: dict[Path, int], path: Path) -> str:
    """Return a place in words, as in `line 7, purposes.ads.rung`."""
    at = path
    while at and at not in lines:
        at = at[:-1]
    return f"line {lines.get(at, 1)}, {'.'.join(path) or 'policy'}"
