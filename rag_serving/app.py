"""The FastAPI application: the routes (routes.py) over the searches (searcher.py), behind a gate (gate.py); and the
page at `/` for a person with a browser.

Errors: 4xx is the caller's (400 a blank query, 422 a breach of the schema), 429 and 503 ask to come again, 504 is a
missed deadline, 500 ours; always `{"detail": …}`.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline

from flashrag.config import TOKEN_VARIABLE
from rag_serving.gate import Gate
from rag_serving.metrics import CountRequests, Metrics
from rag_serving.routes import search_routes, status_routes
from rag_serving.service import Service
from rag_serving.settings import ServerSettings
from rag_serving.workers import Workers

STATIC = Path(__file__).with_name("static")
# The page runs no inline script and asks no other origin, so HTML in a passage can never run.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # browsers ask again, and so see a new version at once
}


def create_app(settings: ServerSettings, workers: Workers) -> FastAPI:
    """The server's application. It answers "loading" until `workers` have loaded their retriever."""
    metrics = Metrics()
    service = Service(settings, workers, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service:
            yield

    app = FastAPIOffline(title="ReSearch retrieval server", version="1", lifespan=lifespan)
    app.state.service = service
    app.add_exception_handler(RequestValidationError, _answer_422)
    app.add_exception_handler(Exception, _answer_500)
    app.include_router(status_routes(service))
    app.include_router(search_routes(service))
    add_page(app)
    app.add_middleware(Gate, service=service, token=os.environ.get(TOKEN_VARIABLE))
    app.add_middleware(CountRequests, metrics=metrics, routes=app.routes)
    return app


class _Files(StaticFiles):
    """Static files under the page's headers."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(PAGE_HEADERS)
        return response


def add_page(app: FastAPI) -> None:
    """Serve the page at `/` and its files under `/static`: plain files, which the API's document leaves out."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=PAGE_HEADERS)

    app.mount("/static", _Files(directory=STATIC), name="static")


async def _answer_422(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # it is registered for this type alone
    # Without the input: it may be megabytes, or hold a lone surrogate, which no JSON answer can carry.
    problems = [{key: problem[key] for key in ("type", "loc", "msg")} for problem in error.errors()]
    return JSONResponse({"detail": problems}, status_code=422)


async def _answer_500(_: Request, error: Exception) -> JSONResponse:
    # After this answer Starlette raises the error again: the server logs it with its traceback.
    return JSONResponse({"detail": f"the request failed: {type(error).__name__}"}, status_code=500)
