"""The way of the first public code, restated: an async handler that searches on the event loop, one query at a time.

`python -m scripts.bench.blocking --config … --port P`. It encodes with `SentenceTransformer.encode`, as that code's
library does, or with `--our_encoder`, so that what differs from our server is the handler alone. Index and corpus are
the same, and there is no access log. For comparison only.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from flashrag.errors import exit_on_user_error
from flashrag.retriever import Retriever
from flashrag.system.arguments import CommandParser
from scripts.bench.direct import measured_retriever


class Search(BaseModel):
    query: str
    top_n: int = 10
    return_score: bool = False


def blocking_app(retriever: Retriever) -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.post("/search")
    async def search(request: Search) -> list:
        documents, scores = retriever.search(request.query, request.top_n, return_score=True)
        found = [{"id": document.id, "contents": document.contents} for document in documents]
        return [found, scores] if request.return_score else found

    return app


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(description="Serve retrieval the slow way, to compare with.")
    parser.add_argument("--config", type=Path, required=True, help="the YAML file of our server")
    parser.add_argument("--port", type=int, required=True, help="to listen on, on the loopback")
    parser.add_argument("--our_encoder", action="store_true", help="encode as our server does")
    options = parser.parse_args(argv)
    retriever = measured_retriever(options.config, our_encoder=options.our_encoder)
    retriever.search("warm-up")
    uvicorn.run(blocking_app(retriever), port=options.port, log_level="warning")


if __name__ == "__main__":
    sys.exit(main())
