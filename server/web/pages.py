"""The operator's pages: the files beside, read once and served from memory, so that no path is ever looked up."""

from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER: Final = Path(__file__).with_name("page")
TYPES: Final = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}


def routes() -> list[Route]:
    """`/`, `/devices/NAME`, and what they load below `/page/`. Raises OSError when the files are not installed."""
    files = {path.name: _File(path) for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
    pages = [Route("/", files.pop("index.html").answer), Route("/devices/{name}", files.pop("device.html").answer)]
    return [*pages, *(Route(f"/page/{name}", file.answer) for name, file in files.items())]


class _File:
    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        self._type = TYPES[path.suffix]

    async def answer(self, _request: Request) -> Response:
        return Response(self._content, media_type=self._type)
