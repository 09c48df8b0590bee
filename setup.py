"""Builds the one extension, gateway._native, from _native/native.pyx.

NATIVE_DEBUG=1 builds it with invariant checks and without optimisation, for the fuzzers.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

debug = os.environ.get("NATIVE_DEBUG") == "1"
extension = Extension(
    "gateway._native",
    ["_native/native.pyx"],
    depends=sorted(str(path) for path in Path("_native").iterdir() if path.suffix != ".c"),
    extra_compile_args=["-O1", "-g", "-DNATIVE_DEBUG"] if debug else ["-O3", "-g0", "-fno-plt"],
)
setup(
    ext_modules=cythonize(
        [extension],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "auto_pickle": False,
            "autotestdict": False,
        },
    )
)
