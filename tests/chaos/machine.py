"""What this machine allows, and how much is asked of it."""

from __future__ import annotations

import os

import pytest

from tests.chaos.crash import may_trace
from tests.chaos.disk import may_mount
from tests.chaos.power import may_preload

mounts = pytest.mark.skipif(not may_mount(), reason="a small disk needs the right to mount")
traces = pytest.mark.skipif(not may_trace(), reason="needs an strace that may trace and inject")
preloads = pytest.mark.skipif(not may_preload(), reason="needs a C compiler")
full = pytest.mark.skipif("WEIR_CHAOS_FULL" not in os.environ, reason="a positive control that make chaos runs")
