"""The FastAPI application: routes between the wire (wire.py) and the searches (searcher.py), behind a gate (gate.py).

Errors: 4xx is the caller's (400 a blank query, 422 a breach of the schema), 429 and 503 ask to come again, 504 is a
missed deadline, 500 ours; always `{"detail": …}`. A blank query in a batch refuses the whole batch and names its
position: answering the rest would shift the pairing.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from flashrag.retriever import Retriever
from rag_serving import wire
from rag_serving.gate import RETRY_AFTER_S, TIMEOUT_HEADER, TOKEN_VARIABLE, Gate
from rag_serving.metrics import CountRequests, Metrics, Refusal
from rag_serving.page import add_page
from rag_serving.query_queue import Ranked
from rag_serving.searcher import QueueFull, SearchFailed, SearchUnavailable
from rag_serving.service import Service, Status
from rag_serving.settings import ServerSettings

log = logging.getLogger(__name__)

DOCUMENTS_WRITTEN_AT_ONCE = 2000  # about 4 ms


def create_app(settings: ServerSettings, load: Callable[[], Retriever], num_retriever: int) -> FastAPI:
    """The server's application: `load` runs in a thread while it answers "loading"; then `num_retriever` threads."""
    metrics = Metrics()
    service = Service(settings, load, num_retriever, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service:
            yield

    app = FastAPIOffline(title="ReSearch retrieval server", version="1", lifespan=lifespan)
    app.state.service = service
    app.add_exception_handler(RequestValidationError, _answer_422)
    app.add_exception_handler(QueueFull, _answer_429)
    app.add_exception_handler(SearchUnavailable, _answer_503)
    app.add_exception_handler(SearchFailed, _answer_500)
    app.add_exception_handler(Exception, _answer_500)
    app.include_router(_status_routes(service))
    app.include_router(_search_routes(service))
    add_page(app)
    app.add_middleware(Gate, service=service, token=os.environ.get(TOKEN_VARIABLE))
    app.add_middleware(CountRequests, metrics=metrics, routes=app.routes)
    return app


def _status_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["status"])
    not_ready: dict[int | str, dict[str, Any]] = {503: {"model": wire.NotReadyOut}}

    @router.get("/health", response_model=wire.HealthOut, responses=not_ready)
    @router.get("/healthz", response_model=wire.HealthOut, responses=not_ready)
    async def health() -> Response:
        if service.status is not Status.HEALTHY:
            return JSONResponse({"status": service.status}, 503)
        return JSONResponse(
            {
                "status": service.status,
                "retrievers": {"total": service.num_retriever, "available": service.searcher.available},
                "retrieval_method": service.searcher.retriever.method,
                "documents": len(service.searcher.retriever.corpus),
            }
        )

    @router.get("/metrics", response_class=Response, responses={401: {"model": wire.ErrorOut}}, dependencies=[_TOKEN])
    async def prometheus() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


# The gate checks the token; this shows it in the schema, and a button for it on the page /docs.
_TOKEN = Depends(HTTPBearer(auto_error=False, description=f"only where the server was started with {TOKEN_VARIABLE}"))
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": wire.ErrorOut, "description": text}
    for status, text in {
        400: "A blank query, or a body that is no JSON text",
        401: "The token is missing or wrong",
        413: "The body is too large",
        429: "The queue is full; Retry-After says for how long",
        500: "The search failed",
        503: "Loading, draining, or part of the index is down; Retry-After says for how long",
        504: f"Not answered within the server's time, or within the seconds of the header {TIMEOUT_HEADER}",
    }.items()
}


def _search_routes(service: Service) -> APIRouter:
    settings = service.settings
    models = wire.request_models(settings.max_query_chars, settings.max_batch_queries, settings.max_top_n)
    router = APIRouter(tags=["search"], responses=_REFUSALS, dependencies=[_TOKEN])

    async def rank(route: str, field: str, queries: Sequence[str], num: int) -> list[Ranked]:
        _refuse_blanks(field, queries)
        _refuse_large_answers(len(queries), num, settings.max_documents)
        service.metrics.queries.labels(route).inc(len(queries))
        if settings.log_queries:
            log.warning("%s num=%d %r", route, num, list(queries))
        return await service.searcher.rank(queries, num)

    # A ready Response skips FastAPI's validation of answers, which would cost more than the search of a small corpus.
    @router.post("/search", response_model=wire.SearchOut)
    async def search(body: models.search) -> Response:  # pyrefly: ignore
        if not body.query.strip():
            raise HTTPException(400, wire.EMPTY_QUERY)
        ranked = await rank("/search", "query", [body.query], body.top_n)
        return await _written(lambda: wire.search_json(ranked[0], body.return_score), ranked)

    @router.post("/batch_search", response_model=wire.BatchSearchOut)
    async def batch_search(body: models.batch_search) -> Response:  # pyrefly: ignore
        ranked = await rank("/batch_search", "query", body.query, body.top_n)
        return await _written(lambda: wire.batch_search_json(ranked, body.return_score), ranked)

    @router.post("/retrieve", response_model=wire.RetrieveOut)
    async def retrieve(body: models.retrieve) -> Response:  # pyrefly: ignore
        ranked = await rank("/retrieve", "queries", body.queries, body.topk or service.searcher.retriever.topk)
        return await _written(lambda: wire.retrieve_json(ranked, body.return_scores), ranked)

    @router.post("/queries", response_model=wire.QueriesOut)
    async def queries(body: models.queries) -> Response:  # pyrefly: ignore
        ranked = await rank("/queries", "queries", body.queries, body.k or service.searcher.retriever.topk)
        return await _written(lambda: wire.queries_json(body.queries, ranked), ranked)

    return router


async def _written(build: Callable[[], Any], ranked: Sequence[Ranked]) -> Response:
    """The answer as JSON; a large one is written in a thread, so that the others' need not wait for it."""
    if sum(map(len, ranked)) <= DOCUMENTS_WRITTEN_AT_ONCE:
        return wire.Json(build())
    return await asyncio.to_thread(lambda: wire.Json(build()))


def _refuse_blanks(field: str, queries: Sequence[str]) -> None:
    for position, query in enumerate(queries):
        if not query.strip():
            raise HTTPException(400, f"{wire.EMPTY_QUERY}: {field}[{position}]")


def _refuse_large_answers(queries: int, num: int, max_documents: int) -> None:
    if queries * num > max_documents:
        text = f"{queries} queries times {num} documents are more than {max_documents} (max_documents)"
        raise RequestValidationError([{"type": "too_many_documents", "loc": ("body",), "msg": text}])


async def _answer_422(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # it is registered for this type alone
    # Without the input: it may be megabytes, or hold half a surrogate pair, which no JSON answer can carry.
    problems = [{key: problem[key] for key in ("type", "loc", "msg")} for problem in error.errors()]
    return JSONResponse({"detail": problems}, status_code=422)


async def _answer_429(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, QueueFull)  # it is registered for this type alone
    request.app.state.service.metrics.refused.labels(Refusal.QUEUE_FULL).inc()
    return JSONResponse({"detail": str(error)}, 429, {"Retry-After": str(error.retry_after_s)})


async def _answer_503(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503, {"Retry-After": str(RETRY_AFTER_S)})


async def _answer_500(_: Request, error: Exception) -> JSONResponse:
    # Starlette raises what is no SearchFailed again after this answer, so that the server logs it with its traceback.
    reason = str(error) if isinstance(error, SearchFailed) else f"the request failed: {type(error).__name__}"
    return JSONResponse({"detail": reason}, status_code=500)
