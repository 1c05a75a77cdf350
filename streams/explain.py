"""What `celosia explain` says: for one event and one consent, what happens to each field, and by which rule.

Rules of this file:
- It cannot disagree with the pipeline: the outcome is that of `process`, each decision that of `decide`, and a field
  is published if it stands in the very output that `process` returned.
- Pure, and discreet: names come from the policy, reasons from the program. No value of the event, no subject and no
  time of the consent is told, so that an explanation can be sent to whoever asks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from streams.categories import red_line
from streams.check import decode_object, named_paths, unnamed_leaves
from streams.consent import RUNGS, Consents, Refusal, Rung
from streams.decision import decide
from streams.event import RawEvent, Reason, Rejected
from streams.outcome import Outcome
from streams.pipeline import Place, moments, process
from streams.plan import CrowdRecipe, Plan, PurposePlan, Recipe, Service, form_in_force
from streams.policy import FieldRule
from streams.sources import Envelope
from streams.transforms import ABSENT

__all__ = ["Explanation", "Fate", "FieldFate", "PurposeFate", "explain", "render"]

WORDS: dict[Refusal | Reason, str] = {
    Refusal.NO_SUBJECT: "the event is about nobody whose consent could be asked",
    Refusal.EVENT_NOT_NAMED: "the policy names no field of this event type for it",
    Refusal.PARTITION_BLOCKED: "a consent record whose subject cannot be read may be anyone's withdrawal",
    Refusal.NO_CONSENT: "nothing is known about this person's consent",
    Refusal.CONSENT_UNREADABLE: "the person's newest consent record cannot be read",
    Refusal.NOT_ALLOWED: "the person does not allow this purpose",
    Refusal.RECORDED_BEFORE_CONSENT: "the event was recorded before the person allowed it; a grant never reaches back",
    Refusal.EXPIRED: "the consent has run out",
    Refusal.RUNG_TOO_LOW: "at the rung in force the policy has no form of any field",
    Refusal.NOTHING_LEFT: "no field has a value that its form takes",
    Reason.NO_VALUE: "the record has no value",
    Reason.MALFORMED: "it is not one JSON document in UTF-8",
    Reason.TOO_DEEP: "it is nested deeper than 128 objects and arrays",
    Reason.NOT_AN_OBJECT: "it is not a JSON object",
    Reason.WRONG_SHAPE: "a group that the policy names is not an object",
    Reason.DUPLICATE_NAME: "subject or type is given twice",
    Reason.BAD_SUBJECT: "the subject is neither a text nor an integer of 1 to 1,024 bytes",
    Reason.BAD_TYPE: "the event type is missing or not a text",
    Reason.BAD_TIME: "the time is missing, or neither RFC 3339 with an offset nor integer milliseconds",
    Reason.KEY_IS_NOT_SUBJECT: "the record's key is not the subject",
    Reason.WRONG_PARTITION: "the key belongs on another partition",
    Reason.TOO_LARGE: "the minimized event, or the cell that it counts in, is larger than it may be",
    Reason.TRANSFORM_FAILED: "a form failed on a field",
    Reason.UNREADABLE: "the broker's bytes are no record",
    Reason.OUT_OF_RANGE: "the record is gone from the broker",
    Reason.NOT_OURS: "it is on one of celosia's own topics, and celosia has not written it with this key",
}
"""Each refusal and each reason for quarantine in plain words."""


class Fate(StrEnum):
    """What becomes of a field for one purpose."""

    PUBLISHED = "published"
    COUNTED = "counted"
    NOT_FOR_PURPOSE = "not for this purpose"
    DROPPED = "dropped"
    REFUSED = "not published"
    NO_FORM = "no form"
    ABSENT = "absent"
    UNFIT = "left out"


class FieldFate(NamedTuple):
    """What becomes of one field for one purpose, why, and the rule of the policy that says so."""

    path: str
    fate: Fate
    why: str
    rule: str


class PurposeFate(NamedTuple):
    """What becomes of the event for one purpose: the rung in force, or why nothing passes; and of each field."""

    purpose: str
    topic: str
    rung: str | None
    """None: nothing passes"""
    why: str
    fields: tuple[FieldFate, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of one event. `event` is its type where the policy names it."""

    event: str | None
    outcome: Outcome
    purposes: tuple[PurposeFate, ...] = ()
    unnamed: int = 0
    """how many values of the event stand at paths that the policy does not name"""

    @property
    def published(self) -> dict[str, list[str]]:
        """The paths that each purpose's output holds."""
        return {
            fate.purpose: [item.path for item in fate.fields if item.fate is Fate.PUBLISHED]
            for fate in self.purposes
            if fate.rung is not None
        }


