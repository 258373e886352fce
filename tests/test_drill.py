"""`llmproxy drill`: whose outage clients would notice, found out without a vendor, a key or a row of anybody's."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llmproxy.api import Exchange, Failure, Retry, Section, Services, UpstreamError, hookimpl
from llmproxy.cli.commands import command_line
from llmproxy.drill.faults import FAULTS, STORY
from llmproxy.drill.run import Traffic, run_drills
from llmproxy.drill.stage import Stage
from llmproxy.drill.traffic import Answered, ask_together
from llmproxy.drill.verdict import Drill, judge
from llmproxy.errors import ConfigError
from llmproxy.gateway import ConfigSource
from llmproxy.testing import Reply
from llmproxy.testing.messages import RecordedRequest
from llmproxy.testing.vendor_formats import fail_inside, format_of, refuse

ROOT = Path(__file__).parent.parent
SECRET = "sk-the-real-key-of-somebody"
VENDORS = {
    "openai": "gpt-4o",
    "groq": "llama-4",
    "azure": "my-deployment",
    "mistral": "mistral-large-latest",
    "cohere": "command-a-03-2025",
    "anthropic": "claude-sonnet-4-5",
    "gemini": "gemini-2.5-flash",
    "vertex": "claude-opus-4-8",
    "bedrock": "anthropic.claude-sonnet-4-5-20250929-v1:0",
}
SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "openai": {"api_keys": ["${FIRST_KEY}", {"key": "${SECOND_KEY}", "name": "second"}]},
    "azure": {"endpoint": "https://acme.openai.azure.com", "api_key": "${AZURE_KEY}"},
    "anthropic": {"api_key": SECRET, "headers": {"x-secret": SECRET}},
    "vertex": {"project": "acme", "region": "europe-west4"},
    "bedrock": {"region": "eu-west-1", "access_key_id": "AKIDEXAMPLE", "secret_access_key": SECRET},
}
PAIR: Mapping[str, Any] = {
    "providers": {"anthropic": {"api_key": SECRET}, "openai": {"api_key": "${NOT_SET}"}},
    "models": {
        "safe": {"targets": ["anthropic/claude-sonnet-4-5"], "fallbacks": ["openai/gpt-4o"]},
        "alone": "anthropic/claude-sonnet-4-5",
    },
    "timeouts": {"first_byte_seconds": 0.5},
}
EVERY_FAULT = tuple(FAULTS.values())


class Elsewhere:
    """Stands in for a plugin that knows where else to go."""

    name = "elsewhere"

    def __init__(self, config: Section, services: Services) -> None:
        pass

    @hookimpl
    def on_error(self, exchange: Exchange, error: UpstreamError) -> Retry | None:
        if len(exchange.attempts) >= 2 or error.failure is Failure.INVALID_REQUEST:
            return None
        return Retry()


@dataclass(frozen=True, slots=True)
class Available:
    """A plugin that needs no installation."""

    manifest: type
    dist: None = None

    @property
    def name(self) -> str:
        return str(self.manifest.name)  # type: ignore[attr-defined]

    def load(self) -> type:
        return self.manifest


def stage(url: str, settings: Mapping[str, Any], **given: Any) -> Stage:
    """A stage for a configuration, with the stand-in to be enabled."""
    source = ConfigSource(Path("config.yaml"), json.dumps(settings).encode())
    return Stage(source, available={"elsewhere": Available(Elsewhere)}, server_url=url, deadline_seconds=20, **given)


async def drilled(
    url: str, settings: Mapping[str, Any], *faults: str, models: Sequence[str] = ("safe",)
) -> Mapping[tuple[str, str], Drill]:
    """The outcomes by model and fault."""
    staged = stage(url, settings)
    chosen = [FAULTS[name] for name in faults or FAULTS]
    try:
        outcomes = await run_drills(staged, models, chosen, Traffic(requests=2, patience_seconds=5))
    finally:
        await staged.close()
    return {(each.model, each.fault): each for each in outcomes}


# Outcomes


async def test_with_somewhere_to_go_every_fault_before_the_beginning_is_survived(server_url: str) -> None:
    """Clients have their whole answer from the other provider; a stream that broke off is told as broken."""
    found = await drilled(server_url, {**PAIR, "plugins": ["elsewhere"]})
    verdicts = {fault: each.verdict for (_, fault), each in found.items()}
    assert verdicts == {**dict.fromkeys(FAULTS, "survived"), "cut": "not covered"}
    refused = found["safe", "503"]
    assert (refused.provider, refused.requests, refused.succeeded, refused.attempts) == ("anthropic", 2, 2, 2)
    assert refused.served_by == ("openai/gpt-4o",)
    assert found["safe", "cut"].problems == {"upstream_cut": 2}
    # What is usual is taken off, and on a busy machine that is a part of the half second, too.
    assert (found["safe", "hang"].added_seconds or 0) >= 0.25
    assert (found["safe", "slow"].added_seconds or 0) >= len(STORY) * 0.2


async def test_without_anybody_who_goes_there_they_are_failures(server_url: str) -> None:
    """Another provider could have served these clients, and did not."""
    found = await drilled(server_url, PAIR, "503", "429", "hang")
    assert {each.verdict for each in found.values()} == {"failed"}
    assert found["safe", "429"].problems == {"rate_limit_exceeded": 2}
    assert found["safe", "hang"].problems == {"upstream_first_byte_timeout": 2}
    assert found["safe", "503"].served_by == ()


async def test_a_model_with_one_provider_is_not_covered(server_url: str) -> None:
    """Where there is nowhere to go nobody failed to go there."""
    found = await drilled(server_url, {**PAIR, "plugins": ["elsewhere"]}, "503", models=["alone"])
    assert (found["alone", "503"].verdict, found["alone", "503"].attempts) == ("not covered", 2)


async def test_what_cannot_be_played_is_told(server_url: str) -> None:
    """A provider that answers by itself cannot be struck, and a model that is not served at all proves nothing."""
    settings = {**PAIR, "providers": {**PAIR["providers"], "demo": {}}, "models": {"echo": "demo/echo"}}
    found = await drilled(server_url, settings, "503", models=["echo", "demo/fail", "nonesuch"])
    assert {each.verdict for each in found.values()} == {"not drilled"}
    assert found["echo", "503"].why == "the provider 'demo' cannot be played"
    assert found["nonesuch", "503"].why.endswith("model_not_found")


async def test_answers_of_a_provider_that_is_not_played_count(server_url: str) -> None:
    """The demo tells another story, and it is an answer all the same."""
    settings = {
        **PAIR,
        "providers": {**PAIR["providers"], "demo": {}},
        "models": {"safe": {"targets": ["anthropic/claude-sonnet-4-5"], "fallbacks": ["demo/echo"]}},
        "plugins": ["elsewhere"],
    }
    found = await drilled(server_url, settings, "503")
    assert (found["safe", "503"].verdict, found["safe", "503"].served_by) == ("survived", ("demo/echo",))


GOOD, BAD = Answered(1.0, "a/m", 1), Answered(3.0, None, 2, "service_unavailable")
TOLD = Answered(2.0, "a/m", 1, "upstream_cut", is_told=True)


@pytest.mark.parametrize(
    ("during", "is_met", "has_other_provider", "verdict"),
    [
        ([GOOD, GOOD], True, True, "survived"),
        ([GOOD, GOOD], True, False, "survived"),
        ([GOOD, GOOD], False, True, "not covered"),
        ([GOOD, BAD], True, True, "failed"),
        ([GOOD, BAD], True, False, "not covered"),
        ([GOOD, TOLD], True, True, "not covered"),
        ([TOLD, BAD], True, True, "failed"),
    ],
)
def test_verdicts(during: list[Answered], *, is_met: bool, has_other_provider: bool, verdict: str) -> None:
    """Failed is who could have been served; nothing is proved by a fault that nobody met."""
    found = judge("m", "503", "a", before=[GOOD], during=during, is_met=is_met, has_other_provider=has_other_provider)
    assert found.verdict == verdict


# The play


@pytest.fixture
async def every_vendor(server_url: str) -> AsyncIterator[Stage]:
    """A configuration with a provider of every format."""
    settings = {
        "providers": {name: dict(SECTIONS.get(name, {})) for name in VENDORS},
        "models": {name: f"{name}/{model}" for name, model in VENDORS.items()},
    }
    made = stage(server_url, settings)
    yield made
    await made.close()


async def test_every_vendor_is_played_in_its_own_format(every_vendor: Stage) -> None:
    """Whole and streamed, each says its text, refuses and breaks down as the gateway knows it from the real one."""
    async with every_vendor.gateway() as staged:
        for name, upstream in staged.upstreams.items():
            answered = await ask_together(staged.client, name, count=2, patience_seconds=5, only_streams=False)
            assert [each.problem for each in answered] == [None, None], name
            upstream.default = refuse(503)
            refused = await ask_together(staged.client, name, count=2, patience_seconds=5, only_streams=False)
            assert {each.problem for each in refused} == {"service_unavailable"}, name
            upstream.default = fail_inside()
            broken = await ask_together(staged.client, name, count=2, patience_seconds=5, only_streams=False)
            assert None not in {each.problem for each in broken}, name


async def test_no_real_key_is_used(every_vendor: Stage) -> None:
    """Not in a header and not in a body, whichever key of the section it stood in."""
    async with every_vendor.gateway() as staged:
        for name in VENDORS:
            await ask_together(staged.client, name, count=1, patience_seconds=5, only_streams=False)
        requests = [request for upstream in staged.upstreams.values() for request in upstream.requests]
        assert len(requests) == len(VENDORS)
        assert all(SECRET.encode() not in request.raw_head + request.body for request in requests)


def test_a_request_in_no_known_format_is_refused() -> None:
    """A script does not answer what it does not understand."""
    request = RecordedRequest(1, 1, "POST", "/v9/speak", {}, b"", b"{}")  # type: ignore[arg-type]
    assert format_of(request) is None
    for script in (refuse(503), fail_inside()):
        answer = script(request)
        assert isinstance(answer, Reply)
        assert answer.message(request).status == 501


async def test_the_workspace_decides_what_may_be_asked(server_url: str) -> None:
    """In a workspace's name only its models are served, and only in its region."""
    settings = {**PAIR, "workspaces": {"acme": {"keys": [SECRET], "models": ["alone"]}}}
    made = stage(server_url, settings, workspace="acme")
    try:
        found = await run_drills(made, ["safe", "alone"], [FAULTS["503"]], Traffic(requests=1, patience_seconds=5))
    finally:
        await made.close()
    assert [each.verdict for each in found] == ["not drilled", "not covered"]
    with pytest.raises(ConfigError, match="There is no workspace 'other'"):
        stage(server_url, settings, workspace="other")


