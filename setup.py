"""What pyproject.toml can't say: a kernel that may fail to build, and folders that ship inside the wheel.

Without a C compiler the package installs all the same and counts with numpy and OpenCV.
"""

import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

SHIPPED = ("conf", "datasets", "results")


class BuildWithShipped(build_py):
    """Puts the top-level folders a user needs below the package; ``env.py`` finds them."""

    def run(self) -> None:
        """Build, then copy (an editable install reads the checkout itself)."""
        super().run()
        if self.editable_mode:
            return
        for name in SHIPPED:
            to = Path(self.build_lib) / "refseg_bench" / "_shipped" / name
            shutil.rmtree(to, ignore_errors=True)
            shutil.copytree(name, to)


setup(
    cmdclass={"build_py": BuildWithShipped},
    ext_modules=[
        Extension(
            "refseg_bench.files._kernel",
            ["refseg_bench/files/_kernel.c"],
            extra_compile_args=["-O3"],
            optional=True,
        )
    ],
)
