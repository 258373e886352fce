"""What holds across the whole code base: who may import whom, and that docs and declarations agree."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from llmproxy import api, hookdocs, hookspecs
from llmproxy.hookrules import RULES, Kind, Rule
from llmproxy.hooks import Hooks

ROOT = Path(__file__).parent.parent
CORE = ROOT / "llmproxy"
PLUGINS = ROOT / "plugins"

# Says which statements not to look into.
Skip = Callable[[ast.AST], bool]

# Imports go one way: a module imports its own layer and those above it in this list. A package stands for all
# of its modules unless they are named themselves: the base of `providers` is where plugins can reach it.
LAYERS = (
    (
        *("errors", "ids", "exchange", "request", "usage", "splice", "sse", "dialects", "pricing", "price_data"),
        *("prices", "price_overrides", "premiums", "service_tiers", "ceilings", "allowances", "claims"),
        *("attribution", "estimate", "regions", "model_facts", "concurrency", "public_addresses"),
        "lockstep",
    ),
    (
        *("config", "yaml_reader", "config_mistakes", "config_document", "config_schema", "services", "providers"),
        *("scopes", "webhooks", "follower", "tokenizer"),
    ),
    ("hookspecs", "hookcalls", "hookrules", "hookwrappers", "hooks", "hookdocs", "plugins", "api"),
    (
        *("db", "migrate", "queries", "embedded", "embedded_files", "partitions", "journal", "segments"),
        *("records", "batch_writer", "audit", "lease", "leases", "openings", "reservations", "quotas"),
        *("timers", "http1", "upstream", "remote_images", "stream", "providers.*"),
        *("audit_chain", "audit_log", "audit_check", "audit_contents", "audit_notary", "audit_reader", "audit_verify"),
        *("audit_export", "chain_writer", "body_cipher", "body_retention"),
        *("logs", "tasks", "tls", "routes", "seat", "occupancy"),
    ),
    (
        *("ledger", "ledger_sums", "ledger_export", "repricing", "invoices", "reconciliation"),
        "offers",
        "accounting",
        "key_snapshot",
        "key_tables",
        "keys",
        "state",
        "catalogue",
        "listing",
        "heads",
        "response_head",
        "answers",
        "attempt",
        "race",
        "holdings",
        "failover",
        "current_prices",
        "exchanges",
        "candidates",
        "admin",
        "endpoints",
        "endings",
        "pipeline",
    ),
    ("server",),
    ("gateway", "reach", "app"),
    ("supervisor", "accepted", "worker", "cli", "__main__", "testing", "drill"),
)
ONLY_IN = {
    "aiohttp": {"server", "upstream", "stream", "testing"},
    "asyncpg": {"db", "migrate"},
}


def modules() -> Mapping[str, Path]:
    """Every module of core by its name below `llmproxy`; a package goes by its own name."""
    paths = {path.relative_to(CORE).with_suffix(""): path for path in CORE.rglob("*.py")}
    named = {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}
    return {name: path for name, path in named.items() if name != "__init__"}


def is_for_types_only(node: ast.AST) -> bool:
    """Whether a statement is left out at run time."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def is_not_run_on_import(node: ast.AST) -> bool:
    """Whether what a statement imports need not be there when its own module is imported."""
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_for_types_only(node)


def nodes(tree: ast.AST, skip: Skip) -> Iterator[ast.AST]:
    """Every node below `tree`, except what is skipped and all below that."""
    for child in ast.iter_child_nodes(tree):
        if not skip(child):
            yield child
            yield from nodes(child, skip)


def imports(source: str, package: str, skip: Skip = is_for_types_only) -> Iterator[str]:
    """The absolute name of everything a module imports."""
    for node in nodes(ast.parse(source), skip):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def core_imports(name: str, skip: Skip = is_for_types_only) -> set[str]:
    """The modules of core that a module of core imports."""
    known, path = modules(), modules()[name]
    package = ".".join(["llmproxy", *path.relative_to(CORE).parent.parts])
    found = set()
    for imported in imports(path.read_text(), package, skip):
        inner = imported.removeprefix("llmproxy.")
        if inner != imported:
            found.add(inner if inner in known else inner.rpartition(".")[0])
    return (found & set(known)) - {name}


def layer(name: str) -> int | None:
    """The number of the layer a module is in."""
    package = name.split(".", maxsplit=1)[0]
    for wanted in (name, f"{package}.*" if "." in name else name, package):
        for number, members in enumerate(LAYERS):
            if wanted in members:
                return number
    return None


@pytest.mark.parametrize("name", sorted(modules()))
def test_every_module_has_a_layer_and_imports_only_upwards(name: str) -> None:
    """errors ← config ← hooks ← storage and transport ← pipeline ← server ← app ← cli, never the other way."""
    own = layer(name)
    assert own is not None, f"Say in LAYERS where llmproxy.{name} belongs."
    later = {each: layer(each) for each in core_imports(name)}
    assert {each for each, number in later.items() if number is None or number > own} == set()


