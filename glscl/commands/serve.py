"""`glscl serve`: answer searches in indexes over HTTP, with a page."""

from glscl.errors import UserError
from glscl.options.flags import parse_options
from glscl.service.options import Serve

HELP = "answer searches in indexes over HTTP, with a page in the browser"
ORDER = 38


def run(words: list[str], program: str) -> str:
    """Open the indexes, and serve them until a signal."""
    options = parse_options(Serve, words, program)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"`glscl serve` needs {error.name}: pip install 'glscl[serve]'") from None
    if options.ray:
        from glscl.service.deployment import serve_on_ray

        return serve_on_ray(options)
    from glscl.service.server import serve

    return serve(options)
