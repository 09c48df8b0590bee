"""Settings: typed, all with defaults, from a TOML file and then the environment.

The environment wins: ``WEIR__SECTION__KEY`` overrides ``key`` in ``[section]``; lists are separated by
commas. A key nobody knows is an error, with a suggestion. Each limit has its unit in its name and its
meaning beside it, and the limits are checked against each other before anything starts, so that a
gateway that started cannot be refused its own largest request later.

``config/weir.toml`` is the rendering of the defaults; a test holds it to ``settings.py``.
"""

from gateway.config.contradictions import contradictions
from gateway.config.settings import (
    ENGINES_MS,
    STOP_MS_MAX,
    Config,
    CountedLimits,
    DialectLimits,
    Limits,
    Ndjson,
)
from gateway.config.text import ConfigError, fields, load, masked, schema, to_toml, toml_value, variable

__all__ = [
    "ENGINES_MS",
    "STOP_MS_MAX",
    "Config",
    "ConfigError",
    "CountedLimits",
    "DialectLimits",
    "Limits",
    "Ndjson",
    "contradictions",
    "fields",
    "load",
    "masked",
    "schema",
    "to_toml",
    "toml_value",
    "variable",
]
