"""The policy file: read, checked, and refused with all its findings at once.

Rules of this file:
- Unknown keys, duplicate keys and values of the wrong type are refused: a policy is never guessed at.
- Each finding says where (line and path), what was wanted, what came, and what to do.
- What a policy may not say at all (the red lines) is refused here, before anything is compiled.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from streams.categories import about_a_person, closest, known_categories, red_line
from streams.consent import RUNGS, Rung
from streams.errors import PolicyError
from streams.sources import SHAPES, Paths
from streams.transforms import FORMS

__all__ = ["FieldRule", "Policy", "Purpose", "Source", "Topics", "load_policy", "parse_policy"]

_LARGEST = 1 << 20
_DEEPEST, _LONGEST = 32, 100_000
_DURATION = re.compile(r"([0-9]{1,6})(ms|s|m|h|d)")
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def _duration(value: Any) -> int:
    match = _DURATION.fullmatch(value) if type(value) is str else None
    if match is None:
        raise ValueError("wanted a duration as in 30s, 10m, 12h or 30d")
    return int(match[1]) * _UNITS[match[2]]


OWN_TOPICS: tuple[Literal["consents", "receipts", "quarantine", "rekeyed"], ...] = (
    "consents",
    "receipts",
    "quarantine",
    "rekeyed",
)
Duration = Annotated[
    int,
    BeforeValidator(_duration, json_schema_input_type=Annotated[str, Field(pattern=f"^{_DURATION.pattern}$")]),
]
"""Milliseconds, written as 500ms, 30s, 10m, 12h or 30d."""
_TOPIC = r"^[a-zA-Z0-9._-]{1,249}$"
# Not what JSON must write with a backslash: the decoder compares names as they stand in the bytes.
_PATH = r'^[^.\s"\\\x00-\x1f]+(\.[^.\s"\\\x00-\x1f]+)*$'
_NAME = r"^[a-z0-9_]+([.-][a-z0-9_]+)*$"
Topic = Annotated[str, Field(pattern=_TOPIC)]
Path_ = Annotated[str, Field(pattern=_PATH, max_length=500)]
Name = Annotated[str, Field(pattern=_NAME, max_length=100)]
RungKey = Literal["crowd", "anonymous", "pseudonymous", "identified"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class Source(_Model):
    """Where raw events come from, and where their subject, type, time and id stand (dotted paths)."""

    topic: Topic
    shape: Literal["plain"] = "plain"
    own: bool
    """our own dealings with the person; `false` can feed nothing that is about a person"""
    subject: Path_
    type: Path_
    time: Path_ | None = None
    """RFC 3339 with an offset, or integer milliseconds; without it Kafka's timestamp counts"""
    id: Path_ | None = None
    key: Literal["subject", "other"] = "subject"
    """`other`: the records' key is not the subject; they are keyed anew on an internal topic first"""
    clock_skew: Duration = 0
    """the most by which the clocks of this source and of those who record consent may differ"""

    @property
    def paths(self) -> Paths:
        """The paths of the envelope."""
        return Paths(self.subject, self.type, self.time, self.id)


class Purpose(_Model):
    """A named use. Nobody's events serve it unless they allow it."""

    benefit: Annotated[str, Field(min_length=10)]
    """what the person gets from it, in plain words; shown where they decide"""
    topic: Topic
    rung: RungKey
    """the highest rung that this purpose may ever use"""
    lifetime: Duration
    """stamped on each output as expires_at, and checked against the topic's retention"""
    rotate: Duration | None = None
    """how long one pseudonym lasts; needed at `pseudonymous` and above"""


class FieldRule(_Model):
    """What a field is, which purposes it serves, and in which form at which rung."""

    is_: Annotated[str, Field(alias="is")]
    for_: Annotated[Literal["all"] | list[Name] | None, Field(alias="for")] = None
    as_: Annotated[dict[RungKey, str | dict[str, Any]] | None, Field(alias="as")] = None
    drop: str | None = None
    """why this field goes nowhere: it shows that somebody thought of it"""


class Topics(_Model):
    """Names of the topics that are ours; each defaults to the policy's name and its own (`shop.consents`)."""

    consents: Topic | None = None
    receipts: Topic | None = None
    quarantine: Topic | None = None
    rekeyed: Topic | None = None


