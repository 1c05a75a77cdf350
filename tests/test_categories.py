"""The red lines, one by one, and the vocabulary they are written in."""

import csv
import os
from pathlib import Path

import pytest

from streams.categories import (
    _HINTS,
    _SHORT_HINTS,
    RED_LINES,
    about_a_person,
    closest,
    known_categories,
    red_line,
    suggest,
)

CROSSED = [category for crossed in RED_LINES.values() for category in crossed]
ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("CELOSIA_DATA") or ROOT.parent / "shared" / "data")
FIDESLANG = DATA / "consent" / "fideslang" / "data_files" / "data_categories.csv"


@pytest.mark.parametrize(
    ("category", "line"),
    [
        ("user.biometric", "biometric data and faces are never used to recognize people"),
        ("user.biometric.fingerprint", "biometric data and faces are never used to recognize people"),
        ("user.biometric.retinal", "biometric data and faces are never used to recognize people"),
        ("user.biometric.health", "biometric data and faces are never used to recognize people"),
        ("user.authorization.biometric", "biometric data and faces are never used to recognize people"),
        ("user.content.self_image", "biometric data and faces are never used to recognize people"),
        ("user.demographic.age_range", "nobody is targeted by age"),
        ("user.demographic.date_of_birth", "nobody is targeted by age"),
        ("user.childrens", "nobody is targeted by age"),
        ("user.demographic.gender", "nobody is targeted by sex or gender"),
        ("user.health_and_medical", "health is nobody's business"),
        ("user.health_and_medical.genetic", "health is nobody's business"),
        ("user.demographic.religious_belief", "belief and opinion are nobody's business"),
        ("user.demographic.political_opinion", "belief and opinion are nobody's business"),
        ("user.demographic.race_ethnicity", "origin is nobody's business"),
        ("user.demographic.sexual_orientation", "sexual orientation is nobody's business"),
        ("user.location.precise", "nobody is followed around"),
    ],
)
def test_each_red_line_is_crossed_by_its_categories_and_those_below(category: str, line: str) -> None:
    assert red_line(category) == line


@pytest.mark.parametrize(
    ("parent", "red", "line"),
    [
        ("user", "user.biometric", "biometric data and faces are never used to recognize people"),
        (
            "user.authorization",
            "user.authorization.biometric",
            "biometric data and faces are never used to recognize people",
        ),
        ("user.content", "user.content.self_image", "biometric data and faces are never used to recognize people"),
        ("user.demographic", "user.demographic.age_range", "nobody is targeted by age"),
        ("user.location", "user.location.precise", "nobody is followed around"),
    ],
)
def test_a_category_that_contains_a_red_one_does_not_say_enough(parent: str, red: str, line: str) -> None:
    assert red_line(parent) == f"it may hold {red}; {line}; name the category below it"


@pytest.mark.parametrize(
    "category",
    [
        "system",
        "system.operations",
        "user.behavior",
        "user.behavior.browsing_history",
        "user.contact.email",
        "user.demographic.language",
        "user.content.private",
        "user.location.imprecise",
        "user.authorization.password",
        "user.unique_id",
    ],
)
def test_other_categories_cross_no_line(category: str) -> None:
    assert category in known_categories()
    assert red_line(category) is None


def test_a_name_that_only_begins_alike_is_another_category() -> None:
    assert red_line("user.biometrics") is None
    assert red_line("user.demographic.gender_neutral") is None


def test_every_category_of_the_red_lines_and_the_hints_is_in_the_vocabulary() -> None:
    named = {*CROSSED, *(category for _, category in _HINTS), *_SHORT_HINTS.values()}
    assert named - known_categories() == set()


def test_no_category_stands_below_two_lines() -> None:
    assert len(set(CROSSED)) == len(CROSSED)


def test_the_vocabulary_is_whole() -> None:
    known = known_categories()
    assert len(known) == 85
    assert all(category.rpartition(".")[0] in known for category in known if "." in category)


@pytest.mark.skipif(not FIDESLANG.exists(), reason="no fideslang: CELOSIA_DATA names the folder it is in")
def test_the_vocabulary_is_that_of_fideslang() -> None:
    with FIDESLANG.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    current = {row["fides_key"] for row in rows if not row["version_deprecated"]}
    assert known_categories() == current - {"data_category"}  # the root of the tree is no category


@pytest.mark.parametrize(
    ("category", "person"),
    [("system", False), ("system.operations", False), ("user", True), ("user.behavior", True), ("systematic", True)],
)
def test_what_is_about_a_person(category: str, person: bool) -> None:
    assert about_a_person(category) is person


def test_the_nearest_word_is_offered_and_nothing_far() -> None:
    assert closest("truncate", ["keep", "truncate_ip"]) == "; did you mean `truncate_ip`?"
    assert closest("zzz", ["keep", "truncate_ip"]) == ""
    assert closest("keep", []) == ""


@pytest.mark.parametrize(
    ("path", "category"),
    [
        ("traits.email", "user.contact.email"),
        ("traits.E-Mail", "user.contact.email"),
        ("billing.first_name", "user.name.first"),
        ("username", "user.account.username"),
        ("name", "user.name"),
        ("product_name", "user.behavior.browsing_history"),
        ("display_name", "user.name"),
        ("context.ip", "user.device.ip_address"),
        ("client_ip", "user.device.ip_address"),
        ("shipping", None),
        ("age", "user.demographic.age_range"),
        ("page", None),
        ("user_age", "user.demographic.age_range"),
        ("email.verified", None),
        ("geo.latitude", "user.location.precise"),
        ("geo.lat", "user.location.precise"),
        ("", None),
    ],
)
def test_a_suggestion_goes_by_the_last_name_only(path: str, category: str | None) -> None:
    assert suggest(path) == category