# The command


def run(*arguments: str, url: str) -> tuple[int, str]:
    """The status and what was said."""
    ran = CliRunner().invoke(command_line, ["drill", "--database-url", url, "--requests", "2", *arguments])
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.output
    return ran.exit_code, ran.stdout


def test_the_command_ends_with_the_verdict(server_url: str, tmp_path: Path) -> None:
    """Status 1 when a fault was not survived that could have been; a table for people, JSON for machines."""
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(PAIR))
    status, table = run("--config", str(file), "--fault", "503", url=server_url)
    assert status == 1
    assert "2 service_unavailable" in table
    status, document = run("--config", str(file), "--json", "--fault", "slow", "--model", "alone", url=server_url)
    assert (status, [each["verdict"] for each in json.loads(document)]) == (0, ["survived"])


def test_what_is_left_out_has_to_be_there(server_url: str, tmp_path: Path) -> None:
    """A plugin to be left out that the configuration does not have is a mistake, and told with the nearest name."""
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({**PAIR, "plugins": ["fallback"]}))
    with pytest.raises(ConfigError, match=r"There is no plugin 'fallbak' in .* \(did you mean 'fallback'\?\)\."):
        CliRunner().invoke(
            command_line,
            ["drill", "--database-url", server_url, "--config", str(file), "--without", "fallbak"],
            catch_exceptions=False,
        )


def test_the_example_can_be_drilled(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`config.example.yaml` is a configuration like another, whatever variables are set."""
    for name in [each for each in os.environ if each.endswith("_API_KEY")]:
        monkeypatch.delenv(name)
    status, document = run("--config", str(ROOT / "config.example.yaml"), "--json", "--fault", "503", url=server_url)
    outcomes = {each["model"]: each["verdict"] for each in json.loads(document)}
    assert (status, outcomes) == (1, {"fast": "not covered", "support": "failed"})
