"""One module per command: its options in ``add``, its work in ``main``."""

COMMANDS = (
    "run",
    "score",
    "report",
    "compare",
    "demo",
    "submission",
    "data",
    "models",
    "status",
    "cancel",
    "work",
)
