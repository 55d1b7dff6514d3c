"""A package of somebody else, put on the search path once: its components work in every command."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from PIL import Image

from refseg_bench.cli import main
from refseg_bench.config import searchpath
from refseg_bench.config.components import names, open_dataset
from refseg_bench.config.compose import compose
from refseg_bench.errors import ConfigError

#: Kind → the most lines its component may take, beside one YAML.
MOST_LINES = {"dataset": 40, "method": 25, "protocol": 30, "segmenter": 45, "backbone": 50}
CODE = {
    "dataset": '''
        """Squares: SPLIT/words.txt (clip and expression), SPLIT/CLIP/FRAME.png and FRAME_mask.gif."""

        from dataclasses import dataclass
        from pathlib import Path

        import numpy as np
        from PIL import Image

        from refseg_bench.config.schema import option
        from refseg_bench.datasets.base import Dataset
        from refseg_bench.types import Clip, Expression, MaskTrack, Target


        @dataclass
        class Squares(Dataset):
            """Videos of a bright square."""

            name: str = "squares"
            split: str = "val"
            root: Path | None = option(None, transient=True)
            protocols: list[str] = option(["mean-iou"], transient=True)

            def landmarks(self) -> list[str]:
                return ["{split}/words.txt"]

            def clips(self) -> list[Clip]:
                folder = self.base() / self.split
                words = dict(line.split(" ", 1) for line in (folder / "words.txt").open())
                files = {name: tuple(sorted((folder / name).glob("*.png"))) for name in words}
                stems = {name: tuple(p.stem for p in files[name]) for name in words}
                return [Clip(n, files[n], stems[n], (16, 24), {"text": words[n]}) for n in words]

            def expressions(self, clip: Clip) -> list[Expression]:
                return [Expression("0", clip.attrs["text"].strip())]

            def target(self, clip: Clip, expression: Expression) -> Target:
                files = [p.with_name(f"{p.stem}_mask.gif") for p in clip.frame_paths]
                masks = [np.asarray(Image.open(file)) > 0 for file in files]
                return Target(clip.size, len(clip), (MaskTrack.from_masks(masks, clip.size),))
        ''',
    "method": '''
        """Click: one point where the model looks most."""

        from dataclasses import dataclass

        from refseg_bench.backbones.base import GroundingMLLM, RolloutSettings, VisualSettings
        from refseg_bench.methods.base import click, peak, track_prompts
        from refseg_bench.segmenters.base import Segmenter
        from refseg_bench.types import Grounding


        @dataclass
        class Click:
            backbone: GroundingMLLM
            segmenter: Segmenter
            frame: int = 0

            def predict(self, clip, expressions):
                seen = self.backbone.open(clip.load([self.frame]), VisualSettings(), RolloutSettings())
                with seen, self.segmenter.open(clip) as session:
                    for expression in expressions:
                        (attention,) = seen.read(0, [expression.text], answer=False)
                        point = peak(attention.map_Thw[0], self.frame)
                        track = track_prompts(session, self.frame, [click(point)])
                        yield Grounding(expression, track, point=point)
        ''',
    "protocol": '''
        """Mean IoU: over the frames of an expression, then over the expressions."""

        from dataclasses import dataclass
        from typing import ClassVar

        from refseg_bench.scoring.boundary import jaccard
        from refseg_bench.scoring.protocols.base import Case, Policy, ScoringProtocol
        from refseg_bench.types import Score, sample_id


        @dataclass
        class MeanIou(ScoringProtocol):
            id: ClassVar[str] = "mean-iou"
            imitates: ClassVar[str] = "none"
            policy: ClassVar[Policy] = Policy()
            metrics: ClassVar[tuple[str, ...]] = ("mIoU",)

            def score_clip(self, case: Case) -> list[Score]:
                scores = []
                for found in self.present(case, {"mIoU": 0.0}):
                    if not isinstance(found, Score):
                        item, track, frames = found
                        counts = case.book.counts(case.book.enter(item.union, track))
                        values = {"mIoU": float(jaccard(counts[list(frames)]).mean())}
                        found = Score(sample_id(case.clip.id, item.expression.id), case.clip.id, values, {})
                    scores.append(found)
                return scores
        ''',
    "segmenter": '''
        """Cut: what is bright, or what is not, as where the prompt points."""

        from dataclasses import dataclass

        import numpy as np

        from refseg_bench.segmenters.base import Candidates, Segmenter, SegmenterSession


        class Session(SegmenterSession):
            name = "cut"
            accepts = ("points", "mask")

            def __init__(self, clip, level):
                super().__init__(clip)
                self.bright = clip.load().mean(axis=-1) > level

            def side(self, frame, prompt):
                if prompt.mask is not None:
                    return self.bright[frame][prompt.mask].mean() > 0.5
                x, y = prompt.points[0]
                height, width = self.clip.size
                return self.bright[frame, int(y * height), int(x * width)]

            def _segment(self, frame, prompts, multimask):
                masks = [self.bright[frame] == self.side(frame, prompt) for prompt in prompts]
                return [Candidates(mask[None], np.ones(1, np.float32)) for mask in masks]

            def _propagate(self, frame, prompts, video, direction):
                sides = [self.side(frame, prompt) for prompt in prompts]
                for index in video:
                    yield index, np.stack([self.bright[index] == side for side in sides])


        @dataclass
        class Cut(Segmenter):
            level: int = 128

            def open(self, clip):
                return Session(clip, self.level)
        ''',
    "backbone": '''
        """Looker: a model that attends to what is bright, unless it is asked to describe everything."""

        from dataclasses import dataclass

        import numpy as np

        from refseg_bench.backbones.base import GroundingMLLM, MLLMCounters, MLLMSession, PromptAttention
        from refseg_bench.backbones.weights import Weights


        class Look(MLLMSession):
            def __init__(self, frames_THWC, counters):
                self.maps = frames_THWC[:, ::2, ::2].mean(axis=-1, dtype=np.float32) / 255
                self.counters = counters

            def read(self, where, prompts, *, answer):
                self.counters.prompts += len(prompts)
                maps = self.maps if where == "video" else self.maps[where][None]
                flat = np.full_like(maps, 0.1)
                return [PromptAttention(flat if "Describe" in p else maps, "a square") for p in prompts]

            def ask(self, prompts):
                return ["a square"] * len(prompts)


        @dataclass
        class Looker(GroundingMLLM):
            path: str = "looker"

            def __post_init__(self):
                self.counters = MLLMCounters()

            def weights(self):
                return [Weights(self.path)]

            def identity(self):
                return {"model": "looker 1"}

            def layers(self):
                return 2

            def open(self, frames_THWC, visual, rollout):
                return Look(frames_THWC, self.counters)
        ''',
}
YAML = {
    "dataset/squares": 'aliases: [quadrate]\nsubmission: ""\n_target_: outsider.dataset.Squares',
    "method/click": "_target_: outsider.method.Click",
    "protocol/mean-iou": "_target_: outsider.protocol.MeanIou",
    "segmenter/cut": "_target_: outsider.segmenter.Cut",
    "backbone/looker": "_target_: outsider.backbone.Looker",
}


@pytest.fixture
def outsider(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package, importable, in a folder of its own; its data set's archive and its model's folder."""
    package = in_tmp / "lib" / "outsider"
    for name, text in YAML.items():
        path = package / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    (package / "__init__.py").touch()
    for kind, text in CODE.items():
        (package / f"{kind}.py").write_text(dedent(text).lstrip())
    monkeypatch.syspath_prepend(str(in_tmp / "lib"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "outsider"]:
        monkeypatch.delitem(sys.modules, name)
    for clip in ("one", "two"):
        folder = in_tmp / "archive" / "Squares" / "val" / clip
        folder.mkdir(parents=True)
        for i in range(3):
            mask = np.zeros((16, 24), np.uint8)
            mask[4:12, 4 + i : 12 + i] = 255
            Image.fromarray(mask).convert("RGB").save(folder / f"{i}.png")
            Image.fromarray(mask).save(folder / f"{i}_mask.gif")
    (in_tmp / "archive/Squares/val/words.txt").write_text("one the square\ntwo a bright square\n")
    shutil.make_archive("squares", "zip", in_tmp / "archive")
    shutil.rmtree(in_tmp / "archive")
    (in_tmp / "looker").mkdir()
    return in_tmp


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    got = main(list(words))
    text = "".join(capsys.readouterr())
    assert got == code, (words, text)
    return text


@pytest.mark.parametrize("kind", CODE)
def test_a_component_is_a_few_lines_and_one_yaml(outsider: Path, kind: str) -> None:
    package = outsider / "lib" / "outsider"
    assert len((package / f"{kind}.py").read_text().splitlines()) <= MOST_LINES[kind]
    assert len(list((package / "conf" / kind).iterdir())) == 1


@pytest.mark.slow
def test_every_command_knows_them(
    outsider: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(searchpath.SEARCHPATH)
    monkeypatch.setenv("COLUMNS", "200")
    Path("pyproject.toml").write_text('[tool.refseg]\nsearchpath = ["pkg://outsider.conf"]\n')
    parts = ("dataset=quadrate", "backbone=looker", "segmenter=cut")

    # the data
    assert "val: 2 clips" in said(capsys, "data", "prepare", "squares", "--from", "squares.zip")
    assert "data/squares (val)" in said(capsys, "data", "list")
    assert "all well" in said(capsys, "data", "verify", "squares", "--decode")
    said(capsys, "data", "show", "quadrate", "one", "--out", "sample.png")
    assert Path("sample.png").is_file()
    assert "no split 'test' here" in said(capsys, "data", "verify", "squares", "--split", "test", code=2)

    # their method, and one of ours with their parts
    assert "looker" in said(capsys, "models", "list", *parts, "method=click")
    assert "mean-iou@1" in said(capsys, "run", *parts, "method=click", "method.frame=1", "--no-html")
    assert "mean-iou@1" in said(capsys, "run", *parts, "method=decaf", "segmenter.level=100", "--no-html")
    theirs, ours = sorted(map(str, Path("runs").iterdir()))
    assert theirs.startswith("runs/click-squares-")
    monkeypatch.delenv(searchpath.SEARCHPATH)  # as in another shell
    assert "done" in said(capsys, "status")
    assert "100.00 [100.00, 100.00]" in said(capsys, "score", theirs, "-j", "2")
    assert "mean-iou@1" in said(capsys, "report")
    assert "mIoU" in said(capsys, "compare", theirs, ours)
    assert "3 frames" in said(
        capsys, "demo", "data/squares/val/one", "the square", *parts[1:], "method=click"
    )

    # predictions of other code, and a server
    other_code(Path("masks"))
    assert "100.00 [100.00, 100.00]" in said(
        capsys, "score", "--predictions", "masks", "--dataset", "squares"
    )
    assert "6 masks" in said(capsys, "submission", theirs)
    assert "fit" in said(capsys, "submission", "--check", f"{theirs}/submission.zip", "--dataset", "squares")
    assert "6 masks" in said(capsys, "submission", "--predictions", "masks", "--dataset", "squares")


def other_code(folder: Path) -> None:
    """Perfect predictions as somebody's code writes them."""
    for path in Path("data/squares/val").glob("*/*_mask.gif"):
        out = folder / path.parent.name / "0" / f"{path.stem.removesuffix('_mask')}.png"
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(out)


@pytest.mark.slow
def test_a_class_that_inherits_nothing_has_the_hooks_in_every_process(
    outsider: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(searchpath.SEARCHPATH, "pkg://outsider.conf")
    code = outsider / "lib/outsider/dataset.py"
    code.write_text(code.read_text().replace("(Dataset)", ""))
    said(capsys, "data", "prepare", "squares", "--from", "squares.zip")
    assert "all well" in said(capsys, "data", "verify", "squares")
    other_code(Path("masks"))
    command = ("score", "--predictions", "masks", "--dataset", "squares", "-j", "2")
    assert "100.00 [100.00, 100.00]" in said(capsys, *command)


def test_a_set_that_can_t_be_built_hides_no_other(
    outsider: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (outsider / "lib/outsider/conf/dataset/squares.yaml").write_text("_target_: outsider.dataset.Nothing\n")
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
    parts = ("dataset=squares", "method=click", "backbone=looker", "segmenter=cut")
    (point,) = compose([f"hydra.searchpath=[file://{folder}]", *parts])
    assert point.values["segmenter"]["level"] == 128
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
