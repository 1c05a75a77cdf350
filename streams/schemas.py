"""JSON Schemas (2020-12) of everything that people write and that stands on a topic, written from the models.

`python -m streams.schemas [DIR]` writes them into the repository's `schemas/`, or into DIR; `make schemas` calls it.

Rules of this file:
- The models say what there is. Here it is only made more precise, out of the tables that the program itself goes by:
  the forms, the categories, the red lines, the reasons.
- What the program reads (policies, consents): a schema refuses nothing that makes sense and is written as the README
  writes it. It cannot say everything: the program has the last word, `celosia check` for a policy.
- What the program writes (outputs, quarantine records, receipts): a schema is closed, because what may not stand in a
  record is what celosia is about.
"""

import argparse
import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from streams.aggregate import Aggregate, Complete
from streams.categories import known_categories, red_line
from streams.consent import RUNGS, ConsentRecord, GrantRecord, Rung
from streams.crowd.rule import LEAST_K
from streams.event import Reason
from streams.kafka.work import Receipt
from streams.keys import MasterKey
from streams.outcome import Coordinates, QuarantineRecord
from streams.plan import Stamp
from streams.policy import Crowd, FieldRule, Noise, Policy, Purpose, Source, Topics
from streams.transforms import FORMS, Context, Kind

__all__ = ["main", "schemas", "text"]

Schema = dict[str, Any]

