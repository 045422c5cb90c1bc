"""Values that satisfy a JSON schema, for function calls and structured answers."""

from __future__ import annotations

from typing import Any

__all__ = ["example"]

_DEFAULTS: dict[str, Any] = {
    "string": "text",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "null": None,
}


def example(schema: dict[str, Any], root: dict[str, Any] | None = None) -> Any:
    """Make a value for a schema of OpenAPI (`STRING`) or JSON Schema (`string`) kind.

    Args:
        schema: The schema; `$ref` into `$defs`, `anyOf`, `enum`, `const` and `default` are known.
        root: Where `$defs` are; the schema itself if None.
    """
    root = schema if root is None else root
    for given in ("const", "default"):
        if given in schema:
            return schema[given]
    if schema.get("enum"):
        return schema["enum"][0]
    if "$ref" in schema:
        return example(_resolve(schema["$ref"], root), root)
    for choice in ("anyOf", "oneOf", "allOf"):
        if schema.get(choice):
            return example(schema[choice][0], root)
    return _by_type(schema, root)


def _by_type(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = str(kind[0] if isinstance(kind, list) else kind).lower()
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: example(inner, root) for name, inner in properties.items()}
    if kind == "array":
        return [example(schema.get("items") or {}, root)]
    if kind in {"integer", "number"} and "minimum" in schema:
        return max(_DEFAULTS[kind], schema["minimum"])
    return _DEFAULTS.get(kind, "text")


def _resolve(ref: str, root: dict[str, Any]) -> dict[str, Any]:
    found: Any = root
    for part in ref.removeprefix("#/").split("/"):
        found = found.get(part, {}) if isinstance(found, dict) else {}
    return found if isinstance(found, dict) else {}
