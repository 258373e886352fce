"""The configuration's JSON Schema, for editors: core's own model with the sections of plugins and providers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from llmproxy.config import Config


class _EditorSchema(GenerateJsonSchema):
    """JSON Schema in which a variable may stand for whatever is not free text."""

    def generate_inner(self, schema: Any) -> dict[str, Any]:  # JSON is what both are
        generated = super().generate_inner(schema)
        if schema["type"] not in ("int", "float", "decimal", "bool", "literal", "enum") and not schema.get("pattern"):
            return generated
        return {"anyOf": [generated, {"type": "string", "pattern": r"\$\{"}]}


def config_schema(
    plugin_models: Mapping[str, type[BaseModel]], provider_models: Mapping[str, type[BaseModel]]
) -> dict[str, Any]:  # a JSON document
    """The file's JSON Schema, for editors, with the sections of these plugins and provider kinds, by their names."""
    models: list[type[BaseModel]] = [Config, *plugin_models.values(), *provider_models.values()]
    pairs: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in dict.fromkeys(models)]
    references, schema = models_json_schema(pairs, schema_generator=_EditorSchema)
    refs = {model: references[model, "validation"] for model in models}
    keys = schema["$defs"][refs[Config]["$ref"].rsplit("/", 1)[1]]["properties"]
    plugins = {name: refs[model] for name, model in plugin_models.items()}
    kinds = {kind: refs[model] for kind, model in provider_models.items()}
    keys["plugins"] = {"description": keys["plugins"]["description"], **_plugins_schema(plugins)}
    keys["providers"] = {
        "description": keys["providers"]["description"],
        **_providers_schema(kinds, schema["$defs"]),
    }
    for name, section in keys.items():
        # One whose keys are all commented out is one left out.
        keys[name] = {"anyOf": [section, {"type": "null"}]}
    return {"$schema": GenerateJsonSchema.schema_dialect, **refs[Config], **schema}


def _plugins_schema(sections: Mapping[str, object]) -> dict[str, object]:
    named = {name: {"anyOf": [section, {"type": "null"}]} for name, section in sections.items()}
    by_key = {"type": "object", "properties": named, "additionalProperties": False}
    return {"anyOf": [by_key, {"type": "array", "items": {"enum": list(sections)}, "uniqueItems": True}]}


def _providers_schema(sections: Mapping[str, object], definitions: dict[str, object]) -> dict[str, object]:
    """A section is of the kind it names, or else of the kind it is named after."""
    branches = [{"if": {"properties": {"kind": {"const": kind}}}, "then": ref} for kind, ref in sections.items()]
    kinds = {"kind": {"enum": list(sections)}}
    # Defined once: there are dozens of kinds, and each may stand under the name of any other.
    definitions["of_a_kind"] = {"type": "object", "properties": kinds, "required": ["kind"], "allOf": branches}
    of_a_kind = {"$ref": "#/$defs/of_a_kind"}
    named = {
        kind: {"anyOf": [{"type": "null"}, {"if": {"required": ["kind"]}, "then": of_a_kind, "else": ref}]}
        for kind, ref in sections.items()
    }
    return {"type": "object", "properties": named, "additionalProperties": of_a_kind}
