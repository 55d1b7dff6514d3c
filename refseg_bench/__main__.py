"""``python -m refseg_bench`` is ``refseg``."""

from refseg_bench.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
