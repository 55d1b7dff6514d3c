"""The one thing pyproject.toml can't say: a compiled kernel that may fail to build.

Without a C compiler the package installs all the same and counts with numpy and OpenCV.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "refseg_bench.metrics._kernel",
            ["refseg_bench/metrics/_kernel.c"],
            extra_compile_args=["-O3"],
            optional=True,
        )
    ]
)
