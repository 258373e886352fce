"""The command line: what each command does, what it prints, and how it fails."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from llmproxy.cli import main
from llmproxy.cli.commands import SUMMARIES, command_line
from llmproxy.cli.exposure import is_loopback
from llmproxy.cli.offline import offline_services
from llmproxy.cli.plugin_commands import plugin_commands
from llmproxy.cli.settings import Settings
from llmproxy.config import LoggingConfig
from llmproxy.embedded import EmbeddedPostgres
from llmproxy.hookrules import RULES
from llmproxy.ids import new_id
from llmproxy.logs import make_log
from llmproxy.plugins import declared_commands, installed
from llmproxy.testing.database import make_postgres
from tests.processes import read_line, spawn

Config = dict[str, Any]  # whatever YAML can say
HEAVY = {"aiohttp", "asyncpg", "genai_prices", "pydantic", "yaml"}
GREETER = """
import click
from llmproxy.api import hookimpl

class Greeter:
    name = "greeter"
    def __init__(self, config, services): pass
    @hookimpl
    def register_commands(self, cli):
        cli.add_command(click.Command("greet", callback=lambda: click.echo("Hello."), short_help="Say hello."))
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended and what it printed."""

    status: int
    output: str
    errors: str

    @property
    def document(self) -> Any:  # whatever the command answers
        """Its answer as JSON."""
        return json.loads(self.output)


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `llmproxy` in an empty directory, as the console script does."""
    for name in [name for name in os.environ if name.startswith("LLMPROXY_") or name.endswith("_API_KEY")]:
        if name != "LLMPROXY_TEST_DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["llmproxy", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = capsys.readouterr()
        return Ran(int(ended.value.code or 0), output, errors)

    return run


def configure(directory: Path, **sections: object) -> None:
    """Write `config.yaml`; JSON is YAML."""
    (directory / "config.yaml").write_text(json.dumps(sections))


@pytest.fixture
def configured(tmp_path: Path, database_url: str) -> Path:
    """A directory with a configuration whose database is a fresh one."""
    configure(tmp_path, database={"url": database_url}, workspaces={"acme": {}})
    return tmp_path


# The group


def test_help_imports_nothing_heavy() -> None:
    """`llmproxy --help` answers at once: no server, driver, price data or model library is imported for it."""
    code = (
        "import sys; from llmproxy.cli import main; sys.argv = ['llmproxy', '--help']\n"
        "try: main()\n"
        f"finally: print('imported', sorted({HEAVY} & sys.modules.keys()))"
    )
    with spawn(code) as process:
        output, errors = process.communicate(timeout=20)
    assert output.endswith("imported []\n"), errors
    assert "Serve requests until told to stop." in output


@pytest.mark.parametrize("name", SUMMARIES)
def test_each_summary_is_what_its_command_says_of_itself(name: str) -> None:
    """The help page and the command's own page begin with the same sentence."""
    command = import_module(f"llmproxy.cli.{name}").command
    assert command.name == name
    assert command.help.splitlines()[0] == SUMMARIES[name]


def test_every_command_takes_the_shared_options() -> None:
    """Each command, also inside a group, knows --config, --state-dir and --json."""
    context = command_line.make_context("llmproxy", ["version"])
    commands = [command_line.get_command(context, name) for name in SUMMARIES]
    leaves = [leaf for each in commands if each for leaf in getattr(each, "commands", {"": each}).values()]
    for command in leaves:
        assert {"config", "state_dir", "json"} <= {parameter.name for parameter in command.params}, command.name


def test_an_unknown_command_is_a_usage_error(run: Run) -> None:
    """A misspelt command ends with status 2 and the nearest name."""
    ran = run("serv")
    assert ran.status == 2
    assert "'serve'" in ran.errors


