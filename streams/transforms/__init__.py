"""The forms that a field can be given. One family, one interface: a form takes a value and returns a value.

    form(value, at) -> value, or ABSENT

`value` is a JSON scalar (string, number, true or false), `at` the time in milliseconds at which the event was
recorded. A form that cannot take a value returns ABSENT: the field is left out. Every form but
`pseudonym` is idempotent: given its own result, it returns it unchanged (minimizing twice changes nothing).

One kind, one file: the function, its spec and its examples as data. One test runs all examples; `celosia check`,
the JSON Schema of policies and the README's table come from the same objects.
"""

from streams.transforms.address import TRUNCATE_IP
from streams.transforms.form import ABSENT, SCALARS, Context, Example, Form, Kind
from streams.transforms.number import BUCKET, ROUND
from streams.transforms.plain import DROP, KEEP
from streams.transforms.pseudonym import PSEUDONYM
from streams.transforms.time import DAY, HOUR, MONTH
from streams.transforms.url import URL

__all__ = ["ABSENT", "FORMS", "SCALARS", "Context", "Example", "Form", "Kind"]

FORMS: dict[str, Kind] = {
    kind.name: kind for kind in (KEEP, DROP, ROUND, BUCKET, HOUR, DAY, MONTH, TRUNCATE_IP, URL, PSEUDONYM)
}
"""All kinds of form by the word that a policy uses."""
