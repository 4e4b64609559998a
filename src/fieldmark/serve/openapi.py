"""The OpenAPI description, written by hand: eight routes need no framework for it."""

from __future__ import annotations

from typing import Any

from fieldmark.serve.limits import Limits
from fieldmark.version import __version__

_Dict = dict[str, Any]

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
_CLASS = {
    "type": "object",
    "required": ["label", "prob"],
    "properties": {
        "label": {"type": "string"},
        "prob": {"type": "number", "minimum": 0, "maximum": 1},
    },
}
_ANSWER = {
    "type": "object",
    "required": ["label", "prob", "sure", "top"],
    "properties": {
        **_CLASS["properties"],  # type: ignore[dict-item]
        "sure": {"type": "boolean", "description": "prob is the model's threshold or more"},
        "top": {"type": "array", "items": {"$ref": "#/components/schemas/Class"}},
    },
}
_REFUSALS = {
    "400": "Not a picture, broken, or a wrong parameter or form",
    "401": "The token is missing or wrong",
    "403": "Sent by a page of another site",
    "408": "The body took too long to arrive",
    "413": "Too many bytes or pixels",
    "415": "Another content type, an encoded body, or a format that is not read",
    "429": "Too many pictures are being worked on; Retry-After says when to try again",
    "503": "The decoder died over the picture, or the server is being stopped",
    "504": "No answer in time",
}


def description(limits: Limits, root_path: str = "") -> _Dict:
    """Describe the server's answers in OpenAPI 3.1."""
    top = {"type": "integer", "minimum": 1, "default": 5}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Fieldmark", "version": __version__},
        "servers": [{"url": root_path or "/"}],
        "paths": {
            "/": {"get": _get("The page", "text/html", {"type": "string"}, free=True)},
            "/predict": {
                "post": _post(
                    "Classify pictures: one body is one picture, a form holds "
                    f"{limits.pictures} at most; {limits.body_bytes} bytes a request",
                    "application/json",
                    {"$ref": "#/components/schemas/Predictions"},
                    _query("top", "How many of the likeliest classes to tell", top),
                )
            },
            "/explain": {
                "post": _post(
                    "Draw a heat map of what speaks for a class over one picture",
                    "image/png",
                    {"type": "string", "contentMediaType": "image/png"},
                    _query(
                        "label",
                        "Number of the class; left out, the likeliest",
                        {"type": "integer", "minimum": 0},
                    ),
                )
            },
            "/model": {
                "get": _get("Name, classes and threshold", "application/json", {"type": "object"})
            },
            "/health": {"get": _get("Alive", "application/json", {"type": "object"}, free=True)},
            "/ready": {
                "get": _get("Ready, or 503", "application/json", {"type": "object"}, free=True)
            },
            "/metrics": {"get": _get("Counts for Prometheus", "text/plain", {"type": "string"})},
            "/openapi.json": {
                "get": _get("This description", "application/json", {"type": "object"}, free=True)
            },
        },
        "components": {
            "schemas": {
                "Error": _ERROR,
                "Class": _CLASS,
                "Answer": _ANSWER,
                "Predictions": {
                    "type": "object",
                    "required": ["predictions"],
                    "properties": {
                        "predictions": {
                            "type": "array",
                            "description": "In the order of the pictures",
                            "items": {
                                "oneOf": [
                                    {"$ref": "#/components/schemas/Answer"},
                                    {"$ref": "#/components/schemas/Error"},
                                ]
                            },
                        }
                    },
                },
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _query(name: str, about: str, schema: _Dict) -> _Dict:
    return {"name": name, "in": "query", "description": about, "schema": schema}


def _get(about: str, kind: str, schema: _Dict, *, free: bool = False) -> _Dict:
    found: _Dict = {
        "summary": about,
        "responses": {"200": {"description": about, "content": {kind: {"schema": schema}}}},
    }
    return {**found, "security": []} if free else found


def _post(about: str, kind: str, schema: _Dict, parameter: _Dict) -> _Dict:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    files = {"type": "object", "additionalProperties": {"type": "array", "items": file}}
    return {
        "summary": about,
        "parameters": [parameter],
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {},
                "image/*": {},
                "multipart/form-data": {"schema": files},
            },
        },
        "responses": {
            "200": {"description": about, "content": {kind: {"schema": schema}}},
            **{
                status: {"description": text, "content": error}
                for status, text in _REFUSALS.items()
            },
        },
    }