class Policy(_Model):
    """A policy file as it is written. `load_policy` reads and checks one."""

    policy: Name
    version: Annotated[int, Field(ge=1)]
    topics: Topics = Topics()
    sources: Annotated[dict[Name, Source], Field(min_length=1)]
    purposes: Annotated[dict[Name, Purpose], Field(min_length=1)]
    events: Annotated[dict[str, dict[Path_, FieldRule]], Field(min_length=1)]

    def topic(self, of: Literal["consents", "receipts", "quarantine", "rekeyed"]) -> str:
        """Return the name of one of our own topics."""
        return getattr(self.topics, of) or f"{self.policy}.{of}"

    def serves(self, rule: FieldRule, purpose: str) -> bool:
        """Tell whether a field may reach a purpose at all."""
        return rule.for_ == "all" or (isinstance(rule.for_, list) and purpose in rule.for_)


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
    document, lines = _read_yaml(data, file)
    if not isinstance(document, dict):
        raise PolicyError(file, ["wanted a mapping with policy, version, sources, purposes and events"])
    try:
        policy = Policy.model_validate(document)
    except ValidationError as error:
        raise PolicyError(file, [_finding(lines, item) for item in error.errors(include_url=False)]) from None
    findings = [f"{_place(lines, path)}: {what}" for path, what in _check(policy)]
    if findings:
        raise PolicyError(file, findings)
    return policy


_Path = tuple[str, ...]


def _read_yaml(data: bytes, file: str) -> tuple[Any, dict[_Path, int]]:
    kind = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    lines: dict[_Path, int] = {}
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


def _construct(loader: Any, node: yaml.Node, path: _Path, lines: dict[_Path, int]) -> Any:
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


def _place(lines: dict[_Path, int], path: _Path) -> str:
    at = path
    while at and at not in lines:
        at = at[:-1]
    return f"line {lines.get(at, 1)}, {'.'.join(path) or 'policy'}"


_MODELS: dict[str, type[_Model]] = {"sources": Source, "purposes": Purpose, "topics": Topics}
_WANTED = {
    _TOPIC: "wanted a topic's name: letters, digits, `.`, `_` and `-`, at most 249",
    _NAME: "wanted a name of small letters, digits and `_`, its parts joined by `.` or `-`",
    _PATH: "wanted a dotted path: names without quotes, spaces and backslashes, joined by `.`",
}
_SAID = {"missing": "it is missing; add it", "model_type": "wanted a mapping"}


def _finding(lines: dict[_Path, int], item: Any) -> str:
    # Pydantic marks keys and the branches of a union in the path; none of those is a key that somebody wrote.
    path: _Path = ()
    for step in map(str, item["loc"]):
        if (*path, step) in lines or item["type"] in ("missing", "extra_forbidden"):
            path = (*path, step)
    place = _place(lines, path)
    if item["type"] in _SAID:
        return f"{place}: {_SAID[item['type']]}"
    if item["type"] == "extra_forbidden":
        model = FieldRule if path[0] == "events" else _MODELS.get(path[0], Policy)
        names = [field.alias or name for name, field in model.model_fields.items()]
        return f"{place}: `{path[-1]}` is not known here{closest(path[-1], names)} (known: {', '.join(names)})"
    came = item["input"]
    if item["type"] == "literal_error" and isinstance(came, str):
        words = re.findall("'([^']+)'", item["ctx"]["expected"])
        return f"{place}: unknown word `{came}`{closest(came, words)} (known: {', '.join(words)})"
    if item["type"] == "string_pattern_mismatch":
        return f"{place}: {_WANTED[item['ctx']['pattern']]}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{place}: {message[:1].lower()}{message[1:]}"


def _check(policy: Policy) -> Iterator[tuple[_Path, str]]:
    """Yield everything that the types alone do not say: (path, what is wrong and what to do)."""
    yield from _check_purposes(policy)
    yield from _check_topics(policy)
    yield from _check_envelopes(policy)
    for name, source in policy.sources.items():
        if source.shape not in SHAPES:
            yield ("sources", name, "shape"), f"unknown shape `{source.shape}`{closest(source.shape, list(SHAPES))}"
        if not source.own and any(
            rule.for_ and about_a_person(rule.is_) for fields in policy.events.values() for rule in fields.values()
        ):
            yield (
                ("sources", name, "own"),
                "this source is not our own dealing with the person, and fields about a person are published: "
                "nobody is followed around; put its events into a policy whose fields are all `system.*`",
            )
    for event, fields in policy.events.items():
        yield from _check_groups(policy, event, fields)
        for path, rule in fields.items():
            for where, what in _check_field(policy, path, rule):
                yield ("events", event, path, *where), what


