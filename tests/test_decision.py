"""decide(): the dozen lines that everything rests on, case by case and in their order."""

import pytest

from streams.consent import FOREVER, Consent, Grant, Refusal, Rung
from streams.decision import decide
from streams.keys import MasterKey
from streams.plan import Recipe, Service, compile_plan
from streams.policy import parse_policy

POLICY = b"""
policy: shop
version: 1
sources:
  web: {topic: raw, own: true, subject: who, type: what}
purposes:
  hints: {benefit: Suggestions that fit you, topic: out.hints, rung: pseudonymous, rotate: 30d, lifetime: 30d}
events:
  seen:
    page: {is: system.operations, for: all, as: {pseudonymous: keep}}
"""
EVERYTHING = Grant(Rung.IDENTIFIED, 1000, FOREVER)


@pytest.fixture(scope="module")
def service() -> Service:
    (source,) = compile_plan(parse_policy(POLICY), MasterKey(bytes(32))).sources
    (service,) = source.services["seen"]
    return service


def said(grant: Grant | None, *, readable: bool = True) -> Consent:
    return Consent(1, {} if grant is None else {"hints": grant}, readable)


@pytest.mark.parametrize(
    ("consent", "refusal"),
    [
        (None, Refusal.NO_CONSENT),
        (said(None, readable=False), Refusal.CONSENT_UNREADABLE),
        (said(EVERYTHING, readable=False), Refusal.CONSENT_UNREADABLE),
        (said(None), Refusal.NOT_ALLOWED),
        (Consent(1, {"ads": EVERYTHING}), Refusal.NOT_ALLOWED),
        (said(Grant(Rung.NOTHING, 0, FOREVER)), Refusal.NOT_ALLOWED),
        (said(Grant(Rung.IDENTIFIED, 2001, FOREVER)), Refusal.RECORDED_BEFORE_CONSENT),
        (said(Grant(Rung.IDENTIFIED, 1000, 3000)), Refusal.EXPIRED),
        (said(Grant(Rung.CROWD, 1000, FOREVER)), Refusal.RUNG_TOO_LOW),
        (said(Grant(Rung.ANONYMOUS, 1000, FOREVER)), Refusal.RUNG_TOO_LOW),
    ],
)
def test_the_first_reason_that_applies(service: Service, consent: Consent | None, refusal: Refusal) -> None:
    assert decide(service, consent, 2000, 3000) is refusal


@pytest.mark.parametrize("rung", [Rung.PSEUDONYMOUS, Rung.IDENTIFIED])
def test_what_is_allowed_gets_the_recipe_of_the_lower_rung(service: Service, rung: Rung) -> None:
    recipe = decide(service, said(Grant(rung, 1000, FOREVER)), 2000, 3000)
    assert isinstance(recipe, Recipe)
    assert recipe.rung is Rung.PSEUDONYMOUS
    assert recipe is service.recipes[Rung.PSEUDONYMOUS]


def test_a_skew_is_none_unless_it_is_declared_and_moves_the_beginning_only(service: Service) -> None:
    consent = said(Grant(Rung.IDENTIFIED, 1000, 3000))
    assert isinstance(decide(service, consent, 1000, 2999), Recipe)
    assert isinstance(decide(service, consent, 1000, 2999, 0), Recipe)
    assert decide(service, consent, 1000, 2999, 1) is Refusal.RECORDED_BEFORE_CONSENT
    assert isinstance(decide(service, consent, 1001, 2999, 1), Recipe)
    assert decide(service, consent, 1001, 3000, 1) is Refusal.EXPIRED
