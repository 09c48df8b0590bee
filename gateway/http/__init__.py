"""The front door: the only rooms that know aiohttp.web."""
