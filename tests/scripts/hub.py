"""How the Hugging Face hub sends a file, for servers of tests that play it."""

from collections.abc import Callable

from fastapi import Request, Response


def send_file(
    request: Request, content: bytes, etag: str, commit: str, on_the_way: Callable[[bytes], bytes] = bytes
) -> Response:
    """Answer HEAD and GET, from the byte that is asked for; `on_the_way` may damage what is sent."""
    headers = {"etag": f'"{etag}"', "x-repo-commit": commit, "accept-ranges": "bytes"}
    if request.method == "HEAD":
        return Response(headers={**headers, "content-length": str(len(content))})
    wanted = request.headers.get("range")
    start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
    body = content[start:]
    headers["content-length"] = str(len(body))
    if wanted:
        headers["content-range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return Response(on_the_way(body), status_code=206 if wanted else 200, headers=headers)
