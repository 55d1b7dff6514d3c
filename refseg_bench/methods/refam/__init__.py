"""RefAM: where a diffusion transformer looks when it reads an expression (arXiv 2509.22650)."""

from refseg_bench.methods.refam.method import RefAM

__all__ = ["RefAM"]