def test_the_configuration_is_found_in_the_order_that_help_says(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option wins over the variable and that over the file here; it may stand before or after the command."""
    for name in ("here", "variable", "option"):
        (tmp_path / f"{name}.yaml").write_text(f"{name}: 1")
    (tmp_path / "here.yaml").rename("config.yaml")
    assert "here" in run("check").errors
    monkeypatch.setenv("LLMPROXY_CONFIG", "variable.yaml")
    assert "variable.yaml" in run("check").errors
    assert "option.yaml" in run("check", "--config", "option.yaml").errors
    assert "option.yaml" in run("--config", "option.yaml", "check").errors


def test_plugins_add_commands(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of an enabled plugin stands on the help page and runs; of one that is not enabled it does neither."""
    site = tmp_path / "site"
    (site / "greeter-1.0.dist-info").mkdir(parents=True)
    (site / "greeter_plugin.py").write_text(GREETER)
    (site / "greeter-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: greeter\nVersion: 1.0\n")
    (site / "greeter-1.0.dist-info" / "entry_points.txt").write_text(
        "[llmproxy.plugins]\ngreeter = greeter_plugin:Greeter\n"
    )
    monkeypatch.syspath_prepend(str(site))
    assert run("greet").status == 2
    configure(tmp_path, plugins=["greeter"])
    assert run("greet") == Ran(0, "Hello.\n", "")
    assert "Say hello." in run("--help").output
    listed = next(each for each in run("plugins", "--json").document if each["name"] == "greeter")
    assert listed == {"name": "greeter", "enabled": True, "distribution": "greeter 1.0"}
    called = {each["hook"]: each["plugins"] for each in run("hooks", "--json").document}
    assert called["register_commands"] == ["greeter"]


def test_a_command_of_a_plugin_that_is_not_enabled_says_so(run: Run, tmp_path: Path) -> None:
    """Whoever types it, with or without a configuration file, learns which plugin to enable; misspelt, its name."""
    sentence = "The command 'targets' comes with the plugin 'fallback'; enable it under 'plugins' in config.yaml."
    ran = run("targets")
    assert (ran.status, ran.errors.splitlines()[-1]) == (2, f"Error: {sentence}")
    configure(tmp_path, plugins=["metrics"])
    assert sentence in run("targets").errors
    assert "did you mean 'targets'?" in run("target").errors


def test_plugins_name_the_commands_they_add(run: Run, tmp_path: Path) -> None:
    """What our plugins declare is what is there once they are enabled."""
    configure(tmp_path, plugins={"caching": {}, "semantic_cache": {"embeddings": "demo/x"}, "fallback": {}})
    assert plugin_commands(Settings()).keys() == declared_commands(installed()).keys()


def test_a_wrong_file_does_not_hide_the_help_page(run: Run, tmp_path: Path) -> None:
    """Whoever looks for help because of a broken file gets it."""
    (tmp_path / "config.yaml").write_text("plugins: {nonesuch: {}}")
    assert run("--help").status == 0
    assert "nonesuch" in run("greet").errors


# Without a database


def test_version_is_the_packages(run: Run) -> None:
    """Both ways to ask for the version agree."""
    assert run("version").output == run("--version").output
    assert run("version", "--json").document["version"] in run("version").output


def test_models_are_those_of_the_configuration(run: Run, tmp_path: Path) -> None:
    """Aliases and what the providers offer are listed with what they stand for."""
    configure(tmp_path, providers={"demo": {}}, models={"fast": "demo/echo"})
    found = {each["model"]: each["targets"] for each in run("models", "--json").document}
    assert found["fast"] == found["demo/echo"] == ["demo/echo"]
    assert run("models").output.startswith("MODEL")


def test_models_are_listed_with_what_is_known(run: Run, tmp_path: Path) -> None:
    """Prices, context and retirement stand beside the name, and a dash where nothing is known."""
    providers = {"openai": {"api_key": "k", "models": ["gpt-4o", "gpt-nonesuch"], "region": "us"}}
    configure(tmp_path, providers=providers)
    known, unknown = run("models", "--json").document
    assert (known["context_window_tokens"], known["input_usd_per_mtok"], known["region"]) == (128_000, "2.5", "us")
    assert unknown == {"model": "openai/gpt-nonesuch", "targets": ["openai/gpt-nonesuch"], "region": "us"}
    rows = [line.split() for line in run("models").output.splitlines()]
    assert rows[2] == ["openai/gpt-nonesuch", "openai/gpt-nonesuch", "us", *"-----"]


def test_hooks_are_all_there(run: Run) -> None:
    """Every hook has its line, in life-cycle order, also where nobody implements it."""
    assert [each["hook"] for each in run("hooks", "--json").document] == list(RULES)


def test_check_tells_every_mistake(run: Run, tmp_path: Path) -> None:
    """All mistakes come at once on standard error, and the status is 1."""
    (tmp_path / "config.yaml").write_text("server: {prot: 1}\nproviders: {a: {kind: b}}\nplugins: {c: {}}\n")
    ran = run("check")
    assert (ran.status, ran.output) == (1, "")
    assert [line.split(":")[1] for line in ran.errors.splitlines()] == ["1", "3"]
    assert run("check", "--json").document["mistakes"] == ran.errors.splitlines()


def test_check_finds_models_that_plugins_name_and_nobody_serves(run: Run, tmp_path: Path) -> None:
    """Wherever in a plugin's section a misspelt model stands, it is told with its place and the nearest name."""
    plugins = {
        "semantic_cache": {"embeddings": "demo/embedings", "shadow": {"judge": "fst"}},
        "routing": {"mirror": [{"model": "*", "to": "fast", "share": 1}, {"model": "*", "to": "dmo/echo", "share": 1}]},
    }
    configure(tmp_path, providers={"demo": {}}, models={"fast": "demo/echo"}, plugins=plugins)
    ran = run("check")
    assert ran.status == 1
    told = [
        line.partition(": plugins.")[2].split(": no configured provider serves ") for line in ran.errors.splitlines()
    ]
    assert told == [
        ["semantic_cache.embeddings", "'demo/embedings' (did you mean 'demo/embed'?)"],
        ["semantic_cache.shadow.judge", "'fst' (did you mean 'fast'?)"],
        ["routing.mirror.1.to", "'dmo/echo' (did you mean 'demo/echo'?)"],
    ]


def test_check_warns_of_models_that_plugins_name_and_have_no_price(run: Run, tmp_path: Path) -> None:
    """Where a provider passes any name on, what is unknown of a misspelt one is its price."""
    mirror = [{"model": "*", "to": "openai/gpt-4o-mni", "share": 1}]
    configure(tmp_path, providers={"openai": {"api_key": "k"}}, plugins={"routing": {"mirror": mirror}})
    assert "prices: the price of openai/gpt-4o-mni is not known" in run("check").output


def test_check_warns_of_what_may_hurt(run: Run, tmp_path: Path) -> None:
    """Risks are warnings on standard output, each with what to do, and the status stays 0."""
    configure(
        tmp_path,
        providers={"openai": {"models": ["gpt-nonesuch"]}, "local": {"kind": "openai", "base_url": "http://x/v1"}},
        models={"fast": "local/mine"},
    )
    document = run("check", "--json").document
    assert (document["ok"], document["mistakes"]) == (True, [])
    subjects = [warning.partition(":")[0] for warning in document["warnings"]]
    assert subjects == ["plugins", "models.fast", "plugins", "providers.openai", "prices", "prices"]
    ran = run("check")
    assert (ran.status, ran.output.count("warning: ")) == (0, 6)


def test_check_asks_for_no_key_where_there_are_other_credentials(run: Run, tmp_path: Path) -> None:
    """AWS has a chain of its own, and a server on this machine asks for none."""
    configure(tmp_path, providers={"bedrock": {"region": "eu-west-1"}, "ollama": {}, "mistral": {}})
    assert [warning for warning in run("check", "--json").document["warnings"] if "api_key" in warning] == [
        "providers.mistral: it has no api_key; set it, best as ${MISTRAL_API_KEY}."
    ]


def test_check_refuses_weak_keys_on_the_network(run: Run, tmp_path: Path) -> None:
    """A key that can be guessed is a mistake where others can reach it."""
    configure(tmp_path, server={"host": "::"}, workspaces={"acme": {"keys": ["abcabcabcabcabcabcabc"]}})
    ran = run("check")
    assert (ran.status, ran.errors.partition(":")[0]) == (1, "workspaces.acme.keys.0")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("", False)],  # noqa: S104 - nothing listens
)
def test_loopback_is_told_from_the_network(host: str, expected: bool) -> None:  # noqa: FBT001 - a parameter
    """Only addresses that other machines cannot reach count as loopback."""
    assert is_loopback(host) is expected


