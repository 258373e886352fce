"""How other gateways are set up for the benchmark, and what is asked of answers that they write anew."""

from collections.abc import Callable

import pytest
import yaml

from benchmarks.other_gateways import litellm_config, portkey_order
from benchmarks.rewritten import RewrittenOrder
from benchmarks.traffic import MODEL, Order, order_in

ORDER = RewrittenOrder(7, events=2)
# What LiteLLM makes of the upstream's bodies.
ANSWER = ORDER.answer().replace(b'"model":"model"', b'"model":"bench/model"').replace(b'{"role"', b'{"more":{},"role"')
STREAM = (
    ORDER.stream()
    .replace(b"1700000000", b"1795387518")
    .replace(b'"delta":{"content":" word0"', b'"delta":{"role":"assistant","content":" word0"')
    .replace(b'"choices":[],', b'"choices":[{"index":0,"delta":{}}],')
)


def test_litellm_has_one_model_at_the_upstream_and_passes_on_what_carries_the_order() -> None:
    """The one model is the upstream's, under the name that is asked for."""
    config = yaml.safe_load(litellm_config(1234, None))
    (model,) = config["model_list"]
    assert (model["model_name"], model["litellm_params"]["api_base"]) == (MODEL, "http://127.0.0.1:1234/v1")
    assert model["litellm_params"]["allowed_openai_params"] == ["user"]


@pytest.mark.parametrize(
    ("key", "general"),
    [(None, {"dangerously_permit_weak_or_unset_master_key": True}), ("sk-1", {"master_key": "sk-1"})],
)
def test_litellm_checks_a_key_only_if_it_has_one(key: str | None, general: dict[str, object]) -> None:
    """Without a master key it has to be told to start all the same."""
    assert yaml.safe_load(litellm_config(1234, key))["general_settings"] == general


def test_portkey_is_told_in_each_head_where_a_request_goes() -> None:
    """The order to it is the same request with two headers more."""
    wire = portkey_order(1234)(7).request()
    assert b"\r\nx-portkey-custom-host: http://127.0.0.1:1234/v1\r\n" in wire
    assert wire.partition(b"\r\n\r\n")[2] == Order(7).request().partition(b"\r\n\r\n")[2]
    assert order_in(wire) == Order(7)


def test_an_answer_that_is_written_anew_is_right_when_it_says_the_same() -> None:
    """Another model's name, time or member changes nothing that counts, and a plain order accepts no change."""
    assert ORDER.is_answer(ANSWER)
    assert ORDER.is_stream(STREAM)
    assert not Order(7).is_answer(ANSWER)
    assert not Order(7, events=2).is_stream(STREAM)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.replace(b"-00000007", b"-00000008"),
        lambda body: body.replace(b"A gateway", b"Gateway").replace(b" word1", b" word2"),
        lambda body: body.replace(b'"stop"', b'"length"'),
        lambda body: body.replace(b'"total_tokens":196', b'"total_tokens":197'),
    ],
)
def test_an_answer_that_is_written_anew_is_wrong_when_it_says_something_else(change: Callable[[bytes], bytes]) -> None:
    """Number, text, reason to finish and usage have to be the upstream's, in whole answers and in streams."""
    assert not ORDER.is_answer(change(ANSWER))
    assert not ORDER.is_stream(change(STREAM))


def test_a_stream_that_is_written_anew_is_wrong_without_its_end_or_with_events_put_together() -> None:
    """Events come one by one, up to the last."""
    first, second, *rest = STREAM.split(b"\n\n")
    assert not ORDER.is_stream(STREAM.replace(b"data: [DONE]\n\n", b""))
    assert not ORDER.is_stream(b"\n\n".join([first.replace(b"word0", b"word0 word1"), *rest]))
    assert not ORDER.is_stream(b"\n\n".join([second, first, *rest]))
