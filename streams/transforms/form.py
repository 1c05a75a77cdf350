"""The interface that all forms share, and the words to describe one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from streams.keys import MasterKey

__all__ = ["ABSENT", "SCALARS", "Context", "Example", "Form", "Kind"]

ABSENT: Final = None
"""What a form returns for a value it does not take, and what a reader gives for a field that is not there, or null."""

SCALARS = frozenset({str, int, float, bool})
"""The types of what may stand in an output."""

Form = Callable[[Any, int], Any]
"""A compiled form: (value, time recorded in ms) -> value or ABSENT."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a form may know of where it stands: the purpose, the length of its epochs in ms, and the master key."""

    purpose: str
    rotate: int
    master: MasterKey


@dataclass(frozen=True, slots=True)
class Example:
    """Parameters as the policy gives them, a value, and what comes out (ABSENT: nothing)."""

    parameters: Any
    value: Any
    result: Any


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of form: its spec, its examples, and how it is made.

    `make(parameters, context)` returns the compiled form and raises ValueError, saying what was wanted, for parameters
    that make no sense. `parameters` is None for a form without any.
    """

    name: str
    does: str
    protects: str
    make: Callable[[Any, Context], Form]
    parameters: Mapping[str, Any] | None = None
    """JSON Schema of the parameters; None: the form has none"""
    precision: int = 0
    """for forms of time: the length in ms of the shortest span that the result can still tell apart"""
    idempotent: bool = True
    """given its own result, the form returns it unchanged"""
    examples: tuple[Example, ...] = field(default=())
