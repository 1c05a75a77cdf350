"""The policy file: read, checked, and refused with all its findings at once. Reading order:

    text     YAML with the line of each value
    model    a policy as it is written
    check    what the types alone do not say

Rules of this package:
- Unknown keys, duplicate keys and values of the wrong type are refused: a policy is never guessed at.
- Each finding says where (line and path), what was wanted, what came, and what to do.
- What a policy may not say at all (the red lines) is refused here, before anything is compiled.
"""

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from streams.categories import closest
from streams.errors import PolicyError
from streams.policy import text
from streams.policy.check import check_policy
from streams.policy.model import NAME, PATH, TOPIC, Crowd, FieldRule, Noise, OwnTopic, Policy, Purpose, Source, Topics
from streams.policy.text import place, read_yaml

__all__ = [
    "Crowd",
    "FieldRule",
    "Noise",
    "OwnTopic",
    "Policy",
    "Purpose",
    "Source",
    "Topics",
    "load_policy",
    "parse_policy",
]

_LARGEST = 1 << 20


def load_policy(file: Path) -> Policy:
    """Read and check a policy file.

    Raises:
        PolicyError: with everything that is wrong with it.
    """
    try:
        with file.open("rb") as handle:
            data = handle.read(_LARGEST + 1)
    except OSError as error:
        raise PolicyError(str(file), [f"it cannot be read: {error.strerror}"]) from None
    return parse_policy(data, str(file))


def parse_policy(data: bytes, file: str = "policy") -> Policy:
    """Check the text of a policy; `file` is its name in messages.

    Raises:
        PolicyError: with everything that is wrong with it.
    """
    if len(data) > _LARGEST:
        raise PolicyError(file, [f"it is larger than {_LARGEST} bytes, which no policy needs"])
    document, lines = read_yaml(data, file)
    if not isinstance(document, dict):
        raise PolicyError(file, ["wanted a mapping with policy, version, sources, purposes and events"])
    try:
        policy = Policy.model_validate(document)
    except ValidationError as error:
        raise PolicyError(file, [_finding(lines, item) for item in error.errors(include_url=False)]) from None
    findings = [f"{place(lines, path)}: {what}" for path, what in check_policy(policy)]
    if findings:
        raise PolicyError(file, findings)
    return policy


_MODELS: dict[str, type[BaseModel]] = {"sources": Source, "purposes": Purpose, "topics": Topics}
_WANTED = {
    TOPIC: "wanted a topic's name: letters, digits, `.`, `_` and `-`, at most 249",
    NAME: "wanted a name of small letters, digits and `_`, its parts joined by `.` or `-`",
    PATH: "wanted a dotted path: names without quotes, spaces and backslashes, joined by `.`",
}
_SAID = {"missing": "it is missing; add it", "model_type": "wanted a mapping"}


def _finding(lines: dict[text.Path, int], item: Any) -> str:
    # Pydantic marks keys and the branches of a union in the path; none of those is a key that somebody wrote.
    path: text.Path = ()
    for step in map(str, item["loc"]):
        if (*path, step) in lines or item["type"] in ("missing", "extra_forbidden"):
            path = (*path, step)
    at = place(lines, path)
    if item["type"] in _SAID:
        return f"{at}: {_SAID[item['type']]}"
    if item["type"] == "extra_forbidden":
        model = FieldRule if path[0] == "events" else _MODELS.get(path[0], Policy)
        if model is Purpose and len(path) > 3:
            model = Noise if path[3:-1] == ("noise",) else Crowd
        names = [field.alias or name for name, field in model.model_fields.items()]
        return f"{at}: `{path[-1]}` is not known here{closest(path[-1], names)} (known: {', '.join(names)})"
    came = item["input"]
    if item["type"] == "literal_error" and isinstance(came, str):
        words = re.findall("'([^']+)'", item["ctx"]["expected"])
        return f"{at}: unknown word `{came}`{closest(came, words)} (known: {', '.join(words)})"
    if item["type"] == "string_pattern_mismatch":
        return f"{at}: {_WANTED[item['ctx']['pattern']]}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{at}: {message[:1].lower()}{message[1:]}"
