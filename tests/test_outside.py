"""A package of somebody else, put on the search path once: its components work in every command."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg_bench.cli import main
from refseg_bench.config import searchpath
from refseg_bench.config.components import names, open_dataset
from refseg_bench.config.compose import compose
from refseg_bench.errors import ConfigError

CODE = '''
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from refseg_bench.backbones.weights import Weights
from refseg_bench.config.schema import option
from refseg_bench.scoring.protocols.rvos import RvosExpression
from refseg_bench.types import Clip, Expression, Grounding, MaskTrack, Target


@dataclass
class Squares:
    """Two clips of two frames with a bright square."""

    name: str = "squares"
    split: str = "all"
    root: Path = option(Path("squares"), transient=True)
    protocols: list[str] = option(factory=lambda: ["my-rules"], transient=True)

    def clips(self) -> list[Clip]:
        paths = tuple(self.root / f"{i}.png" for i in range(2))
        return [Clip(name, paths, ("0", "1"), (16, 16)) for name in ("one", "two")]

    def expressions(self, clip: Clip) -> list[Expression]:
        return [Expression("0", "the square")]

    def target(self, clip: Clip, expression: Expression) -> Target:
        masks = [np.asarray(Image.open(p).convert("L")) > 128 for p in clip.frame_paths]
        return Target(clip.size, len(clip), (MaskTrack.from_masks(masks, clip.size),))


@dataclass
class Bright:
    """What is brighter than a level."""

    level: int = 128

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        masks = [frame.mean(axis=-1) > self.level for frame in clip.load()]
        for expression in expressions:
            yield Grounding(expression, MaskTrack.from_masks(masks, clip.size))


@dataclass
class Mine(RvosExpression):
    """MeViS' rules under a name of their own."""

    id = "my-rules"


@dataclass
class Model:
    """A segmenter of which only the weights matter here."""

    path: str = "somebody/model"

    def weights(self) -> list[Weights]:
        return [Weights(self.path)]

    def open(self, clip: Clip) -> None:
        raise NotImplementedError
'''
YAML = {
    "dataset/squares": "_target_: outsider.code.Squares\naliases: [quadrate]\n",
    "method/bright": "_target_: outsider.code.Bright\n",
    "protocol/my-rules": "_target_: outsider.code.Mine\n",
    "segmenter/theirs": "_target_: outsider.code.Model\n",
}


@pytest.fixture
def outsider(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package, importable, in a folder of its own; the frames of its data set."""
    package = in_tmp / "lib" / "outsider"
    for name, text in YAML.items():
        path = package / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (package / "__init__.py").touch()
    (package / "code.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(in_tmp / "lib"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "outsider"]:
        monkeypatch.delitem(sys.modules, name)
    frame = np.zeros((16, 16, 3), np.uint8)
    frame[4:12, 4:12] = 255
    for i in range(2):
        path = in_tmp / "squares" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(frame).save(path)
    return in_tmp


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    got = main(list(words))
    text = "".join(capsys.readouterr())
    assert got == code, (words, text)
    return text


def test_every_command_knows_them(
    outsider: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(searchpath.SEARCHPATH)
    monkeypatch.setenv("COLUMNS", "200")
    Path("pyproject.toml").write_text('[tool.refseg]\nsearchpath = ["pkg://outsider.conf"]\n')
    assert "my-rules@1" in said(
        capsys, "run", "dataset=quadrate", "method=bright", "method.level=100", "--no-html"
    )
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("bright-squares-")
    monkeypatch.delenv(searchpath.SEARCHPATH)  # as in another shell
    # The class doesn't inherit: processes of their own must give it the same hooks.
    assert "my-rules@1" in said(capsys, "score", str(run), "-j", "2")
    assert "my-rules@1" in said(capsys, "report", str(run))
    assert "squares" in said(capsys, "data", "list")
    assert "all well" in said(capsys, "data", "verify", "squares")
    said(capsys, "data", "show", "quadrate", "one", "--out", "sample.png")
    assert Path("sample.png").is_file()
    for clip in ("one", "two"):
        Path(f"masks/{clip}/0").mkdir(parents=True)
        for i in range(2):
            Image.open(f"squares/{i}.png").convert("L").save(f"masks/{clip}/0/{i}.png")
    assert "my-rules@1" in said(capsys, "score", "--predictions", "masks", "--dataset", "squares")
    assert "No evaluation server" in said(capsys, "submission", str(run), code=2)
    assert "somebody/model" in said(capsys, "models", "list", "segmenter=theirs", code=1)
    assert "2 frames" in said(capsys, "demo", "squares", "the square", "method=bright")


def test_a_set_that_can_t_be_built_hides_no_other(
    outsider: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (outsider / "lib/outsider/conf/dataset/squares.yaml").write_text("_target_: outsider.code.Nothing\n")
    monkeypatch.setenv(searchpath.SEARCHPATH, "pkg://outsider.conf")
    monkeypatch.setenv("COLUMNS", "200")
    told = said(capsys, "data", "list")
    assert "has no 'Nothing'" in told
    assert "mevis" in told


def test_a_package_that_nobody_put_there_is_not_imported(outsider: Path) -> None:
    with pytest.raises(ConfigError, match="No dataset 'squares'"):
        open_dataset("squares")
    assert "outsider" not in sys.modules
    folder = outsider / "lib/outsider/conf"
    (point,) = compose([f"hydra.searchpath=[file://{folder}]", "dataset=squares", "method=bright"])
    assert point.values["method"]["level"] == 128
    assert "squares" in names("dataset")


@pytest.mark.parametrize(
    ("entry", "told"), [("pkg://nowhere.conf", "can't be imported"), ("/nowhere/conf", "not there")]
)
def test_a_wrong_search_path_is_told(monkeypatch: pytest.MonkeyPatch, entry: str, told: str) -> None:
    monkeypatch.setenv(searchpath.SEARCHPATH, entry)
    with pytest.raises(ConfigError, match=told) as error:
        names("dataset")
    assert error.value.where == entry


def test_a_wrong_table_of_the_project_is_told(in_tmp: Path) -> None:
    Path("pyproject.toml").write_text('[tool.refseg]\nsearchpath = "conf"\n')
    with pytest.raises(ConfigError, match="no list"):
        names("dataset")
