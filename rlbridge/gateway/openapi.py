"""The OpenAI routes in OpenAPI's words, from the openai package's own types."""

from typing import Any

from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from pydantic import TypeAdapter

from rlbridge.gateway.openai_types import PARAMS, adapter

_REF = "#/components/schemas/{model}"
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_TOKENIZE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "model": {"type": "string"},
        "prompt": {"type": "string"},
        "messages": {"type": "array", "items": {"type": "object"}, "minItems": 1},
        "tools": {"type": "array", "items": {"type": "object"}},
        "add_special_tokens": {"type": "boolean"},
        "return_token_strs": {"type": "boolean"},
    },
}
_SESSION = {
    "name": "session",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._:~@=+-]{0,127}$"},
}


def openai_paths() -> tuple[dict[str, Any], dict[str, Any]]:
    """Paths and schemas of the OpenAI routes, with and without a session in the URL."""
    schemas: dict[str, Any] = {"Error": _ERROR, "Tokenize": _TOKENIZE}
    operations: dict[str, tuple[str, dict[str, Any]]] = {}
    for path, api, model in (
        ("/v1/chat/completions", "chat", ChatCompletion),
        ("/v1/completions", "completions", Completion),
        ("/v1/responses", "responses", Response),
    ):
        request = _schema(adapter(PARAMS[api]), f"{api}_request", schemas)
        reply = _schema(TypeAdapter(model), f"{api}_reply", schemas)
        operations[path] = ("post", _operation(path, request, reply))
    tokenize = {"$ref": _REF.format(model="Tokenize")}
    for path in ("/tokenize", "/v1/tokenize"):
        operations[path] = ("post", _operation(path, tokenize, {"type": "object"}))
    operations["/v1/models"] = ("get", _operation("/v1/models", None, {"type": "object"}))
    paths: dict[str, Any] = {}
    for path, (method, operation) in operations.items():
        paths[path] = {method: operation}
        inside = operation | {
            "operationId": f"session_{operation['operationId']}",
            "parameters": [_SESSION],
        }
        paths["/s/{session}" + path] = {method: inside}
    return paths, schemas


def _schema(kind: TypeAdapter[Any], name: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """A reference to a type's schema, whose parts are put beside it under names of its own."""
    document = kind.json_schema(ref_template=_REF.format(model=name + ".{model}"))
    for part, schema in document.pop("$defs", {}).items():
        schemas[f"{name}.{part}"] = schema
    schemas[name] = document
    return {"$ref": _REF.format(model=name)}


def _operation(path: str, request: dict[str, Any] | None, reply: dict[str, Any]) -> dict[str, Any]:
    json = "application/json"
    error = {"$ref": _REF.format(model="Error")}
    operation: dict[str, Any] = {
        "operationId": path.strip("/").replace("/", "_"),
        "tags": ["openai"],
        "responses": {
            "200": {"description": "the answer", "content": {json: {"schema": reply}}},
            "default": {"description": "an error", "content": {json: {"schema": error}}},
        },
    }
    if request is not None:
        operation["requestBody"] = {"required": True, "content": {json: {"schema": request}}}
        events = {"text/event-stream": {"schema": {"type": "string"}}}
        operation["responses"]["200"]["content"] |= events
    return operation
