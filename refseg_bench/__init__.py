"""refseg_bench: a benchmark harness for referring and reasoning segmentation of images and video.

A script needs the names of ``__all__`` only (docs/extend.md, "From Python"). Each is imported from its own
module at first use, so that ``import refseg_bench`` alone loads nothing.
"""

# typing is not imported either: `refseg --help` passes here.
TYPE_CHECKING = False

__version__ = "0.1.0"

#: Name → the module it is defined in.
_HOMES = {
    "Clip": "types",
    "Dataset": "datasets.base",
    "Expression": "types",
    "Grounding": "types",
    "MaskTrack": "types",
    "Method": "methods.base",
    "RefsegError": "errors",
    "RunStore": "run.store",
    "ScoringProtocol": "scoring.protocols.base",
    "Segmenter": "segmenters.base",
    "Target": "types",
    "compose": "config.compose",
    "launch": "run.launch",
    "open_dataset": "config.components",
    "open_protocol": "config.components",
    "score_run": "scoring.runs",
    "show_tables": "report.tables",
    "to_frame": "report.tables",
}
__all__ = list(_HOMES)

if TYPE_CHECKING:
    from refseg_bench.config.components import open_dataset as open_dataset
    from refseg_bench.config.components import open_protocol as open_protocol
    from refseg_bench.config.compose import compose as compose
    from refseg_bench.datasets.base import Dataset as Dataset
    from refseg_bench.errors import RefsegError as RefsegError
    from refseg_bench.methods.base import Method as Method
    from refseg_bench.report.tables import show_tables as show_tables
    from refseg_bench.report.tables import to_frame as to_frame
    from refseg_bench.run.launch import launch as launch
    from refseg_bench.run.store import RunStore as RunStore
    from refseg_bench.scoring.protocols.base import ScoringProtocol as ScoringProtocol
    from refseg_bench.scoring.runs import score_run as score_run
    from refseg_bench.segmenters.base import Segmenter as Segmenter
    from refseg_bench.types import Clip as Clip
    from refseg_bench.types import Expression as Expression
    from refseg_bench.types import Grounding as Grounding
    from refseg_bench.types import MaskTrack as MaskTrack
    from refseg_bench.types import Target as Target
else:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