def test_no_module_imports_itself_by_a_detour() -> None:
    """There is an order in which all modules can be imported."""
    graph = {name: core_imports(name, is_not_run_on_import) for name in modules()}
    assert set(TopologicalSorter(graph).static_order()) == set(modules())


@pytest.mark.parametrize(("library", "allowed"), ONLY_IN.items())
def test_io_libraries_stay_at_the_edge(library: str, allowed: set[str]) -> None:
    """aiohttp is known to server, upstream, stream and the test kit alone, asyncpg to db and migrate alone."""
    users = {
        name.split(".")[0]
        for name, path in modules().items()
        if any(each.split(".")[0] == library for each in imports(path.read_text(), "llmproxy"))
    }
    assert users <= allowed


def forbidden_in_plugin(source: str, package: str) -> list[str]:
    """The imports in a plugin's module that reach for core's inside or for another plugin."""
    own = ".".join(package.split(".")[:2])
    return [
        name
        for name in imports(source, package, skip=lambda node: False)
        if (name.split(".")[0] == "llmproxy" and not name.startswith("llmproxy.api"))
        or (name.split(".")[0] == "llmproxy_plugins" and not f"{name}.".startswith(f"{own}."))
    ]


def test_plugins_import_the_api_alone() -> None:
    """Our plugins have no more rights than a stranger's, and none knows another."""
    found = {}
    for path in PLUGINS.glob("*/**/*.py"):
        package = ".".join(["llmproxy_plugins", *path.relative_to(PLUGINS).parent.parts])
        found[str(path.relative_to(ROOT))] = forbidden_in_plugin(path.read_text(), package)
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "is_allowed"),
    [
        ("from llmproxy.api import hookimpl", True),
        ("import llmproxy.api", True),
        ("from llmproxy_plugins.caching.store import Store", True),
        ("from .store import Store", True),
        ("from . import store", True),
        ("from llmproxy.exchange import Exchange", False),
        ("from llmproxy import exchange", False),
        ("import llmproxy", False),
        ("from llmproxy_plugins.budgets import Budgets", False),
        ("from llmproxy_plugins import budgets", False),
        ("from ..budgets import Budgets", False),
        ("from llmproxy_plugins.caching_more import X", False),
        ("if TYPE_CHECKING:\n    from llmproxy.exchange import Exchange", False),
    ],
)
def test_the_import_rule_for_plugins_sees_every_form(source: str, *, is_allowed: bool) -> None:
    """Absolute or relative, module or name: a forbidden import is found."""
    assert (forbidden_in_plugin(source, "llmproxy_plugins.caching") == []) == is_allowed


# The public interface


def test_the_api_is_sorted_and_everything_in_it_exists() -> None:
    """`__all__` is what plugins may rely on, once each."""
    assert api.__all__ == sorted(set(api.__all__))
    assert [name for name in api.__all__ if not hasattr(api, name)] == []


def test_the_api_has_nothing_that_is_not_in_all() -> None:
    """What a plugin can import from the api is what is promised."""
    # pytest adds names with an @ to modules whose assertions it rewrites.
    public = {name for name in vars(api) if not name.startswith(("_", "@"))} - {"annotations"}
    assert public == set(api.__all__)


@pytest.mark.parametrize("name", api.__all__)
def test_everything_in_the_api_is_documented(name: str) -> None:
    """A class has a docstring of its own; what cannot have one is explained at the top of the api."""
    member = getattr(api, name)
    is_ours = inspect.isclass(member) and member.__module__.startswith("llmproxy.")
    docstring = vars(member).get("__doc__") if is_ours else None
    # A dataclass without a docstring gets its signature for one.
    has_own = bool(docstring) and not str(docstring).startswith(f"{name}(")
    assert has_own or f"\n    {name}: " in str(api.__doc__)


# Hooks


def test_hooks_are_declared_once_and_known_everywhere() -> None:
    """Specification, rules and the resolved facade have the same hooks, in the same order."""
    specified = [name for name, each in vars(hookspecs).items() if hasattr(each, "llmproxy_spec")]
    assert list(RULES) == specified
    assert [field.name for field in fields(Hooks) if field.name != "callers"] == specified


@pytest.mark.parametrize(("hook", "rule"), RULES.items())
def test_a_hooks_manual_says_what_its_rule_does(hook: str, rule: Rule) -> None:
    """Kind, order, colour and failure in the docstring are those that core follows."""
    specification = getattr(hookspecs, hook)
    manual = " ".join(str(inspect.getdoc(specification)).split())
    assert specification.llmproxy_spec["firstresult"] == (rule.kind is Kind.FIRST)
    assert ("inside-out" in manual) == rule.is_inside_out
    assert ("plain `def`" in manual) == rule.is_plain
    assert ("Failure: isolated" in manual) == rule.is_isolated
    assert "When: " in manual
    assert "Failure: " in manual


def test_the_hook_manual_is_up_to_date() -> None:
    """docs/hooks.md is made from the specifications."""
    page = ROOT / "docs" / "hooks.md"
    assert page.read_text() == hookdocs.render(), "Run: python -m llmproxy.hookdocs > docs/hooks.md"
