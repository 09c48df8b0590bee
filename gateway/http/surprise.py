"""What may be logged of an exception that nobody foresaw."""

from __future__ import annotations

import traceback


def without_its_text(surprise: BaseException) -> dict[str, str]:
    """Its type and where it came from, to be passed as ``extra``. Its own text is left out: it may quote a request."""
    return {
        "exception_type": type(surprise).__qualname__,
        "stack": "".join(traceback.format_tb(surprise.__traceback__)),
    }