def test_check_prints_the_schema_for_editors(run: Run) -> None:
    """`check --schema` prints the file's JSON Schema, with the sections of every provider kind, and checks nothing."""
    schema = run("check", "--schema", "--config", "nonesuch.yaml").document
    sections = json.dumps(schema["$defs"])
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert '"demo"' in sections
    assert '"max_body_bytes"' in sections


async def test_offline_services_open_nothing(tmp_path: Path) -> None:
    """Reading a configuration neither makes the state directory nor reaches for a database."""
    services = offline_services(Settings(state_dir=tmp_path / "state"), make_log(LoggingConfig()))
    assert services.state_directory == tmp_path / "state"
    assert not services.state_directory.exists()


# With a database


def test_a_key_is_made_listed_and_revoked(run: Run, configured: Path) -> None:
    """What is made is listed without the key itself, and stays listed as revoked."""
    made = run("keys", "create", "--workspace", "acme", "--name", "ci", "--model", "demo/*", "--json").document
    assert (made["workspace"], made["models"], made["key"][:3]) == ("acme", ["demo/*"], "sk-")
    (listed,) = run("keys", "list", "--json").document
    assert (listed["id"], "key" in listed) == (made["id"], False)
    assert run("keys", "revoke", made["id"]).output == f"The key {made['id']} is revoked.\n"
    assert made["id"] in run("keys", "list", "--workspace", "acme").output
    assert run("keys", "list", "--workspace", "other", "--json").document == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("keys", "create", "--workspace", "acne"), "There is no workspace 'acne'; did you mean 'acme'?\n"),
        (("keys", "revoke", "key_1"), "There is no key with this id.\n"),
        (("requests", "show", "x"), "That is not a request id"),
        (("spend", "--since", "soon"), "'--since' must be a time"),
        (("keys", "create", "--workspace", "acme", "--expires-at", "soon"), "'--expires-at' must be a time"),
    ],
)
def test_a_failure_is_a_sentence_and_status_1(
    run: Run, configured: Path, arguments: tuple[str, ...], message: str
) -> None:
    """What cannot be done is told on standard error, in one line and without a traceback."""
    ran = run(*arguments)
    assert (ran.status, ran.output) == (1, "")
    assert ran.errors.startswith(message)
    assert len(ran.errors.splitlines()) == 1


