"""celosia: what may be known about a person, and by whom, decided for each behaviour event on Kafka.

Read it in this order; a module imports only modules above it.

    errors        what celosia refuses to start with, drawn as a tree
    event         one raw event, and the ways in which it can be unfit
    keys          the master key, pseudonyms, sealed coordinates
    transforms/   the forms that a field can be given: one file a kind, with its examples
    sources/      bytes to envelope: subject, type, time, id and the fields that the policy names
    consent       what a person allows, and rule 1
    categories    what a field can be, and the red lines
    crowd/        what many people did, counted so that nobody can be found in it
    policy/       the policy file, checked
    plan          the policy compiled
    decision      may this event serve this purpose, and at which rung?
    minimized     the event built up from nothing
    outcome       published, suppressed or quarantined
    pipeline      `process`: all of the above in one pure function. Start here to see the whole
    aggregate     what is told of a crowd
    lines         lines of files, and the consents of a file
    files         the same function over files: `celosia filter`
    check         `celosia check`: a policy in words, and what a sample holds that it does not name
    explain       `celosia explain`: what happens to each field of one event, and why
    settings      what a worker needs to know
    metrics       all metrics, in one list
    kafka/        lanes, gate, follower: the only place that imports faust or aiokafka
    testing       a broker in memory, for tests
    embedded      brokers for the demonstration and the tests
    demo/         a running shop to watch
    schemas       JSON Schemas, written from the models
    cli/          the commands

The names below can be imported from here. They are loaded when they are used: importing `streams` itself is cheap.

>>> from streams import Consents, MasterKey, compile_plan
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streams.consent import Consents
    from streams.errors import CelosiaError, PolicyError, SettingsError
    from streams.event import RawEvent
    from streams.keys import MasterKey
    from streams.outcome import Outcome, Output
    from streams.pipeline import Place, process
    from streams.plan import Plan, compile_plan
    from streams.policy import Policy, load_policy, parse_policy

__all__ = [
    "CelosiaError",
    "Consents",
    "MasterKey",
    "Outcome",
    "Output",
    "Place",
    "Plan",
    "Policy",
    "PolicyError",
    "RawEvent",
    "SettingsError",
    "compile_plan",
    "load_policy",
    "parse_policy",
    "process",
]

_HOMES = {
    "CelosiaError": "errors",
    "Consents": "consent",
    "MasterKey": "keys",
    "Outcome": "outcome",
    "Output": "outcome",
    "Place": "pipeline",
    "Plan": "plan",
    "Policy": "policy",
    "PolicyError": "errors",
    "RawEvent": "event",
    "SettingsError": "errors",
    "compile_plan": "plan",
    "load_policy": "policy",
    "parse_policy": "policy",
    "process": "pipeline",
}


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(f"streams.{_HOMES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
