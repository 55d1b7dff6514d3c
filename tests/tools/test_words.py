"""Words that a tool of the project can't mean are told with what it takes."""

import subprocess
import sys

import pytest

from tests.fakes import REPO


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--nope"], ["bogus"], ["HEAD", "HEAD"]])
@pytest.mark.parametrize("tool", ["house.py", "make_tables.py", "make_gallery.py"])
def test_a_word_that_a_tool_cannot_mean_is_told(tool: str, words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, REPO / "tools" / tool, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert words[0] in done.stderr or tool in done.stderr