def test_a_database_that_is_not_there_is_a_sentence(run: Run, tmp_path: Path) -> None:
    """A database that cannot be reached is named by its address, never with its password."""
    configure(tmp_path, database={"url": "postgresql://me:hush@127.0.0.1:1/x"})
    ran = run("keys", "list")
    assert (ran.status, ran.output, len(ran.errors.splitlines())) == (1, "", 1)
    assert "127.0.0.1:1" in ran.errors
    assert "hush" not in ran.errors


def test_what_the_database_refuses_is_told_with_its_reason(run: Run, configured: Path, database_url: str) -> None:
    """At the command line there is no log to look into."""
    asyncio.run(_execute(database_url, "ALTER TABLE virtual_keys RENAME TO elsewhere"))
    sentence = 'The database could not do what it was asked: relation "virtual_keys" does not exist.\n'
    assert run("keys", "list") == Ran(1, "", sentence)


def test_migrate_brings_an_empty_database_up_to_date(run: Run, tmp_path: Path, empty_database_url: str) -> None:
    """Commands ask for the migration of a database that is not the gateway's own; once done, it is done."""
    configure(tmp_path, database={"url": empty_database_url})
    assert "llmproxy migrate" in run("keys", "list").errors
    assert run("migrate", "--json").document["applied"][0].startswith("core/0001")
    assert run("migrate").output == "The schema is up to date.\n"
    assert run("keys", "list", "--json").document == []


def test_commands_start_and_stop_the_embedded_database(
    run: Run, state_directory: Path, request: pytest.FixtureRequest
) -> None:
    """Without a configured database the embedded one is started for the command, and stopped after it."""
    state = state_directory / "state"
    made = run("keys", "create", "--state-dir", str(state), "--json").document
    home = EmbeddedPostgres(state).home
    request.addfinalizer(lambda: shutil.rmtree(home))
    assert [key["id"] for key in run("keys", "list", "--state-dir", str(state), "--json").document] == [made["id"]]
    assert (home / "data").is_dir()
    assert not (home / "data" / "postmaster.pid").exists()


# What happened

