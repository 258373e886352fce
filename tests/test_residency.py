"""Where requests may go: regions, vendors that keep nothing, and what a whole configuration could ever reach."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmproxy.api import Attempt, ConfigError, Exchange, Hedge, Retry, Section, Services, UpstreamError, hookimpl
from llmproxy.regions import lies_within
from llmproxy.testing import ScriptedUpstream, StartProxy, fail, reply
from llmproxy_plugins.residency import Residency

REGIONS = ["eu-west-1", "eu-central-1", "us-east-1", "europe-west2", "eu", None]


class Stubborn:
    """Tries and hedges for as long as it is let."""

    name = "stubborn"

    def __init__(self, config: Section, services: Services) -> None:
        """Nothing to configure."""

    @hookimpl
    def on_error(self, exchange: Exchange, attempt: Attempt, error: UpstreamError) -> Retry:
        """Again."""
        return Retry()

    @hookimpl
    def hedge(self, exchange: Exchange, attempt: Attempt) -> Hedge:
        """At once, at whatever stands last."""
        return Hedge(exchange.targets[-1], 0.0)


def places(upstream: ScriptedUpstream, regions: list[tuple[str | None, bool]]) -> dict[str, Any]:
    """A provider `p0`, `p1`… for each region and retention label, and an alias `test` over all of them."""
    providers = {
        f"p{number}": {
            "kind": "openai",
            "base_url": upstream.base_url,
            "api_key": "sk-x",
            "region": region,
            "zero_retention": keeps_nothing,
        }
        for number, (region, keeps_nothing) in enumerate(regions)
    }
    names = [f"{name}/m" for name in providers]
    return {"providers": providers, "models": {"test": {"targets": names[:1], "fallbacks": names[1:]}}}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=st.lists(st.tuples(st.sampled_from(REGIONS), st.booleans()), min_size=1, max_size=4),
    workspace=st.sampled_from([None, "eu", "us"]),
    header=st.sampled_from([None, "eu", "eu-west-1"]),
    rule=st.fixed_dictionaries(
        {"regions": st.sampled_from([["eu"], ["us", "eu-west-1"]]), "zero_retention": st.booleans()}
    ),
)
async def test_no_attempt_ever_leaves_the_constraint(
    proxy: StartProxy,
    labels: list[tuple[str | None, bool]],
    workspace: str | None,
    header: str | None,
    rule: dict[str, Any],
) -> None:
    """Whatever fails, is tried again or hedged, every attempt complies with workspace, header and rule."""
    async with ScriptedUpstream([fail(503)] * 60) as upstream:
        config = {**places(upstream, labels), "workspaces": {"default": {"region": workspace}}}
        headers = {"x-llmproxy-region": header} if header else {}
        async with proxy(Residency, {"rules": [rule]}, Stubborn, config=config) as client:
            response = await client.chat("hello", headers=headers)
            rows = await client.rows()
    assert response.status in (403, 503)
    allowed = {
        f"p{number}"
        for number, (region, keeps_nothing) in enumerate(labels)
        if all(lies_within(region, each) for each in (workspace, header) if each)
        and any(lies_within(region, each) for each in rule["regions"])
        and (keeps_nothing or not rule["zero_retention"])
    }
    assert {row["provider_name"] for row in rows.attempts} <= allowed
    assert (response.status == 403) == (not allowed)


async def test_a_refusal_names_the_constraint(proxy: StartProxy) -> None:
    """403, with what the request was held to, and nothing was sent."""
    rules = {"rules": [{"workspace": "def*", "regions": ["eu"], "zero_retention": True}]}
    async with proxy(Residency, rules, upstream=[reply("hi")]) as client:
        response = await client.chat("hello")
        sent = list(client.upstream.requests)
    error = response.document["error"]
    assert (response.status, error["code"]) == (403, "residency_not_allowed")
    assert "in eu and with vendors that keep nothing" in error["message"]
    assert sent == []


async def test_the_row_has_the_evidence(proxy: StartProxy) -> None:
    """What the request was kept to, and which target was skipped for it."""
    config = {
        "providers": {"demo": {"region": "us"}, "upstream": {"region": "eu-west-1"}},
        "models": {"test": {"targets": ["demo/echo"], "fallbacks": ["upstream/test-model"]}},
    }
    async with proxy(Residency, {"rules": [{"regions": ["eu"]}]}, upstream=[reply("hi")], config=config) as client:
        response = await client.chat("hello")
        rows = await client.rows()
    assert response.headers["x-llmproxy-model"] == "upstream/test-model"
    decisions = rows.requests[0]["decisions"]
    assert {"by": "residency", "what": "skipped demo/echo", "why": "it lies in us, not in eu"} in decisions
    assert any(each["what"] == "kept in eu" and each["why"] == "1 of 2 targets comply" for each in decisions)


async def test_rules_concern_whom_they_name(proxy: StartProxy) -> None:
    """A rule for another workspace, key or model holds nobody else."""
    rules = [{name: "nobody", "regions": ["eu"]} for name in ("workspace", "key", "model")]
    async with proxy(Residency, {"rules": rules}, upstream=[reply("hi")]) as client:
        assert (await client.chat("hello")).status == 200


async def test_a_rule_that_says_nothing_is_refused(proxy: StartProxy) -> None:
    """It would look like a guard and be none."""
    with pytest.raises(ConfigError, match="keeps nothing anywhere"):
        async with proxy(Residency, {"rules": [{"workspace": "acme"}]}):
            pass


async def test_the_clients_region_narrows_without_any_plugin(proxy: StartProxy) -> None:
    """`x-llmproxy-region` is core's own: a request is never served from elsewhere because a plugin was left out."""
    config = {"providers": {"upstream": {"region": "us-east-1"}}}
    async with proxy(upstream=[reply("hi")], config=config) as client:
        refused = await client.chat("hello", headers={"x-llmproxy-region": "eu"})
        served = await client.chat("hello", headers={"x-llmproxy-region": "us"})
    assert (refused.status, refused.document["error"]["code"]) == (403, "region_not_allowed")
    assert "x-llmproxy-region" in refused.document["error"]["message"]
    assert served.status == 200


