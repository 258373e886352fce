"""Where an exchange may go at all: what its model and its fallbacks stand for, in the regions it must not leave."""

from __future__ import annotations

from dataclasses import replace

from llmproxy.attribution import required_regions
from llmproxy.catalogue import Catalogue, asked_fallbacks
from llmproxy.errors import Refused
from llmproxy.exchange import Exchange, Target
from llmproxy.regions import lies_within


def candidates(catalogue: Catalogue, exchange: Exchange) -> tuple[Target, ...]:
    """The model's own targets, then those the client asked for in case they fail; each place once.

    Raises ModelNotFound, ModelNotAllowed, BadRequest, or Refused when none of them lies where the exchange must stay.
    """
    found = [*catalogue.resolve(exchange.request.model, exchange.principal)]
    for name in asked_fallbacks(exchange.request, exchange.headers):
        # Like an alias's own fallbacks they have no share of the requests.
        found += [replace(target, weight=0.0) for target in catalogue.resolve(name, exchange.principal)]
    for region, why in required_regions(exchange):
        found = [target for target in found if lies_within(target.region, region)]
        if not found:
            sentence = f"No target of this model is known to lie in '{region}', {why}."
            raise Refused(sentence, code="region_not_allowed", param="model")
    if len(found) == 1:
        return tuple(found)
    places: dict[tuple[str, str, str | None], Target] = {}
    for target in found:
        # Once each, whatever names lead there: what comes first counts.
        places.setdefault((target.provider, target.model, target.credential), target)
    return tuple(places.values())
