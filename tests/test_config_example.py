"""The example file says what the models say: every key, its meaning, its default."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, SecretStr, TypeAdapter
from pydantic.fields import FieldInfo

from llmproxy import config as declared
from llmproxy.cli.check import warnings
from llmproxy.config import Config, ProviderConfig, Section
from llmproxy.config_document import load_config
from llmproxy.config_schema import config_schema
from llmproxy.gateway import Configuration, read_configuration
from llmproxy.testing import make_services

EXAMPLE = Path(__file__).parents[1] / "config.example.yaml"
PLUGINS = EXAMPLE.parent / "plugins"
# Where the example says more than the default would.
CHOSEN = {
    ("ProviderConfig", "kind"),
    ("ProviderConfig", "api_keys"),
    ("ProviderConfig", "base_url"),
    ("ProviderConfig", "region"),
    ("ProviderConfig", "models"),
    ("ModelConfig", "fallbacks"),
    ("PriceConfig", "free"),
    ("PriceConfig", "factor"),
    ("PriceConfig", "long_context"),
    *(
        (model, f"{way}_usd_per_mtok")
        for model in ("RatesConfig", "PriceConfig", "LongContextConfig")
        for way in ("input", "output")
    ),
    ("ServerConfig", "tls"),
}

_LINE = re.compile(r"^ *(?:# +)?(?:- )?(?P<key>[a-z]\w*):(?P<value>.*?)(?:  # (?P<comment>.*))?$")


def section_models() -> list[type[Section]]:
    """Every model that config.py declares."""
    models = (value for value in vars(declared).values() if inspect.isclass(value) and issubclass(value, Section))
    return [model for model in models if model is not Section]


def keys_with_comments() -> Iterator[tuple[str, str, str | None]]:
    """Key, value and comment of each line; a top-level key's comment is the line above it."""
    above = ""
    for line in EXAMPLE.read_text().splitlines():
        if match := _LINE.match(line):
            is_top = line[0].isalpha()
            yield match["key"], match["value"].strip(), above.removeprefix("# ") if is_top else match["comment"]
        above = line


def written_as(model: type[BaseModel], key: str) -> str:
    """What a key is called in the file, where that is no name in Python."""
    alias = model.model_fields[key].validation_alias
    return alias if isinstance(alias, str) else key


def meaning(model: type[BaseModel], key: str) -> str:
    """What a model says of a key: the field's description, or what its section says of itself."""
    field = model.model_fields[key]
    return field.description or inspect.cleandoc(getattr(field.annotation, "__doc__", "") or "")


def defaulted_keys() -> Iterator[tuple[type[Section], str, FieldInfo]]:
    """The keys whose defaults the example shows; what Config itself holds are sections and examples."""
    for model in section_models():
        for key, field in model.model_fields.items():
            if model is not Config and not field.is_required() and (model.__name__, key) not in CHOSEN:
                yield model, key, field


def test_every_key_stands_in_the_example_with_its_meaning() -> None:
    """Each key of each model stands in the example, under a comment that is the model's own description."""
    written = {(key, comment) for key, _, comment in keys_with_comments()}
    wanted = {(written_as(model, key), meaning(model, key)) for model in section_models() for key in model.model_fields}
    assert wanted - written == set()


def test_the_example_shows_the_defaults() -> None:
    """A key that is not chosen to show something stands in the example with its default."""
    written: dict[tuple[str, str | None], set[str]] = {}
    for key, value, comment in keys_with_comments():
        written.setdefault((key, comment), set()).add(value)
    for model, key, field in defaulted_keys():
        default = field.get_default(call_default_factory=True)
        values = written[written_as(model, key), meaning(model, key)]
        shown = [
            TypeAdapter[object](field.annotation or object).validate_python(yaml.safe_load(value)) for value in values
        ]
        assert shown == [default], f"{model.__name__}.{key}"


def test_the_example_needs_no_variable() -> None:
    """The example is valid as it stands, without any variable, and its core is that of no file at all."""
    config, document = load_config(EXAMPLE, {})
    defaults, _ = load_config(None, {})
    document.validate(ProviderConfig, "providers", "local")
    assert document.mistakes == ()
    for section in ("server", "database", "journal", "audit", "timeouts", "estimates", "plugins", "logging"):
        assert getattr(config, section) == getattr(defaults, section)


def test_the_example_takes_its_key_from_the_environment() -> None:
    """A key variable that is set reaches the provider's section."""
    _, document = load_config(EXAMPLE, {"OPENAI_API_KEY": "sk-1"})
    section = document.validate(ProviderConfig, "providers", "openai")
    assert section == ProviderConfig(api_key=SecretStr("sk-1"))


def test_what_is_commented_out_is_valid_too(tmp_path: Path) -> None:
    """Taking the comment signs away from the keys that are commented out leaves a valid file."""
    path = tmp_path / "config.yaml"
    path.write_text(re.sub(r"(?m)^  # (?= *[a-z_]+:)", "  ", EXAMPLE.read_text()))
    config, document = load_config(path, {})
    assert document.mistakes == ()
    assert config.server.tls is not None


def plugin_sections() -> dict[str, str]:
    """The plugins' sections as they stand without their comment signs, by name and in their order."""
    below = EXAMPLE.read_text().partition("\nplugins:\n")[2].partition("\n\n")[0]
    lines = [line.removeprefix("  # ") for line in below.splitlines()]
    starts = [number for number, line in enumerate(lines) if not line.startswith(" ")]
    sections = [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
    return {each[0].partition(":")[0]: "".join(f"  {line}\n" for line in each) for each in sections}


def configured(tmp_path: Path, *names: str) -> Configuration:
    """The example with the sections of these plugins."""
    path = tmp_path / "config.yaml"
    sections = plugin_sections()
    text = "".join(sections[name] for name in names)
    path.write_text(re.sub(r"\nplugins:\n(  #.*\n)*", lambda _: f"\nplugins:\n{text}", EXAMPLE.read_text()))
    return read_configuration(path, make_services())


def test_the_example_shows_every_plugin() -> None:
    """Each plugin that comes with the gateway has a section to take the comment signs away from."""
    assert plugin_sections().keys() == {path.parent.name for path in PLUGINS.glob("*/__init__.py")}


@pytest.mark.parametrize("name", plugin_sections())
def test_each_plugin_of_the_example_works_alone(tmp_path: Path, name: str) -> None:
    """Its section is valid as it stands: models it names are served, plugins it needs are not missing."""
    assert [plugin.name for plugin in configured(tmp_path, name).plugins.enabled] == [name]


def test_the_plugins_of_the_example_work_together(tmp_path: Path) -> None:
    """All of them are valid in the order of the example, and nothing is to be said against that order."""
    configuration = configured(tmp_path, *plugin_sections())
    assert [plugin.name for plugin in configuration.plugins.enabled] == list(plugin_sections())
    assert [warning for warning in warnings(configuration) if "stands behind" in warning] == []


def test_the_schema_accepts_the_example() -> None:
    """An editor that uses the schema finds nothing wrong with the example."""
    schema = config_schema({}, dict.fromkeys(("demo", "openai"), ProviderConfig))
    jsonschema = import_module("jsonschema")  # carries no types
    validator = jsonschema.Draft202012Validator(schema)
    assert list(validator.iter_errors(yaml.safe_load(EXAMPLE.read_text()))) == []
