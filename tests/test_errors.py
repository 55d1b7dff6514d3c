from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from refseg_bench.errors import DataError, MissingExtra, RefsegError, ScoreError
from refseg_bench.scoring.sources import Coverage, IncompleteError


def test_an_error_says_what_where_allowed_and_hint() -> None:
    error = DataError("It is torn.", where=Path("a/b.json"), allowed=[1, 2], hint="Mend it.")
    assert str(error) == "It is torn.\n  where:   a/b.json\n  allowed: 1, 2\n  hint:    Mend it."
    assert str(RefsegError("Only this.")) == "Only this."


@pytest.mark.parametrize(
    "error",
    [
        DataError("It is torn.", where="x", allowed=["a"], hint="c"),
        ScoreError("No."),
        MissingExtra("scoring", "torch", "mllm"),
        IncompleteError(["decaf@1"], "run", Coverage(expected=2, missing=["a/0"])),
    ],
)
def test_errors_cross_process_borders(error: RefsegError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again).keys() == vars(error).keys()
