"""What `celosia check` says: a policy in a few lines, and what a sample of events holds that the policy does not name.

Rules of this file:
- Pure: a plan and lines in, data and text out.
- No value of an event is ever told. A name is told only if it looks like the name of a field and many events have it:
  a map key can be a person. Everything else is `*`.
- A survey holds counts, and at most so many names: its memory does not grow with the sample.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from streams.categories import RED_LINES, red_line, suggest
from streams.consent import Rung
from streams.event import Reason, Rejected
from streams.lines import Line, TooLong
from streams.plan import Plan, SourcePlan
from streams.policy import Crowd, Policy

__all__ = [
    "Survey",
    "Unnamed",
    "decode_object",
    "describe",
    "in_words",
    "named_paths",
    "survey",
    "unnamed_leaves",
    "warnings",
]

_UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"))
_ORDINARY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_MOST_CHILDREN = 100
_MOST_NAMES = 5000
_DEEPEST = 16
# A name is shown if at least two events and one in five hold it.
_FEWEST, _ONE_IN = 2, 5
_HIDDEN = "*"
_ARRAY = "[]"


def warnings(policy: Policy) -> list[str]:
    """Return what is allowed and deserves a second look, one line each.

    A field that identifies (a unique id kept as it is) and serves two purposes lets their consumers find each other's
    pseudonyms; a field whose name says something else than its category may have been misjudged.
    """
    found = []
    for event, fields in policy.events.items():
        for path, rule in fields.items():
            served = [name for name in policy.purposes if policy.serves(rule, name)]
            ident = rule.is_.startswith(("user.unique_id", "system.operations", "user.device", "user.contact"))
            if len(served) > 1 and ident and not rule.as_:
                found.append(
                    f"events.{event}.{path}: kept as it is for {', '.join(served)}: who reads both can link their "
                    "pseudonyms; serve one purpose, or give it the form `pseudonym`"
                )
            guess = suggest(path)
            if rule.for_ and guess is not None and red_line(guess) and guess != rule.is_:
                what = f"it is named like `{guess}` and classified `{rule.is_}`; look again"
                found.append(f"events.{event}.{path}: {what}")
    return found


def in_words(ms: int) -> str:
    """Write a duration as a policy does.

    >>> in_words(2_592_000_000), in_words(5400_000), in_words(1)
    ('30d', '90m', '1ms')
    """
    for size, unit in _UNITS:
        if ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms"


def describe(plan: Plan) -> list[str]:
    """Return a policy in a few lines: sources, purposes with their topics and rungs, events, red lines."""
    policy = plan.policy
    lines = [f"policy {plan.name} is sound", "", "sources"]
    for name, source in policy.sources.items():
        whose = "our own" if source.own else "not our own"
        keyed = "" if source.key == "subject" else ", keyed anew by the subject"
        lines.append(f"  {name}: topic {source.topic}, shape {source.shape}, {whose}{keyed}")
    lines += ["", "purposes"]
    for name, purpose in policy.purposes.items():
        rotation = f", a new pseudonym every {in_words(purpose.rotate)}" if purpose.rotate else ""
        lines += [
            f"  {name}: up to {purpose.rung}{rotation}, kept for {in_words(purpose.lifetime)}, topic {purpose.topic}",
            f"    {purpose.benefit}",
        ]
        if purpose.crowd is not None:
            lines.append(f"    {_counted(purpose.crowd)}")
        lines += [f"    {event}: {fields}" for event, fields in _services(plan, name)]
    lines += ["", "events"]
    for event, rules in policy.events.items():
        dropped = sum(rule.drop is not None for rule in rules.values())
        published = sum(bool(rule.for_) for rule in rules.values())
        lines.append(
            f"  {event}: {len(rules)} fields named, {published} may be published, {dropped} dropped with a reason, "
            f"{len(rules) - dropped - published} serve no purpose"
        )
    return [*lines, "", *_red_lines(policy)]


def _counted(crowd: Crowd) -> str:
    sums = f", sums of {', '.join(crowd.sum)}" if crowd.sum else ""
    noise = f", with noise of epsilon {crowd.noise.epsilon}" if crowd.noise is not None else ""
    return (
        f"counts by {', '.join(crowd.by)} in windows of {in_words(crowd.window)}{sums}; a cell of fewer than {crowd.k} "
        f"people is not told{noise}"
    )


def _services(plan: Plan, purpose: str) -> Iterator[tuple[str, str]]:
    for event in plan.policy.events:
        for service in plan.sources[0].services[event]:
            if service.purpose.name == purpose:
                counts = [
                    f"{len(recipe.paths)} as {Rung(rung).name.lower()}"
                    for rung, recipe in enumerate(service.recipes)
                    if recipe is not None
                ]
                yield event, f"fields {', '.join(counts)}" if counts else "no form at any rung: it never passes"


def _red_lines(policy: Policy) -> list[str]:
    lines = [f"red lines: all {len(RED_LINES)} respected"]
    for event, rules in policy.events.items():
        for path, rule in rules.items():
            if (line := red_line(rule.is_)) is not None:
                lines.append(f"  {event}.{path} goes nowhere: {line}")
    return lines


class Unnamed(NamedTuple):
    """A path shape that the policy does not name: the event type (None: one that the policy does not name either),
    in how many events of it, and the categories that its name suggests."""

    event: str | None
    shape: str
    events: int
    suggested: tuple[str, ...]


@dataclass(slots=True)
class Survey:
    """What a sample of events holds. `unnamed` is what `--strict` fails on."""

    events: int = 0
    types: Counter[str] = field(default_factory=Counter)
    """events by type, for types that the policy names"""
    other_types: int = 0
    """events without a type, or with one that the policy does not name"""
    no_subject: int = 0
    reasons: Counter[Reason] = field(default_factory=Counter)
    """events that would be quarantined"""
    unnamed: list[Unnamed] = field(default_factory=list)

    def lines(self, source: SourcePlan, policy: Policy) -> list[str]:
        """Return the survey as text."""
        of = f"of {self.events} events"
        lines = [f"sample: {self.events} events, {len(self.types)} of {len(policy.events)} event types"]
        if self.no_subject:
            path = policy.sources[source.name].subject
            lines.append(f"  {self.no_subject} {of} have no subject at `{path}`: nothing passes")
        if self.other_types:
            lines.append(
                f"  {self.other_types} {of} have a type that the policy does not name, or none: nothing passes"
            )
        for reason, count in self.reasons.most_common():
            lines.append(f"  {count} {of} are quarantined: {_quarantine_words(reason, source, policy)}")
        if not self.unnamed:
            return [*lines, "  every field is named by the policy"] if self.types else lines
        lines += ["", "fields that the policy does not name (they are dropped):"]
        for row in self.unnamed:
            event = "(other types)" if row.event is None else row.event
            whole = self.types[row.event] if row.event is not None else self.other_types
            guess = f", perhaps {' or '.join(row.suggested)}" if row.suggested else ""
            at_most = "up to " if _HIDDEN in row.shape else ""
            lines.append(f"  {event}  {row.shape}  in {at_most}{row.events} of {whole}{guess}")
        if any(_HIDDEN in row.shape for row in self.unnamed):
            lines.append(f"  ({_HIDDEN}: names that few events share, or that may be values; they are not shown)")
        return lines


def _quarantine_words(reason: Reason, source: SourcePlan, policy: Policy) -> str:
    paths = policy.sources[source.name]
    if reason is Reason.BAD_TYPE:
        return f"{reason} (no text at `{paths.type}`)"
    if reason is Reason.BAD_TIME:
        return f"{reason} (no time with an offset, or in milliseconds, at `{paths.time}`)"
    if reason is Reason.BAD_SUBJECT:
        return f"{reason} (neither a text nor an integer of 1 to 1,024 bytes at `{paths.subject}`)"
    return str(reason)


def survey(lines: Iterable[Line], plan: Plan, source: SourcePlan) -> Survey:
    """Look through a sample of events for what the policy does not name."""
    found = Survey()
    budget = _Budget(_MOST_NAMES)
    named = {event: named_paths(plan, source, event) for event in plan.policy.events}
    envelope = named_paths(plan, source, None)
    trees: dict[str | None, _Node] = {}
    for line in lines:
        found.events += 1
        value = b"" if isinstance(line, TooLong) else line
        try:
            if source.reader.read(value).subject is None:
                found.no_subject += 1
        except Rejected as rejected:
            found.reasons[Reason.MALFORMED if isinstance(line, TooLong) else rejected.reason] += 1
        document = decode_object(value)
        if document is None:
            continue
        event = _type_of(document, plan.policy.sources[source.name].type)
        if event in named:
            found.types[event] += 1
        else:
            event = None
            found.other_types += 1
        tree = trees.setdefault(event, _Node())
        for path in unnamed_leaves(document, envelope if event is None else named[event]):
            tree.add(path, found.events, budget)
    for event, tree in trees.items():
        whole = found.types[event] if event is not None else found.other_types
        found.unnamed += [Unnamed(event, *row) for row in tree.rows(whole)]
    return found


def decode_object(value: bytes) -> dict[str, Any] | None:
    """Return a JSON object, None where the bytes are none."""
    try:
        document = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # the decoder raises the second for names
        return None
    return document if type(document) is dict else None


def _type_of(document: dict[str, Any], path: str) -> str | None:
    here: Any = document
    for name in path.split("."):
        here = here.get(name) if type(here) is dict else None
    return here if type(here) is str else None


Path = tuple[str, ...]


def named_paths(plan: Plan, source: SourcePlan, event: str | None) -> frozenset[Path]:
    """Return what the policy names for an event type: its fields, and what the source reads of every event."""
    fields = plan.policy.events.get(event or "", {})
    envelope = [path for path in plan.policy.sources[source.name].paths if path is not None]
    return frozenset(tuple(path.split(".")) for path in (*fields, *envelope))


def unnamed_leaves(document: dict[str, Any], named: frozenset[Path]) -> Iterator[Path]:
    """Yield the path of each scalar that the policy does not name; `[]` stands for the elements of an array.

    >>> event = {"type": "bought", "item": {"price": 3, "tags": ["a", "b"]}}
    >>> list(unnamed_leaves(event, frozenset({("type",), ("item", "price")})))
    [('item', 'tags', '[]'), ('item', 'tags', '[]')]
    """
    stack: list[tuple[Any, Path, bool]] = [(document, (), False)]
    while stack:
        value, path, known = stack.pop()
        if type(value) is dict:
            stack += [(below, (*path, name), (*path, name) in named) for name, below in value.items()]
        elif type(value) is list:
            # An array under a named path is dropped there; objects in it hold names of their own.
            stack += [(element, (*path, _ARRAY), known) for element in value]
        elif not known:
            yield path


class _Budget:
    """How many more names a survey may hold."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


