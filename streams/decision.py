"""The decision: may this event serve this purpose, and in which form?

    allow   only if the policy has the event serve the purpose                       (EVENT_NOT_NAMED)
        and the person's consent is known and readable                               (NO_CONSENT, CONSENT_UNREADABLE)
        and rule 1 holds for the purpose, giving the rung the person allows          (NOT_ALLOWED, ..., EXPIRED)
        and at the lower of that rung and the purpose's own there is a form          (RUNG_TOO_LOW)
    deny    otherwise, for the first reason that applies

Laws, each a property test: default deny; refusal beats permission; less consent never reveals more; the order of
purposes and fields does not matter. The oracle is `tests/model.py`, written from these lines alone.
"""

from streams.consent import Consent, Refusal, rule_1
from streams.plan import CrowdRecipe, Recipe, Service

__all__ = ["decide"]


def decide(
    service: Service, consent: Consent | None, recorded: int, now: int, skew: int = 0
) -> Recipe | CrowdRecipe | Refusal:
    """Decide for one purpose: the recipe of the rung in force, or the reason why nothing passes.

    `recorded` and `now` are milliseconds; `skew` is the declared difference of clocks.
    """
    if consent is None:
        return Refusal.NO_CONSENT
    if not consent.readable:
        return Refusal.CONSENT_UNREADABLE
    purpose = service.purpose
    allowed = rule_1(consent.grants.get(purpose.name), recorded, now, skew)
    if isinstance(allowed, Refusal):
        return allowed
    # INVARIANT (refusal beats permission): the lower of the two rungs, never the higher.
    highest = purpose.highest
    recipe = service.recipes[allowed if allowed < highest else highest]
    return Refusal.RUNG_TOO_LOW if recipe is None else recipe
