"""The page's server: pages of rows, one rollout, search. Answers this machine's browser alone.

Rollouts hold hostile text. The page puts it into text nodes only, and its headers forbid scripts
of any other origin; requests that name another host (DNS rebinding) are refused.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Any, Final

import orjson
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from rlbridge.contracts import wire
from rlbridge.errors import ConfigError
from rlbridge.onpolicy.tokenizer import Tokenizer
from rlbridge.rollouts.view.catalog import MAX_HITS, Catalog, Filter
from rlbridge.rollouts.view.document import document
from rlbridge.transforms.reading import read_row

_STATIC: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/view.js": ("view.js", "text/javascript; charset=utf-8"),
    "/view.css": ("view.css", "text/css; charset=utf-8"),
}
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_PAGE_ROWS: Final = 50
_PREVIEW_CHARS: Final = 160


class View:
    """Answers the page's requests.

    Args:
        catalog: of the file.
        tokenizer: of the policy; None shows IDs.
        ends: IDs that end a turn.
    """

    def __init__(self, catalog: Catalog, tokenizer: Tokenizer | None, ends: frozenset[int]) -> None:
        self._catalog = catalog
        self._tokenizer = tokenizer
        self._ends = ends

    def app(self) -> Starlette:
        """The ASGI app."""
        routes = [Route(path, _static(*source)) for path, source in _STATIC.items()]
        routes += [
            Route("/api/info", self._info),
            Route("/api/rows", self._rows),
            Route("/api/rollout/{number:int}", self._rollout),
            Route("/api/search", self._search),
        ]
        local = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
        return Starlette(routes=routes, middleware=[local])

    async def _info(self, _request: Request) -> Response:
        catalog = self._catalog
        return _json(
            {
                "file": catalog.path.name,
                "rows": len(catalog),
                "bad": catalog.bad,
                "environments": catalog.counts("environment", catalog.environments),
                "failures": catalog.counts("failure", catalog.failures),
                "text": self._tokenizer is not None,
                "max_hits": MAX_HITS,
            }
        )

    async def _rows(self, request: Request) -> Response:
        """A page of rows: `from`, and a filter; or the rows `ids` names, in that order."""
        asked = request.query_params
        try:
            start = max(0, int(asked.get("from", "0")))
            ids = [int(part) for part in asked["ids"].split(",")] if asked.get("ids") else None
            wanted = _filter(asked)
        except ValueError as error:
            return _json({"error": str(error)}, status=400)
        if ids is None:
            found = await asyncio.to_thread(self._catalog.select, wanted)
            numbers, total = found[start : start + _PAGE_ROWS].tolist(), len(found)
        else:
            numbers = [n for n in ids[:_PAGE_ROWS] if 0 <= n < len(self._catalog)]
            total = len(numbers)
        rows = await asyncio.to_thread(lambda: [self._line(number) for number in numbers])
        return _json({"total": total, "rows": rows})

    def _line(self, number: int) -> dict[str, Any]:
        """What the list shows of a row."""
        catalog, columns = self._catalog, self._catalog.columns
        reward = float(columns["reward"][number])
        return {
            "number": number,
            "task": int(columns["task"][number]),
            "rollout": int(columns["rollout"][number]),
            "reward": None if math.isnan(reward) else reward,
            "environment": catalog.environments[columns["environment"][number]],
            "failure": catalog.failures[columns["failure"][number]],
            "calls": int(columns["calls"][number]),
            "tokens": int(columns["tokens"][number]),
            "preview": _preview(self._row(number)),
        }

    def _row(self, number: int) -> dict[str, Any]:
        return read_row(self._catalog.path, int(self._catalog.columns["offset"][number]))

    async def _rollout(self, request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(self._catalog):
            return _json({"error": f"there are {len(self._catalog)} rows"}, status=404)
        try:
            drawn = await asyncio.to_thread(
                lambda: document(self._row(number), self._tokenizer, self._ends)
            )
        except ConfigError as error:
            return _json({"error": f"{error}; the file has changed, start again"}, status=409)
        line = await asyncio.to_thread(self._line, number)
        return _json({**line, **drawn})

    async def _search(self, request: Request) -> Response:
        """Lines of JSON while the file is read: `read`, `size`, and the rows found."""
        text = request.query_params.get("text", "")
        if not text:
            return _json({"error": "search for what?"}, status=400)
        size = self._catalog.path.stat().st_size

        async def lines() -> AsyncIterator[bytes]:
            found = self._catalog.search(text)
            while (piece := await asyncio.to_thread(next, found, None)) is not None:
                read, rows = piece
                told = {"read": read, "size": size, "rows": rows}
                yield orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE)
                if await request.is_disconnected():
                    return

        return StreamingResponse(lines(), media_type="application/x-ndjson", headers=_HEADERS)


def _filter(asked: Any) -> Filter:
    def number(name: str) -> float | None:
        value = asked.get(name)
        return float(value) if value else None

    return Filter(
        number("min"),
        number("max"),
        asked.get("environment"),
        asked.get("failure") or None,
        asked.get("sort", "file"),
    )


def _preview(row: dict[str, Any]) -> str:
    """The last thing that was asked, in a few words."""
    params = row.get(wire.RESPONSES_CREATE_PARAMS)
    given = params.get("input") if isinstance(params, dict) else None
    if isinstance(given, list):
        given = next((item for item in reversed(given) if isinstance(item, dict)), None)
        given = None if given is None else given.get("content")
        if isinstance(given, list):
            given = " ".join(str(p.get("text", "")) for p in given if isinstance(p, dict))
    return " ".join(str(given or "")[: 4 * _PREVIEW_CHARS].split())[:_PREVIEW_CHARS]


def _static(name: str, kind: str) -> Any:
    content = (files("rlbridge.rollouts.view") / "static" / name).read_bytes()

    async def answer(_request: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return answer


def _json(value: Any, *, status: int = 200) -> Response:
    data = orjson.dumps(value, default=str)
    return Response(data, status, media_type="application/json", headers=_HEADERS)
