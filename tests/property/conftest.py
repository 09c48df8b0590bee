"""How many examples each property gets: a few and the same ones every time, or WEIR_EXAMPLES new ones.

Only with WEIR_EXAMPLES is what fails made small: that may take minutes.
"""

import os

from hypothesis import HealthCheck, Phase, settings

EXAMPLES = os.environ.get("WEIR_EXAMPLES", "")

settings.register_profile(
    "weir",
    max_examples=int(EXAMPLES or 40),
    phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if EXAMPLES else [])],
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    print_blob=True,
)
settings.load_profile("weir")
