"""Which optional extra brings which package, so that a missing one is told with its cure."""

from __future__ import annotations

from refseg_bench.errors import ConfigError, MissingExtra, RefsegError

#: top-level import name → extra of ``refseg-bench`` that installs it.
EXTRA_OF = {
    "torch": "mllm",
    "torchvision": "mllm",
    "transformers": "mllm",
    "diffusers": "dit",
    "accelerate": "dit",
    "sentencepiece": "dit",
    "sam2": "sam2",
    "submitit": "slurm",
    "av": "report",
}


def missing_package(capability: str, package: str) -> RefsegError:
    """The error for a component whose import failed on a third-party package."""
    top = package.partition(".")[0]
    if top in EXTRA_OF:
        return MissingExtra(capability, top, EXTRA_OF[top])
    return ConfigError(
        f"{capability} needs the package '{top}', which is not installed.", cure=f"pip install {top}"
    )


def require(package: str, capability: str) -> None:
    """Raise the error with its cure unless the package can be found (it is not imported)."""
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise missing_package(capability, package)
