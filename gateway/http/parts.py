"""An answer that is sent as it is made, because it may be too large to be held.

Its status is sent before its end is known. So when its end cannot be had the connection is cut: what has no
last chunk is not whole, and every client says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from aiohttp import web

from gateway.dialects.dialect import Reply
from gateway.errors import WeirError
from gateway.http.surprise import without_its_text

log = logging.getLogger(__name__)

PART_S = 30.0
"""How long a reader may take for one part; one that is slower holds what others may want."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsReply(Reply):
    """An answer whose body is ``parts``. Has to be begun already (``anext``): then it is ended with the answer."""

    parts: AsyncGenerator[bytes, None]


async def send(request: web.BaseRequest, response: web.StreamResponse, reply: PartsReply) -> None:
    """Sends all of it. Raises ConnectionError when the reader has gone, or was cut off because of an error."""
    async with aclosing(reply.parts) as parts:
        try:
            await response.prepare(request)
            async for part in parts:
                async with asyncio.timeout(PART_S):
                    await response.write(part)
            await response.write_eof()
        except ConnectionError:
            raise
        except WeirError as error:
            log.warning("an answer was cut short: %s", error.log)
        except TimeoutError:
            log.warning("an answer was cut short: its reader is too slow")
        except Exception as surprise:
            log.error("an answer was cut short for a reason nobody foresaw", extra=without_its_text(surprise))  # noqa: TRY400
        else:
            return
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionAbortedError
