"""The vocabulary of data categories (fideslang, by Ethyca, CC BY 4.0), and the red lines that no consent unlocks.

Rules of this file:
- The red lines are in the program. A policy cannot move them; it can only be refused by them.
- A category that *contains* a red one (`user.demographic` contains age) is refused too: it does not say enough.
"""

import json
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

__all__ = ["RED_LINES", "about_a_person", "closest", "known_categories", "red_line", "suggest"]

RED_LINES: dict[str, tuple[str, ...]] = {
    "biometric data and faces are never used to recognize people": (
        "user.biometric",
        "user.authorization.biometric",
        "user.content.self_image",
    ),
    "nobody is targeted by age": ("user.demographic.age_range", "user.demographic.date_of_birth", "user.childrens"),
    "nobody is targeted by sex or gender": ("user.demographic.gender",),
    "health is nobody's business": ("user.health_and_medical", "user.biometric.health"),
    "belief and opinion are nobody's business": (
        "user.demographic.religious_belief",
        "user.demographic.political_opinion",
    ),
    "origin is nobody's business": ("user.demographic.race_ethnicity",),
    "sexual orientation is nobody's business": ("user.demographic.sexual_orientation",),
    "nobody is followed around": ("user.location.precise",),
}
"""Each line in words a person can read, with the categories that cross it (above the rung `crowd`)."""

# What names of fields give away. Only for suggestions and warnings: the policy's author decides.
_HINTS: tuple[tuple[str, str], ...] = (
    ("email", "user.contact.email"),
    ("e_mail", "user.contact.email"),
    ("phone", "user.contact.phone_number"),
    ("mobile", "user.contact.phone_number"),
    ("birth", "user.demographic.date_of_birth"),
    ("gender", "user.demographic.gender"),
    ("sex", "user.demographic.gender"),
    ("religio", "user.demographic.religious_belief"),
    ("ethnic", "user.demographic.race_ethnicity"),
    ("health", "user.health_and_medical"),
    ("diagnos", "user.health_and_medical"),
    ("fingerprint", "user.biometric.fingerprint"),
    ("first_name", "user.name.first"),
    ("firstname", "user.name.first"),
    ("last_name", "user.name.last"),
    ("lastname", "user.name.last"),
    ("surname", "user.name.last"),
    ("username", "user.account.username"),
    ("password", "user.authorization.password"),
    ("iban", "user.financial.bank_account"),
    ("card", "user.financial.credit_card"),
    ("passport", "user.government_id.passport_number"),
    ("street", "user.contact.address.street"),
    ("postal", "user.contact.address.postal_code"),
    ("postcode", "user.contact.address.postal_code"),
    ("zip", "user.contact.address.postal_code"),
    ("city", "user.contact.address.city"),
    ("country", "user.contact.address.country"),
    ("address", "user.contact.address"),
    ("latitude", "user.location.precise"),
    ("longitude", "user.location.precise"),
    ("user_agent", "user.device"),
    ("useragent", "user.device"),
    ("device_id", "user.device.device_id"),
    ("cookie", "user.device.cookie_id"),
    ("advertising", "user.device.device_id"),
    ("url", "user.behavior.browsing_history"),
    ("referrer", "user.behavior.browsing_history"),
    ("search", "user.behavior.search_history"),
    ("query", "user.behavior.search_history"),
    ("price", "user.behavior.purchase_history"),
    ("order", "user.behavior.purchase_history"),
    ("quantity", "user.behavior.purchase_history"),
    ("invoice", "user.behavior.purchase_history"),
    ("product", "user.behavior.browsing_history"),
    ("sku", "user.behavior.browsing_history"),
    ("locale", "user.demographic.language"),
    ("language", "user.demographic.language"),
    ("message_id", "system.operations"),
    ("event_id", "system.operations"),
    ("timestamp", "user.behavior"),
)
_SHORT_HINTS = {
    "ip": "user.device.ip_address",
    "age": "user.demographic.age_range",
    "dob": "user.demographic.date_of_birth",
    "lat": "user.location.precise",
    "lon": "user.location.precise",
    "lng": "user.location.precise",
    "name": "user.name",
    "id": "user.unique_id",
    "note": "user.content",
    "comment": "user.content",
    "text": "user.content",
    "session": "user.unique_id.pseudonymous",
}


@cache
def known_categories() -> frozenset[str]:
    """Return all data categories of fideslang by their dotted keys."""
    document = json.loads(files("streams").joinpath("data/fideslang_categories.json").read_bytes())
    return frozenset(document["categories"])


def red_line(category: str) -> str | None:
    """Return the red line that a category crosses, in words, or None.

    >>> red_line("user.biometric.retinal")
    'biometric data and faces are never used to recognize people'
    >>> red_line("user.demographic")
    'it may hold user.demographic.age_range; nobody is targeted by age; name the category below it'
    >>> red_line("user.contact.email") is None
    True
    """
    for line, crossed in RED_LINES.items():
        for red in crossed:
            if f"{category}.".startswith(f"{red}."):
                return line
            if red.startswith(f"{category}."):
                return f"it may hold {red}; {line}; name the category below it"
    return None


def about_a_person(category: str) -> bool:
    """Tell whether a category is about a person, and not about the running of the system."""
    return not f"{category}.".startswith("system.")


def closest(word: str, known: "frozenset[str] | set[str] | list[str] | dict[str, object]") -> str:
    """Return `; did you mean ...?` for a word that is not known, or nothing where nothing is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean `{near[0]}`?" if near else ""


def suggest(path: str) -> str | None:
    """Suggest a category for a field from its name alone; no value is looked at.

    >>> suggest("context.ip"), suggest("traits.birthDate"), suggest("properties.zzz")
    ('user.device.ip_address', 'user.demographic.date_of_birth', None)
    """
    last = path.rsplit(".", 1)[-1].lower().replace("-", "_")
    if last in _SHORT_HINTS:
        return _SHORT_HINTS[last]
    for hint, category in _HINTS:
        if hint in last:
            return category
    for word in last.split("_"):
        if word in _SHORT_HINTS:
            return _SHORT_HINTS[word]
    return None
