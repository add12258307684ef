"""The page of the server's routes, from its own description (``/openapi.json``)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, cast

from scripts.reference.markdown import NOTHING, NOTICE, code, page, prose, table, value

from aios.app.chat.assistant import Assistant
from aios.core.config.serving_schemas import ServeConfig
from aios.web.app import create_app

GUIDE = "../user_guide/SERVER.md"
_OTHER_ERRORS = "HTTPValidationError"  # FastAPI's own form; this server answers 400 in its own


def description() -> Mapping[str, Any]:
    """The OpenAPI document of `aios serve`."""
    nobody = cast(Assistant, SimpleNamespace(load=None, adaptation_counts=None))
    found: Mapping[str, Any] = create_app(nobody, ServeConfig()).openapi()
    return found


def write() -> str:
    """The page."""
    document = description()
    routes = [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = document["components"]["schemas"]
    bodies = {name: each for name, each in schemas.items() if "ValidationError" not in name}
    asked = _asked(schemas, [each for _, each in routes])
    return page(
        "# HTTP API",
        NOTICE,
        f"The routes of `aios serve`, which `aios web` has too. [The guide]({GUIDE}) says how to "
        "use them, what differs from OpenAI's API, and how to protect a server. The server gives "
        "the same description as JSON at `/openapi.json`.",
        "## Routes",
        table(
            ("route", "what it does"),
            ((f"[`{name}`](#{_slug(name)})", prose(each["description"])) for name, each in routes),
        ),
        "## Status codes",
        "Every error has the body [`ErrorBody`](#errorbody).",
        _statuses(each for _, each in routes),
        *(_section(name, operation) for name, operation in routes),
        "## Bodies",
        *(_schema(name, each, name in asked) for name, each in sorted(bodies.items())),
    )


def _slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def _statuses(operations: Iterable[Mapping[str, Any]]) -> str:
    meanings = {"200": "Done"}
    for operation in operations:
        for status, answer in operation["responses"].items():
            if _OTHER_ERRORS not in str(answer):
                meanings.setdefault(status, answer["description"])
    rows = ((code(status), prose(words)) for status, words in sorted(meanings.items()))
    return table(("status", "when"), rows)


def _section(name: str, operation: Mapping[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {})
    asked = f"Takes {_bodies(body)}. " if body else ""
    answers = {
        status: answer
        for status, answer in operation["responses"].items()
        if _OTHER_ERRORS not in str(answer)
    }
    good = f"Answers `200` with {_bodies(answers['200']['content'])}"
    errors = ", ".join(code(status) for status in sorted(answers) if status != "200")
    return page(
        f"## {name}",
        prose(operation["description"]),
        f"{asked}{good}" + (f", or {errors}." if errors else "."),
    ).rstrip()


def _bodies(content: Mapping[str, Any]) -> str:
    kinds = []
    for media, each in content.items():
        name = each.get("schema", {}).get("$ref", "").rpartition("/")[2]
        kinds.append(f"[`{name}`](#{name.lower()})" if name else code(media))
    return " or ".join(kinds)


def _asked(schemas: Mapping[str, Any], operations: Iterable[Mapping[str, Any]]) -> set[str]:
    """The names of what clients send, what is inside it included."""
    found: set[str] = set()
    waiting = [str(each.get("requestBody", "")) for each in operations]
    while waiting:
        for name in re.findall(r"#/components/schemas/(\w+)", waiting.pop()):
            if name not in found:
                found.add(name)
                waiting.append(str(schemas[name]))
    return found


def _schema(name: str, schema: Mapping[str, Any], asked: bool) -> str:
    words, _, listed = str(schema.get("description", "")).partition("\n\nAttributes:")
    said = dict(re.findall(r"^ +(\w+): (.+)$", listed, re.MULTILINE))
    rows = []
    for field, each in schema["properties"].items():
        what = prose(each.get("description", said.get(field, "")))
        needed = field in schema.get("required", ())
        default = ["**required**" if needed else _default(each)] if asked else []
        rows.append((code(field), _takes(each), *default, what))
    head = ("field", "is", *(["default"] if asked else []), "what it says")
    return page(f"### {name}", prose(words), table(head, rows)).rstrip()


def _default(schema: Mapping[str, Any]) -> str:
    return value(schema["default"]) if schema.get("default") is not None else NOTHING


def _takes(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(_takes(each) for each in schema["anyOf"])
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[`{name}`](#{name.lower()})"
    if "const" in schema:
        return value(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(value(each) for each in schema["enum"])
    kind = str(schema.get("type", "any value"))
    if kind == "array":
        return f"list of {_takes(schema.get('items', {}))}{_bounds(schema, 'Items', '')}"
    if kind == "string":
        return f"text{_bounds(schema, 'Length', ' characters')}"
    if kind in ("integer", "number"):
        return f"{kind}{_range(schema)}"
    return {"boolean": "true or false"}.get(kind, kind)


def _range(schema: Mapping[str, Any]) -> str:
    low = schema.get("minimum", schema.get("ge"))
    above = schema.get("exclusiveMinimum", schema.get("gt"))
    high = schema.get("maximum", schema.get("le"))
    if low is not None and low <= -(2**63):  # what fits 64 bits
        return ""
    start = f" above {above:g}" if above is not None else ""
    start = f" from {low:g}" if low is not None else start
    return start + (f" to {high:g}" if high is not None else "")


def _bounds(schema: Mapping[str, Any], of: str, unit: str) -> str:
    least, most = schema.get(f"min{of}", 0), schema.get(f"max{of}")
    if most is None:
        return f", at least {least}{unit}" if least else ""
    return f", {least} to {most}{unit}" if least else f", at most {most}{unit}"
