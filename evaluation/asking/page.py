"""The page in the browser: a question in, and the steps of its answer as they come. It asks no other origin.

    POST /ask {"question": …} -> JSON lines: the pieces of the answer's steps, then one line of the kind `end`

The steps look as in the report: static/ask.{html,css,js} over report/static/trajectory.{css,js}.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

from evaluation.asking.asker import Asker, figures
from evaluation.asking.preflight import checked
from evaluation.report.page import STATIC as REPORT_STATIC
from evaluation.report.page import shown_passages
from flashrag.episode import Piece, Trajectory
from flashrag.errors import UserError, without_passwords
from flashrag.system.local_server import http_url, listening_socket

STATIC = Path(__file__).with_name("static")
CLOSE_TIMEOUT_S = 1  # for answers under way, once the page ends
# HTML in a passage can never run: no inline script, no other origin.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Answer = Callable[[str, Callable[[Piece], object]], Awaitable[Trajectory]]


class Asked(BaseModel):
    question: str


async def serve(asker: Asker, host: str, port: int) -> int:
    """Serve the page until Ctrl-C; raises `UserError` if the port is taken."""
    settings = asker.settings
    model = Path(asker.served_name)
    about = f"{settings.method_name} · {Path(*model.parts[-3:]) if model.is_absolute() else model}"
    if settings.remote_retriever_url is not None:
        about += f" · searches {without_passwords(settings.remote_retriever_url)}"
    server = uvicorn.Server(uvicorn.Config(
        create_app(asker.answer, about), log_level="warning", access_log=False,
        timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
    ))  # fmt: skip
    with listening_socket(host, port) as listener:
        print(f"ready: {http_url(host, listener.getsockname()[1])} (Ctrl-C ends it)", flush=True)
        await server.serve(sockets=[listener])
    return 0


def create_app(answer: Answer, about: str) -> FastAPI:
    """The page over a way to answer; `about` says in a line what answers."""
    app = FastAPI(openapi_url=None)
    page = Template((STATIC / "ask.html").read_text(encoding="utf-8")).substitute(about=escape(about))

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({"detail": 'expected a JSON object with the key "question", a text'}, 422)

    @app.get("/")
    async def show() -> HTMLResponse:
        return HTMLResponse(page, headers=HEADERS)

    @app.post("/ask")
    async def ask(asked: Asked) -> Response:
        try:
            question = checked(asked.question.strip())
        except UserError as error:
            return JSONResponse({"detail": str(error)}, 400)
        return StreamingResponse(lines(answer, question), media_type="application/x-ndjson", headers=HEADERS)

    for path, folder in (("/static", STATIC), ("/report", REPORT_STATIC)):
        app.mount(path, StaticFiles(directory=folder))
    return app


async def lines(answer: Answer, question: str) -> AsyncIterator[bytes]:
    """The lines of one answer; it is given up when nobody reads them any more."""
    pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
    task = asyncio.ensure_future(answer(question, pieces.put_nowait))
    task.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        while (piece := await pieces.get()) is not None:
            yield _line({**piece._asdict(), "passages": shown_passages(piece.passages)})
        yield _line({"kind": "end", **_end(task)})
    finally:
        task.cancel()


def _end(task: asyncio.Future[Trajectory]) -> dict[str, Any]:
    if (error := task.exception()) is not None:
        print(f"error: {error}", file=sys.stderr)
        return {"answer": "", "error": " ".join(str(error).split()), "figures": ""}
    trajectory = task.result()
    problem = "" if trajectory.error is None else " ".join(str(trajectory.error).split())
    return {"answer": trajectory.answer, "error": problem, "figures": figures(trajectory)}


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", errors="replace") + b"\n"
