"""The FastAPI application: routes between the wire (wire.py) and the searches (searcher.py).

Errors: 4xx is the caller's (400 a blank query, 422 a breach of the schema), 500 ours, always `{"detail": …}`.
A blank query in a batch refuses the whole batch and names its position: answering the rest would shift the pairing.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from flashrag.document import Hit
from flashrag.retriever.base import Retriever
from rag_serving import wire
from rag_serving.metrics import CountRequests, Metrics
from rag_serving.searcher import Searcher
from rag_serving.settings import ServerSettings


def create_app(settings: ServerSettings, retriever: Retriever, num_retriever: int) -> FastAPI:
    """The server's application over a loaded retriever, with `num_retriever` threads."""
    searcher = Searcher(retriever, num_retriever)
    metrics = Metrics(searcher)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with searcher:
            yield

    app = FastAPI(title="ReSearch retrieval server", version="1", lifespan=lifespan)
    app.add_middleware(CountRequests, metrics=metrics)
    app.add_exception_handler(RequestValidationError, _answer_422)
    app.add_exception_handler(Exception, _answer_500)
    _add_status_routes(app, searcher, metrics)
    _add_search_routes(app, searcher, metrics, settings)
    return app


def _add_status_routes(app: FastAPI, searcher: Searcher, metrics: Metrics) -> None:
    @app.get("/health", response_model=wire.HealthOut)
    @app.get("/healthz", response_model=wire.HealthOut)
    async def health() -> dict[str, object]:
        return {
            "status": "healthy",
            "retrievers": {"total": searcher.num_retriever, "available": searcher.available},
            "retrieval_method": searcher.retriever.method,
            "documents": len(searcher.retriever.corpus),
        }

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_search_routes(app: FastAPI, searcher: Searcher, metrics: Metrics, settings: ServerSettings) -> None:
    models = wire.request_models(settings.max_query_chars, settings.max_batch_queries, settings.max_top_n)
    refusals: dict[int | str, dict[str, Any]] = {400: {"model": wire.ErrorOut}}

    async def rank(route: str, queries: Sequence[str], num: int) -> list[list[Hit]]:
        metrics.queries.labels(route).inc(len(queries))
        return await searcher.rank(queries, num) if queries else []

    # A ready Response skips FastAPI's validation of answers, which would cost more than the search of a small corpus.
    @app.post("/search", response_model=wire.SearchOut, responses=refusals)
    async def search(request: models.search) -> Response:  # pyrefly: ignore
        if not request.query.strip():
            raise HTTPException(400, wire.EMPTY_QUERY)
        ranked = await rank("/search", [request.query], request.top_n)
        return JSONResponse(wire.search_json(ranked[0], request.return_score))

    @app.post("/batch_search", response_model=wire.BatchSearchOut, responses=refusals)
    async def batch_search(request: models.batch_search) -> Response:  # pyrefly: ignore
        _refuse_blanks("query", request.query)
        ranked = await rank("/batch_search", request.query, request.top_n)
        return JSONResponse(wire.batch_search_json(ranked, request.return_score))

    @app.post("/retrieve", response_model=wire.RetrieveOut, responses=refusals)
    async def retrieve(request: models.retrieve) -> Response:  # pyrefly: ignore
        _refuse_blanks("queries", request.queries)
        ranked = await rank("/retrieve", request.queries, request.topk or settings.retrieval_topk)
        return JSONResponse(wire.retrieve_json(ranked, request.return_scores))


def _refuse_blanks(field: str, queries: Sequence[str]) -> None:
    for position, query in enumerate(queries):
        if not query.strip():
            raise HTTPException(400, f"{wire.EMPTY_QUERY}: {field}[{position}]")


async def _answer_422(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # it is registered for this type alone
    # Without the input: it may be megabytes, or hold half a surrogate pair, which no JSON answer can carry.
    problems = [{key: problem[key] for key in ("type", "loc", "msg")} for problem in error.errors()]
    return JSONResponse({"detail": problems}, status_code=422)


async def _answer_500(_: Request, error: Exception) -> JSONResponse:
    # Starlette raises the error again after this answer, so that the server logs it with its traceback.
    return JSONResponse({"detail": f"the search failed: {type(error).__name__}"}, status_code=500)