def explain(plan: Plan, place: Place, event: RawEvent, consents: Consents, now: int) -> Explanation:
    """Explain what the pipeline does with one event at the time `now` (ms)."""
    outcome = process(event, place, consents, plan, now)
    try:
        envelope = place.source.reader.read(event.value)
    except Rejected:
        return Explanation(None, outcome)
    named = envelope.type if envelope.type in plan.policy.events else None
    document = decode_object(event.value or b"") or {}
    unnamed = sum(1 for _ in unnamed_leaves(document, named_paths(plan, place.source, named)))
    if named is None:
        return Explanation(None, outcome, (), unnamed)
    services = {service.purpose.name: service for service in place.source.services[named]}
    recorded, latest = moments(event.timestamp, envelope.time, now)
    bodies = {output.topic: msgspec.json.decode(output.value) for output in outcome.outputs}
    purposes = []
    for name, purpose in plan.purposes.items():
        decision = _decision(services.get(name), envelope, place, consents, recorded, latest)
        body = bodies.get(purpose.topic, {})
        passed = bool(body) or any(part.purpose == name for part in outcome.crowd)
        rung, why = _verdict(decision, purpose, outcome, passed)
        spoiled = not isinstance(decision, Refusal) and isinstance(outcome.reason, Reason)
        fields = tuple(_fields(plan, name, named, outcome.reason if spoiled else decision, envelope, body))
        purposes.append(PurposeFate(name, purpose.topic, rung, why, fields))
    return Explanation(named, outcome, tuple(purposes), unnamed)


def _decision(
    service: Service | None, envelope: Envelope, place: Place, consents: Consents, recorded: int, latest: int
) -> Recipe | CrowdRecipe | Refusal:
    if envelope.subject is None:
        return Refusal.NO_SUBJECT
    if service is None:
        return Refusal.EVENT_NOT_NAMED
    if consents.blocked:
        return Refusal.PARTITION_BLOCKED
    return decide(service, consents.of(envelope.subject), recorded, latest, place.source.clock_skew)


def _verdict(
    decision: Recipe | CrowdRecipe | Refusal, purpose: PurposePlan, outcome: Outcome, passed: bool
) -> tuple[str | None, str]:
    if isinstance(decision, Refusal):
        return None, f"{decision}: {WORDS[decision]}"
    if passed and isinstance(decision, CrowdRecipe):
        return "crowd", f"counted with others; a cell is told if at least {decision.rule.k} people are in it"
    if passed:
        limit = "the person allows no more" if decision.rung < purpose.highest else "the purpose may use no more"
        return decision.rung.name.lower(), limit
    # One purpose that fails takes the others with it: nothing half made is published.
    why = outcome.reason if isinstance(outcome.reason, Reason) else Refusal.NOTHING_LEFT
    return None, f"{why}: {WORDS[why]}"


def _fields(
    plan: Plan,
    purpose: str,
    event: str,
    decision: Recipe | CrowdRecipe | Refusal | Reason | None,
    envelope: Envelope,
    body: Any,
) -> Iterator[FieldFate]:
    values: dict[str, Any] = {}
    if isinstance(decision, Recipe):
        values = dict(zip(decision.paths, decision.fields(envelope.document), strict=True))
    for path, rule in plan.policy.events[event].items():
        where = f"events.{event}.{path}"
        if not plan.policy.serves(rule, purpose):
            yield _not_serving(path, rule, where)
        elif isinstance(decision, CrowdRecipe):
            yield _counted(path, decision, envelope, where)
        elif not isinstance(decision, Recipe):
            yield FieldFate(path, Fate.REFUSED, str(decision), f"{where}.for")
        elif path not in values:
            lowest = min(rule.as_ or ["pseudonymous"], key=RUNGS.__getitem__)
            why = f"at {decision.rung.name.lower()}; the lowest rung with one is {lowest}"
            yield FieldFate(path, Fate.NO_FORM, why, f"{where}.as")
        else:
            yield _formed(path, rule, where, decision.rung, values[path], _holds(body, path))