async def test_a_target_may_lie_elsewhere_than_its_provider(proxy: StartProxy) -> None:
    """The alias's entry wins over the provider's section."""
    config = {
        "providers": {"upstream": {"region": "us-east-1"}},
        "models": {"test": {"targets": [{"model": "upstream/test-model", "region": "eu-west-1"}]}},
    }
    async with proxy(upstream=[reply("hi")], config=config) as client:
        assert (await client.chat("hello", headers={"x-llmproxy-region": "eu"})).status == 200


CHECKED = """
providers:
  demo: {region: us}
  local: {kind: openai, base_url: "http://127.0.0.1:9/v1", region: eu-west-1, api_keys: [one, two]}
models:
  support: {targets: [demo/echo], fallbacks: [local/llama]}
workspaces:
  acme: {keys: ["sk-of-the-checked-workspace-1"], region: eu, models: ["support", "demo/*"]}
  other: {keys: ["sk-of-the-checked-workspace-2"]}
"""


def test_check_proves_where_a_workspace_can_reach(tmp_path: Path) -> None:
    """Every workspace and model, with the places that are left, or why there are none; two keys are one place."""
    path = tmp_path / "config.yaml"
    path.write_text(CHECKED)
    command = [sys.executable, "-m", "llmproxy", "check", "--residency", "--json", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {(row["workspace"], row["model"]): row for row in json.loads(done.stdout)}
    assert [target["model"] for target in found["acme", "support"]["targets"]] == ["local/llama"]
    assert "'eu'" in found["acme", "demo/echo"]["refusal"]
    assert ("acme", "local/*") not in found
    assert [target["model"] for target in found["other", "support"]["targets"]] == ["demo/echo", "local/llama"]
    table = subprocess.run([each for each in command if each != "--json"], capture_output=True, text=True, check=True)
    assert all(line.count("local/llama ") <= 1 for line in table.stdout.splitlines())