def _check_purposes(policy: Policy) -> Iterator[tuple[_Path, str]]:
    for name, purpose in policy.purposes.items():
        at = ("purposes", name)
        if f"{name}.".startswith("pricing.") and purpose.rung != "crowd":
            yield (*at, "rung"), "red line: nobody gets a price of their own; `pricing.*` may use `crowd` only"
        elif purpose.rung == "crowd":
            yield (*at, "rung"), "the crowd gate is not part of this version; raise the rung or leave the purpose out"
        if RUNGS[purpose.rung] >= Rung.PSEUDONYMOUS and not purpose.rotate:
            yield (*at, "rotate"), "it is missing: say how long one pseudonym lasts, as in 30d"
        if purpose.lifetime < 1000:
            yield (*at, "lifetime"), "wanted at least 1s"


def _check_topics(policy: Policy) -> Iterator[tuple[_Path, str]]:
    taken: dict[str, str] = {}
    uses: list[tuple[_Path, str]] = [(("topics", of), policy.topic(of)) for of in OWN_TOPICS]
    uses += [(("sources", name, "topic"), source.topic) for name, source in policy.sources.items()]
    uses += [
        (("sources", name, "key"), f"{policy.topic('rekeyed')}.{name}")
        for name, source in policy.sources.items()
        if source.key == "other"
    ]
    uses += [(("purposes", name, "topic"), purpose.topic) for name, purpose in policy.purposes.items()]
    for path, topic in uses:
        if topic in taken:
            yield path, f"topic `{topic}` is used by {taken[topic]} already; each use needs a topic of its own"
        taken[topic] = ".".join(path)


def _check_groups(policy: Policy, event: str, fields: dict[str, FieldRule]) -> Iterator[tuple[_Path, str]]:
    # All event types of a source are read by one reader, so a path is a field everywhere or a group everywhere.
    leaves = {path for named in policy.events.values() for path in named}
    leaves |= {path for source in policy.sources.values() for path in source.paths if path is not None}
    for path in fields:
        if path.split(".")[0] == "_celosia":
            yield ("events", event, path), "`_celosia` is where the stamp of an output stands; name the field elsewhere"
        for leaf in leaves:
            if leaf.startswith(f"{path}."):
                yield ("events", event, path), f"it is a field here and a group in `{leaf}`; name only its leaves"
                break


def _check_envelopes(policy: Policy) -> Iterator[tuple[_Path, str]]:
    for name, source in policy.sources.items():
        leaves = {path for named in policy.events.values() for path in named} | set(source.paths)
        for what, path in source.paths._asdict().items():
            for leaf in sorted(leaf for leaf in leaves if leaf and path and leaf.startswith(f"{path}.")):
                yield ("sources", name, what), f"it is a field here and a group in `{leaf}`; name another field"
                break


def _check_field(policy: Policy, path: str, rule: FieldRule) -> Iterator[tuple[_Path, str]]:
    if rule.is_ not in known_categories():
        yield ("is",), f"unknown category `{rule.is_}`{closest(rule.is_, known_categories())}"
        return
    if rule.drop is not None and (rule.for_ is not None or rule.as_ is not None):
        yield (), "it is dropped and published; keep either `drop` or `for`"
    if rule.as_ is not None and rule.for_ is None:
        yield (), "it has forms and no purpose; add `for`, or take `as` away"
    for purpose in rule.for_ if isinstance(rule.for_, list) else []:
        if purpose not in policy.purposes:
            yield ("for",), f"unknown purpose `{purpose}`{closest(purpose, list(policy.purposes))}"
    if rule.for_:
        line = red_line(rule.is_)
        if line is not None:
            yield ("for",), f"red line: `{rule.is_}` may serve no purpose above `crowd`: {line}"
        if any(path == source.subject for source in policy.sources.values()):
            yield ("for",), "the subject is never a field of an output: the rung decides who an output says it is about"
    for rung, form in (rule.as_ or {}).items():
        for what in _check_form(form):
            yield ("as", rung), what


def _check_form(form: str | dict[str, Any]) -> Iterator[str]:
    if isinstance(form, dict) and len(form) != 1:
        yield "wanted one form, as in {round: 10}"
        return
    name = form if isinstance(form, str) else next(iter(form))
    if name not in FORMS:
        yield f"unknown form `{name}`{closest(name, list(FORMS))} (known: {', '.join(FORMS)})"
    elif isinstance(form, dict) and FORMS[name].parameters is None:
        yield f"`{name}` takes no parameters; write it without"
