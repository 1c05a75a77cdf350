"""The parts of the README that are made from the program. `python -m tests.readme` writes them anew."""

import re
from pathlib import Path

import msgspec

from streams.categories import RED_LINES
from streams.consent import Consents
from streams.event import RawEvent, milliseconds
from streams.keys import MasterKey
from streams.metrics import METRICS
from streams.pipeline import Place, process
from streams.plan import compile_plan
from streams.policy import load_policy
from streams.transforms import ABSENT, FORMS, Example

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
KEY = MasterKey(bytes(32))
"""The key of the README's example: nobody's secret."""


def renewed(text: str) -> str:
    """Return the README with its generated parts made anew."""
    for name, made in (("forms", _forms()), ("red lines", _red_lines()), ("metrics", _metrics())):
        text = _between(text, f"<!-- {name} -->", f"<!-- /{name} -->", made)
    return re.sub(r"(?s)(<!-- after -->\n```json\n).*?(\n```)", lambda m: m[1] + minimized(before(text)) + m[2], text)


def before(text: str) -> str:
    """Return the README's raw event."""
    match = re.search(r"(?s)<!-- before -->\n```json\n(.*?)\n```", text)
    assert match is not None
    return match[1]


def minimized(raw: str) -> str:
    """Return what the retail policy publishes of one event whose person allows recommendations under a pseudonym."""
    plan = compile_plan(load_policy(ROOT / "schemas/policies/retail.yaml"), KEY)
    event = msgspec.json.decode(raw)
    grant = {"rung": "pseudonymous", "since": "2010-01-01T00:00:00Z"}
    record = {"subject": event["customer"], "version": 1, "purposes": {"personalization.recommendations": grant}}
    consents = Consents()
    consents.apply(event["customer"].encode(), msgspec.json.encode(record))
    at = milliseconds(event["occurred_at"])
    outcome = process(RawEvent(0, at, None, raw.encode()), Place(plan.sources[0], 0, keyed=False), consents, plan, at)
    [output] = outcome.outputs
    return output.value.decode()


def _between(text: str, start: str, end: str, made: str) -> str:
    head, _, rest = text.partition(start)
    _, _, tail = rest.partition(end)
    return f"{head}{start}\n{made}\n{end}{tail}"


def _forms() -> str:
    rows = ["| form | makes of a value | for example | protects from telling |", "| --- | --- | --- | --- |"]
    for kind in FORMS.values():
        example = next((e for e in kind.examples if e.result is not ABSENT), kind.examples[0])
        rows.append(f"| `{kind.name}` | {kind.does} | {_example(kind.name, example)} | {kind.protects} |")
    return "\n".join(rows)


def _example(name: str, example: Example) -> str:
    form = name if example.parameters is None else f"{name}: {msgspec.json.encode(example.parameters).decode()}"
    result = "nothing" if example.result is ABSENT else f"`{_shown(example.result)}`"
    return f"`{form}`: `{_shown(example.value)}` to {result}"


def _shown(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _red_lines() -> str:
    rows = ["| line | categories that serve no purpose above `crowd` |", "| --- | --- |"]
    for line, crossed in RED_LINES.items():
        rows.append(f"| {line} | {', '.join(f'`{category}`' for category in crossed)} |")
    return "\n".join(rows)


def _metrics() -> str:
    rows = ["| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
    for name, kind, labels, meaning in METRICS:
        rows.append(f"| `{name}` | {kind} | {', '.join(labels)} | {meaning} |")
    return "\n".join(rows)


if __name__ == "__main__":
    README.write_text(renewed(README.read_text()))
