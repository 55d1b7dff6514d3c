"""One module per command: its options in ``add``, its work in ``main``."""

#: Every command and what `refseg --help` says of it, which imports none of them.
COMMANDS = {
    "run": "run an experiment (resumes), then score and report it",
    "score": "score runs, or other people's predictions, under named protocols",
    "report": "results of runs side by side",
    "compare": "paired difference of two runs",
    "gate": "is a run no worse than a baseline: an exit code for continuous integration",
    "demo": "one clip and one expression through any method, as a picture and a video",
    "submission": "write or check the zip for an evaluation server",
    "data": "list, prepare, verify and show data sets",
    "models": "list the weights a config needs; fetch them",
    "doctor": "do models run here as they should, how fast, in how much memory",
    "heads": "which attention heads of a language model localize",
    "status": "done, failed and left of runs",
    "cancel": "end the jobs and processes that work on runs",
    "work": "one worker of a frozen run, for any scheduler",
}