class _Node:
    """A name in the tree of unnamed paths: in how many events it was seen, whether as a leaf, and what is below."""

    __slots__ = ("_last", "_last_leaf", "children", "count", "leaves", "suggested")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.count = 0
        self.leaves = 0
        self.suggested: set[str] = set()
        self._last = self._last_leaf = 0

    def add(self, path: Path, event: int, budget: _Budget) -> None:
        """Count a leaf of the event with this number, once for each event."""
        node = self
        for depth, name in enumerate(path):
            child = node.children.get(name)
            if child is None:
                # What cannot be shown is not remembered either: a name that is no ordinary one, one too many, or one
                # too deep is counted under `*`.
                full = len(node.children) >= _MOST_CHILDREN or budget.left <= 0 or depth >= _DEEPEST
                if name != _ARRAY and (full or not _ORDINARY.fullmatch(name)):
                    name = _HIDDEN
                child = node.children.get(name)
                if child is None:
                    child = node.children[name] = _Node()
                    budget.left -= 1
            node = child
            if node._last != event:
                node._last = event
                node.count += 1
        if node._last_leaf != event:
            node._last_leaf = event
            node.leaves += 1
        guess = suggest(next((name for name in reversed(path) if name != _ARRAY), ""))
        if guess is not None:
            node.suggested.add(guess)

    def rows(self, whole: int) -> list[tuple[str, int, tuple[str, ...]]]:
        """Return the shapes below this node, the most frequent first; `whole` is the number of events."""
        shapes: dict[str, tuple[int, set[str]]] = {}
        for path, node in self._walk((), whole, len(self.children) > _MOST_CHILDREN):
            count, suggested = shapes.get(shape := _written(path), (0, set()))
            shapes[shape] = min(whole, count + node.leaves), suggested | node.suggested
        rows = [(shape, events, tuple(sorted(suggested)[:3])) for shape, (events, suggested) in shapes.items()]
        return sorted(rows, key=lambda row: (-row[1], row[0]))

    def _walk(self, path: Path, whole: int, crowded: bool) -> Iterator[tuple[Path, "_Node"]]:
        for name, child in self.children.items():
            often = child.count >= _FEWEST and child.count * _ONE_IN >= whole
            shown = name if name == _ARRAY or (often and not crowded) else _HIDDEN
            here = (*path, shown)
            if child.leaves:
                yield here, child
            yield from child._walk(here, whole, len(child.children) > _MOST_CHILDREN)


def _written(path: Path) -> str:
    return ".".join(path).replace(f".{_ARRAY}", _ARRAY)