_TIME = (
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
_PSEUDONYM = r"^[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{22}$"
_PLAN_NAME = r"^[a-z0-9_]+([.-][a-z0-9_]+)*@[1-9][0-9]*$"
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FIRST = ("$schema", "$comment", "$ref", "title", "description", "type", "const", "enum", "required", "properties")
_LAST = ("if", "then", "else", "$defs")
_BY_NAME = ("properties", "$defs", "patternProperties", "dependentRequired")


def schemas() -> dict[str, Schema]:
    """Return all schemas by the name of their file."""
    made = {
        "policy": ("A policy file", _policy()),
        "consent": ("A consent record", _consent()),
        "output": ("A minimized event", _output()),
        "quarantine": ("A quarantine record", _quarantine()),
        "receipt": ("A receipt", _receipt()),
        "aggregate": ("A cell of a crowd", _aggregate(Aggregate)),
        "complete": ("The end of a window of a crowd", _aggregate(Complete)),
    }
    return {f"{name}.schema.json": _finished(title, schema) for name, (title, schema) in made.items()}


def _policy() -> Schema:
    schema = Policy.model_json_schema()
    defs = schema["$defs"]
    for kind in (Source, Purpose, FieldRule, Topics, Crowd, Noise):
        _remark(defs[kind.__name__], kind)
    categories = sorted(known_categories())
    red = [category for category in categories if red_line(category)]
    who = [name for name, rung in RUNGS.items() if rung >= Rung.PSEUDONYMOUS]
    defs["Purpose"] |= {
        "if": {"properties": {"rung": {"enum": who}}},
        "then": {"required": ["rotate"]},
        "else": {"if": {"properties": {"rung": {"const": "crowd"}}}, "then": {"required": ["crowd"]}},
    }
    rule = defs["FieldRule"]
    rule["properties"]["is"] |= {"enum": categories}
    rule["properties"]["as"] = {
        "description": "Forms by rung. A form holds for its rung and those above it; below the lowest, nothing passes.",
        "type": "object",
        "properties": {name: {"$ref": "#/$defs/Form"} for name, rung in RUNGS.items() if rung},
        "additionalProperties": False,
    }
    rule |= {
        "dependentRequired": {"as": ["for"]},
        "not": {"required": ["drop", "for"]},
        "if": {"required": ["for"]},
        "then": {"properties": {"is": {"description": "red lines serve no purpose", "not": {"enum": red}}}},
    }
    defs["Form"] = {
        "description": "What becomes of a value: the form's name, or one form with its parameters.",
        "oneOf": [way for kind in FORMS.values() for way in _ways_to_write(kind)],
    }
    _without_null(schema)
    return schema


def _ways_to_write(kind: Kind) -> Iterable[Schema]:
    try:
        kind.make(None, Context("any", 1, MasterKey(bytes(32))))
        yield {"description": kind.does, "const": kind.name}
    except ValueError:
        pass  # This form must have parameters.
    if kind.parameters is not None:
        yield {
            "description": kind.does,
            "type": "object",
            "properties": {kind.name: dict(kind.parameters)},
            "required": [kind.name],
            "additionalProperties": False,
        }


def _consent() -> Schema:
    schema = _of(ConsentRecord, GrantRecord)
    schema["$defs"]["GrantRecord"]["properties"]["rung"]["enum"] = list(RUNGS)  # from low to high
    return schema


def _output() -> Schema:
    stamp = _of(Stamp)
    rungs = [name for name, rung in RUNGS.items() if rung >= Rung.ANONYMOUS]
    stamp["properties"]["version"] |= {"minimum": 1}
    stamp["properties"]["rung"] |= {"enum": rungs}
    stamp["properties"]["consent"] |= _COUNT
    stamp["properties"]["expires_at"] |= {"format": "date-time"}
    stamp |= {
        "additionalProperties": False,
        "if": {"properties": {"rung": {"const": "anonymous"}}},
        "then": {"properties": {"consent": False, "subject": False}},
        "else": {
            "required": ["consent", "subject"],
            "if": {"properties": {"rung": {"const": "pseudonymous"}}},
            "then": {"properties": {"subject": {"pattern": _PSEUDONYM}}},
        },
    }
    field: Schema = {
        "description": "A value that a form gave, or a group of such. There are no arrays and no nulls.",
        "type": ["string", "number", "boolean", "object"],
        "additionalProperties": {"$ref": "#/$defs/Field"},
        "minProperties": 1,
    }
    return {
        "description": "The value of a record on the topic of a purpose: the fields that the policy names, each in the "
        "form of the rung in force, and `_celosia`. Its key is the subject of `_celosia`, or none.",
        "type": "object",
        "properties": {"_celosia": {"$ref": "#/$defs/Stamp"}},
        "required": ["_celosia"],
        "minProperties": 2,
        "additionalProperties": {"$ref": "#/$defs/Field"},
        "$defs": {"Stamp": stamp, "Field": field},
    }


def _quarantine() -> Schema:
    schema = _of(QuarantineRecord, Coordinates)
    words = _remarks(Reason)
    reasons = [{"const": reason.value, "description": words[reason.name]} for reason in Reason]
    fields = schema["properties"]
    fields["reason"] = {"oneOf": reasons}
    fields["policy"] |= {"pattern": _PLAN_NAME}
    fields["key"] |= {"enum": ["absent", "empty", "present"]}
    fields["shape"]["additionalProperties"] = {"enum": ["array", "boolean", "null", "number", "object", "string"]}
    fields["size"] |= _COUNT
    fields["unnamed"] |= _COUNT
    fields["to_offset"] = {"description": fields["to_offset"]["description"]} | _COUNT
    where = schema["$defs"]["Coordinates"]
    where["properties"]["partition"] |= _COUNT
    where["properties"]["offset"] |= _COUNT
    where["additionalProperties"] = schema["additionalProperties"] = False
    return schema


def _receipt() -> Schema:
    schema = _of(Receipt)
    schema["properties"]["partition"] |= _COUNT
    schema["properties"]["through"] |= _COUNT
    schema["properties"]["policy"] |= {"pattern": _PLAN_NAME}
    schema["additionalProperties"] = False
    return schema


def _aggregate(kind: type) -> Schema:
    schema = _of(kind)
    for name in ("people", "at_least", "events", "cells", "suppressed_at_least"):
        if name in schema["properties"]:
            schema["properties"][name] |= _COUNT
    for name in ("people", "at_least"):
        if name in schema["properties"]:
            schema["properties"][name] |= {"minimum": LEAST_K}
    if "cell" in schema["properties"]:
        schema["properties"]["cell"] |= {
            "minProperties": 1,
            "additionalProperties": {"type": ["string", "number", "boolean"]},
        }
    span, stamp = schema["$defs"]["Span"], schema["$defs"]["AggregateStamp"]
    for time in span["properties"].values():
        time |= {"format": "date-time"}
    stamp["properties"]["version"] |= {"minimum": 1}
    stamp["properties"]["rung"] = {"const": "crowd"}
    stamp["properties"]["expires_at"] |= {"format": "date-time"}
    for part in (schema, *schema["$defs"].values()):
        part["additionalProperties"] = False
    return schema


def _of(kind: type, *below: type) -> Schema:
    """Return msgspec's schema of a record; `below` are the classes that stand in it."""
    _, defs = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    for described in (kind, *below):
        _remark(defs[described.__name__], described)
    schema: Schema = defs.pop(kind.__name__)
    return schema | ({"$defs": defs} if defs else {})


def _remark(schema: Schema, kind: type) -> None:
    for name, words in _remarks(kind).items():
        schema["properties"][name.removesuffix("_")]["description"] = words


def _remarks(kind: type) -> dict[str, str]:
    """Return the words below each attribute of a class. They are in its source only."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    [definition] = [node for node in body if isinstance(node, ast.ClassDef)]
    found = {}
    for above, below in pairwise(definition.body):
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            targets = above.targets if isinstance(above, ast.Assign) else [getattr(above, "target", None)]
            if isinstance(targets[0], ast.Name):
                found[targets[0].id] = str(below.value.value)
    return found


def _without_null(schema: Any) -> None:
    """Take null away, in place: who writes a key gives it a value. (The program takes null for "not given".)"""
    if isinstance(schema, list):
        for part in schema:
            _without_null(part)
    if isinstance(schema, dict):
        ways = [way for way in schema.get("anyOf", []) if way != {"type": "null"}]
        if len(ways) == 1:
            del schema["anyOf"]
            schema |= ways[0]
        elif ways:
            schema["anyOf"] = ways
        default = schema.get("default", "")
        if default is None or isinstance(default, dict):
            del schema["default"]
        elif isinstance(default, int) and schema["type"] == "string":
            schema["default"] = f"{default}ms"  # A duration is a number inside the program.
        for part in schema.values():
            _without_null(part)


def _finished(title: str, schema: Schema) -> Schema:
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": "Written by `make schemas` from the models in streams/; not by hand.",
        "title": title,
    }
    ordered: Schema = _ordered(head | {name: part for name, part in schema.items() if name != "title"})
    return ordered


def _ordered(schema: Any) -> Any:
    """Return a schema with its keywords in one order, whatever made it, and without the titles below the first."""
    if isinstance(schema, list):
        return [_ordered(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "date-time":
        schema = schema | {"pattern": _TIME}
    if "patternProperties" in schema:
        schema = {"additionalProperties": False} | schema
    if "description" in schema:
        paragraphs = inspect.cleandoc(schema["description"]).split("\n\n")
        schema = schema | {"description": "\n".join(" ".join(lines.split()) for lines in paragraphs)}
    names = sorted(schema, key=_rank)
    return {
        name: {inner: _inner(part) for inner, part in schema[name].items()}
        if name in _BY_NAME
        else _ordered(schema[name])
        for name in names
    }


def _rank(keyword: str) -> tuple[int, int, str]:
    if keyword in _FIRST:
        return 0, _FIRST.index(keyword), keyword
    return (2, _LAST.index(keyword), keyword) if keyword in _LAST else (1, 0, keyword)


def _inner(schema: Any) -> Any:
    if isinstance(schema, dict):
        schema = {name: part for name, part in schema.items() if name != "title"}
    return _ordered(schema)


def main(arguments: list[str] | None = None) -> int:
    """Write all schemas; the folder is the first argument."""
    parser = argparse.ArgumentParser(prog="python -m streams.schemas", description="Write the JSON Schemas.")
    repository = Path(__file__).parent.parent / "schemas"
    parser.add_argument("folder", nargs="?", type=Path, default=repository, metavar="DIR", help="where to (schemas/)")
    folder: Path = parser.parse_args(arguments).folder
    if folder == repository and not folder.is_dir():
        parser.error(
            "this is not a clone of the repository; name the folder to write to: python -m streams.schemas DIR"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        (folder / name).write_text(text(schema), "utf-8")
        print(folder / name)
    return 0


def text(schema: Schema) -> str:
    """Return a schema as it stands in its file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