REQUEST = """
INSERT INTO requests (
    id, admitted_at, operation_name, path, workspace, request_model, provider_name, response_model, outcome, cost_usd,
    cost_provenance
) VALUES ($1, $2, 'chat', '/v1/chat/completions', 'acme', 'fast', 'demo', 'echo', 'succeeded', 0.25, 'measured')
"""
ENTRY = """
INSERT INTO ledger_entries (request_id, occurred_at, kind, workspace, amount_usd, cost_provenance, usage_provenance)
VALUES ($1, $2, 'exchange', 'acme', $3, 'measured', 'measured')
"""


def record(database_url: str, count: int = 1) -> list[str]:
    """Write some requests and what they cost; their ids, the oldest first."""
    return asyncio.run(_record(database_url, count))


async def _record(database_url: str, count: int) -> list[str]:
    database = make_postgres(database_url)
    await database.open()
    now = datetime.now(UTC)
    await database.fetch("SELECT llmproxy_create_partitions($1, $1)", now.date())
    ids = sorted(new_id(now) for _ in range(count))
    for request_id in ids:
        await database.execute(REQUEST, request_id, now)
        await database.execute(ENTRY, request_id, now, Decimal("0.25"))
    await database.close()
    return ids


def test_requests_are_shown_the_newest_last(run: Run, configured: Path, database_url: str) -> None:
    """`tail` shows the last few, one a line; `show` one of them with the sentence that explains it."""
    ids = record(database_url, 3)
    assert [line.split()[0] for line in run("requests", "tail", "-n", "2").output.splitlines()] == ids[1:]
    lines = run("requests", "tail", "--json").output.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ids
    shown = run("requests", "show", ids[0])
    assert shown.output.startswith("Answered by a plugin without asking a provider, for 0.25 USD (measured).\n")
    document = run("requests", "show", ids[0], "--json").document
    assert (document["id"], document["explanation"]["cost_usd"]) == (ids[0], "0.25")


def test_whose_request_it_was_is_shown(run: Run, configured: Path, database_url: str) -> None:
    """What a plugin asked in the gateway's own name says so, and one that nobody was sent names nobody."""
    (request_id,) = record(database_url)
    own = "UPDATE requests SET origin = 'judge', parent_id = id, outcome = 'refused', cost_provenance = NULL"
    asyncio.run(_execute(database_url, own))
    line = run("requests", "tail").output
    assert line.endswith("  for judge\n")
    assert "  nobody  " in line
    assert json.loads(run("requests", "tail", "--json").output)["origin"] == "judge"
    asyncio.run(
        _execute(database_url, "UPDATE requests SET outcome = 'succeeded', cache = 'hit', provider_name = NULL")
    )
    assert "  a cache (hit)  " in run("requests", "tail").output
    assert f"asked by: the plugin judge, for the request {request_id}" in run("requests", "show", request_id).output


async def _execute(database_url: str, statement: str) -> None:
    database = make_postgres(database_url)
    await database.open()
    # The tables of the audit are append-only; this makes rows that could have been written so.
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(statement)
    await database.close()


def test_following_shows_requests_as_they_end(configured: Path, database_url: str) -> None:
    """`tail --follow` goes on with each request that is recorded after it began, once."""
    (first,) = record(database_url)
    arguments = ["requests", "tail", "--follow", "--json", "--config", str(configured / "config.yaml")]
    code = f"import sys; from llmproxy.cli import main; sys.argv = ['llmproxy', *{arguments}]; main()"
    with spawn(code) as process:
        assert json.loads(read_line(process))["id"] == first
        fresh = record(database_url, 2)
        assert [json.loads(read_line(process))["id"] for _ in fresh] == fresh
        process.kill()


def test_spend_is_summed_up_for_people_and_for_machines(run: Run, configured: Path, database_url: str) -> None:
    """The table ends with the total, and JSON has the same amounts exactly."""
    record(database_url, 3)
    document = run("spend", "--since", "1h", "--json").document
    assert (document["data"][0]["group"], document["total"]["amount_usd"]) == ({"workspace": "acme"}, "0.75")
    heading, group, total = run("spend", "--by", "workspace").output.splitlines()
    assert (heading.split()[0], group.split()[:2], total.split()[:2]) == ("WORKSPACE", ["acme", "3"], ["total", "3"])