def _counted(path: str, recipe: CrowdRecipe, envelope: Envelope, where: str) -> FieldFate:
    if path not in recipe.paths:
        return FieldFate(path, Fate.NO_FORM, "it makes no cell and is not summed up", f"{where}.for")
    index = recipe.paths.index(path)
    if recipe.fields(envelope.document)[index] is ABSENT:
        return FieldFate(path, Fate.ABSENT, "the event has no value there", f"{where}.for")
    at = f"purposes.{recipe.rule.purpose}.crowd"
    if index < recipe.cells:
        return FieldFate(path, Fate.COUNTED, "it makes the cell", f"{at}.by")
    return FieldFate(path, Fate.COUNTED, "it is summed up, within its range", f"{at}.sum")


def _holds(body: Any, path: str) -> bool:
    for name in path.split("."):
        if type(body) is not dict or name not in body:
            return False
        body = body[name]
    return True


def _not_serving(path: str, rule: FieldRule, where: str) -> FieldFate:
    if rule.drop is not None:
        return FieldFate(path, Fate.DROPPED, rule.drop, f"{where}.drop")
    if rule.for_ is None:
        line = red_line(rule.is_)
        return FieldFate(path, Fate.NOT_FOR_PURPOSE, f"it serves none{f' ({line})' if line else ''}", where)
    return FieldFate(path, Fate.NOT_FOR_PURPOSE, f"it serves {', '.join(rule.for_)}", f"{where}.for")


def _formed(path: str, rule: FieldRule, where: str, rung: Rung, value: Any, published: bool) -> FieldFate:
    name, parameters = form_in_force(rule, rung) or ("drop", None)
    words = name if parameters is None else f"{name} {_written(parameters)}"
    by = f"{where}.for"
    if rule.as_ is not None:
        by = f"{where}.as.{max((given for given in rule.as_ if RUNGS[given] <= rung), key=RUNGS.__getitem__)}"
    if published:
        return FieldFate(path, Fate.PUBLISHED, "as it is" if name == "keep" else f"as {words}", by)
    if value is ABSENT:
        return FieldFate(path, Fate.ABSENT, "the event has no value there", by)
    if name == "drop":
        return FieldFate(path, Fate.DROPPED, "its form at this rung is drop", by)
    kind = {"dict": "an object", "list": "an array"}.get(type(value).__name__)
    why = f"it is {kind}, and only single values pass" if kind else f"its value is none that {words} takes"
    return FieldFate(path, Fate.UNFIT, why, by)


def _written(parameters: Any) -> str:
    """Write the parameters of a form as YAML's flow style does, for scalars, lists and mappings."""
    if isinstance(parameters, dict):
        return "{" + ", ".join(f"{name}: {_written(value)}" for name, value in parameters.items()) + "}"
    if isinstance(parameters, list):
        return "[" + ", ".join(_written(value) for value in parameters) + "]"
    return str(parameters)


def render(explanation: Explanation, purpose: str | None = None) -> list[str]:
    """Return an explanation as text; `purpose` leaves the others out."""
    outcome = explanation.outcome
    if outcome.reason is None:
        passed = len(outcome.outputs) + len(outcome.crowd)
        lines = [f"{outcome.kind} to {passed} of {len(explanation.purposes)} purposes"]
    else:
        lines = [f"{outcome.kind}: {outcome.reason}: {WORDS[outcome.reason]}"]
    if explanation.event:
        lines.append(f"event type {explanation.event}")
    for fate in explanation.purposes:
        if purpose is None or fate.purpose == purpose:
            lines += ["", *_rendered(fate)]
    if explanation.unnamed:
        lines += ["", f"{explanation.unnamed} more values at paths that the policy does not name: dropped"]
    return lines


def _rendered(fate: PurposeFate) -> Iterator[str]:
    if fate.rung is None:
        yield f"{fate.purpose}: nothing passes"
    else:
        what = "counted" if fate.rung == "crowd" else f"published as {fate.rung}"
        yield f"{fate.purpose}: {what} to {fate.topic}"
    yield f"  {fate.why}"
    wide = max((len(item.path) for item in fate.fields), default=0)
    for item in fate.fields:
        yield f"  {item.path:{wide}}  {item.fate}, {item.why}  [{item.rule}]"
