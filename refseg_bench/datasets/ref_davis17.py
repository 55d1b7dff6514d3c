"""Ref-DAVIS17 in its converted layout, and the conversion from DAVIS 2017 and four text files.

Every object has four sentences: two people, each once from the first frame and once from the
full video. The expression id says which: ``id = 4 · (object's place in the video) + annotator``,
with the objects sorted by id *as text*. The texts come in two encodings and spell three sequences
wrongly; both are put right here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refseg_bench.config.schema import option
from refseg_bench.datasets.files import Damage, Place, bad_name, read_json, read_text, wordless
from refseg_bench.datasets.masks import LabelMapMasks, MaskSource, read_labels
from refseg_bench.datasets.ref_youtube_vos import RunningNumbers

ANNOTATORS = 4
#: Pixel value of the unsupervised annotations that belongs to nobody.
VOID = 255


@dataclass
class RefDavis17(RunningNumbers):
    """Ref-DAVIS17: all four annotators, void pixels where the PNGs have them.

    The PNGs are preferred to ``mask_dict.pkl``, which has no void.
    """

    name: str = "ref_davis17"
    folders: list[str] = option(["ref-davis", "ref_davis17", "davis17", "refdavis"], transient=True)
    hidden: list[str] = option([])
    protocols: list[str] = option(["refdavis-anno"], transient=True)

    def attributes(self, video: str, key: str, raw: Mapping[str, Any], at: Place) -> dict[str, Any] | None:
        """The common attributes, ``annotator`` (0 to 3) and ``object_index`` (from 0)."""
        attrs = super().attributes(video, key, raw, at)
        if attrs is None:
            return None
        if not key.isdecimal():
            told = f"The expression id '{key}' is no number, so it names no annotator."
            hint = "Convert the set again: `refseg data prepare ref_davis17 --from …`."
            at.tell("bad expression id", told, hint)
            return None
        return {**attrs, "annotator": int(key) % ANNOTATORS, "object_index": int(key) // ANNOTATORS}

    def png_source(self, path: Path) -> MaskSource:
        """Label maps with void."""
        return LabelMapMasks(path, self.home, VOID, follow_links=self.follow_links)

    def convert(self, places: Sequence[Path], stage: Path, say: Callable[[str], None]) -> Path:
        """DAVIS and its texts in this layout; their archives may come in any number and order."""
        from refseg_bench.datasets.prepare import find, move

        # The semantics archive may hold frames too, but not the masks that are needed.
        needed = ("JPEGImages/480p", MASKS, "ImageSets")
        davis = find(places, *needed)
        if davis is None:
            # The parts of one folder, packed apart.
            together = stage / "DAVIS"
            together.mkdir()
            for place in places:
                part = find([place], *needed, all_of=False)
                if part is not None and part.is_relative_to(stage):
                    move(part, together)
            davis = find([together], *needed)
        texts = find(places, TEXTS[0][0])
        if davis is None or texts is None:
            lacking, archive = f"JPEGImages/480p with {MASKS}", "DAVIS-2017-Unsupervised-trainval-480p.zip"
            if davis is not None:
                lacking, archive = TEXTS[0][0], "davis_text_annotations.zip"
            hint = f"Add {archive} to --from."
            raise Damage("missing file", f"Nothing given holds {lacking}.", places[0], hint=hint)
        semantics = find(places, "davis_semantics.json")
        if semantics is not None and semantics != davis and not (davis / "davis_semantics.json").exists():
            # A folder of the user's own is not written to.
            if davis.is_relative_to(stage):
                shutil.copy2(semantics / "davis_semantics.json", davis / "davis_semantics.json")
            else:
                say("davis_semantics.json is not beside DAVIS: meta.json gets no categories")
        counts = convert(davis, texts, stage / "converted")
        say("converted " + ", ".join(f"{n} videos of {split}" for split, n in counts.items()))
        return stage / "converted"


# ── conversion ───────────────────────────────────────────────────────────────

#: Text files in the order of the annotator numbers, with their encodings.
TEXTS = (
    ("Davis17_annot1.txt", "utf-8-sig"),
    ("Davis17_annot1_full_video.txt", "utf-8-sig"),
    ("Davis17_annot2.txt", "latin-1"),
    ("Davis17_annot2_full_video.txt", "latin-1"),
)
#: Sequences that the texts spell differently from DAVIS.
REPAIRS = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
#: DAVIS' folder of masks.
MASKS = "Annotations_unsupervised/480p"
#: DAVIS' name of a split → the converted layout's.
SPLITS = {"train": "train", "val": "valid"}

_LINE = re.compile(r'(\S+)\s+(\d+)\s+"?(.*?)"?\s*')

Sentences = dict[str, dict[str, str]]


def read_sentences(path: Path, encoding: str) -> Sentences:
    """One text file: sequence → object id → sentence.

    Raises:
        Damage: another encoding, a line of another shape, an empty sentence, or an object twice.
    """
    out: Sentences = {}
    # Not splitlines: in Latin-1 it would also break at byte 0x85.
    for number, line in enumerate(read_text(path, (encoding,)).replace("\r", "").split("\n"), start=1):
        if not line.strip():
            continue
        at, found = Place(path, f"line {number}"), _LINE.fullmatch(line)
        if found is None:
            raise at.damage("malformed line", f'The line is not SEQUENCE ID "EXPRESSION": {line[:60]!r}.')
        sequence, object_id, sentence = found.groups()
        sequence = REPAIRS.get(sequence, sequence)
        if wordless(sentence):
            raise at.damage("empty expression", "The expression has no words.")
        if object_id in out.setdefault(sequence, {}):
            raise at.damage("duplicate id", f"Object {object_id} of '{sequence}' has two lines.")
        out[sequence][object_id] = sentence
    return out


def expressions(texts: Sequence[Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """The expressions of one sequence, numbered.

    Args:
        texts: object id → sentence, one mapping per annotator.

    Returns:
        ``{exp_id: {"exp", "obj_id"}}`` with ``exp_id = 4 · object index + annotator``.
    """
    out: dict[str, dict[str, str]] = {}
    for index, object_id in enumerate(sorted(texts[0])):
        for annotator, text in enumerate(texts):
            out[str(ANNOTATORS * index + annotator)] = {"exp": text[object_id], "obj_id": object_id}
    return out


def convert(davis: Path, texts: Path, out: Path) -> dict[str, int]:
    """Write the converted layout below ``out``; returns the number of videos per split.

    Frames and masks are linked where that is possible.

    Args:
        davis: the ``DAVIS`` folder (unsupervised trainval 480p, and semantics if wanted).
        texts: the folder of the four text files.
        out: where to write; must not hold the set yet.

    Raises:
        Damage: a file is missing or damaged, or a sequence has no text.
    """
    sentences = [read_sentences(texts / name, encoding) for name, encoding in TEXTS]
    semantics = davis / "davis_semantics.json"
    categories = read_json(semantics) if semantics.is_file() else {}
    counts: dict[str, int] = {}
    for davis_split, split in SPLITS.items():
        names = read_text(davis / "ImageSets" / "2017" / f"{davis_split}.txt").split()
        meta: dict[str, Any] = {}
        objects: dict[str, Any] = {}
        for sequence in names:
            mine = _of_sequence(sequence, sentences, texts)
            frames = _transfer(davis, sequence, out / split)
            meta[sequence] = {"expressions": expressions(mine), "frames": frames}
            objects[sequence] = {
                "objects": _objects(
                    out / split / "Annotations" / sequence, frames, categories.get(sequence, {})
                )
            }
            unknown = sorted(set(mine[0]) - set(objects[sequence]["objects"]))
            if unknown:
                raise Damage(
                    "object without a pixel",
                    f"No frame of '{sequence}' shows object {unknown[0]}, which the texts describe.",
                    davis / MASKS / sequence,
                    hint="Use DAVIS-2017-Unsupervised-trainval-480p.zip.",
                    allowed=objects[sequence]["objects"],
                )
        _write(out / "meta_expressions" / split / "meta_expressions.json", {"videos": meta})
        _write(out / split / "meta.json", {"videos": objects})
        counts[split] = len(names)
    return counts


def _of_sequence(sequence: str, sentences: Sequence[Sentences], texts: Path) -> list[dict[str, str]]:
    if bad_name(sequence) is not None or "/" in sequence:
        raise Damage("unsafe name", f"The sequence {sequence!r} is no plain name.", texts)
    hint = "Use the four files of davis_text_annotations.zip."
    for (name, _), mapping in zip(TEXTS, sentences, strict=True):
        if sequence not in mapping:
            told = f"Sequence '{sequence}' has no expression."
            raise Damage("missing entry", told, texts / name, hint=hint)
        if set(mapping[sequence]) != set(sentences[0][sequence]):
            told = (
                f"The files describe different objects of '{sequence}': {sorted(mapping[sequence])} here, "
                f"{sorted(sentences[0][sequence])} in {TEXTS[0][0]}."
            )
            raise Damage("missing entry", told, texts / name, hint=hint)
    return [mapping[sequence] for mapping in sentences]


def _transfer(davis: Path, sequence: str, split: Path) -> list[str]:
    source = davis / "JPEGImages" / "480p" / sequence
    frames = sorted(p.stem for p in source.glob("*.jpg") if not p.name.startswith("."))
    if not frames:
        raise Damage("missing video", f"Sequence '{sequence}' has no frames.", source)
    for kind, origin, suffix in (
        ("JPEGImages", source, ".jpg"),
        ("Annotations", davis / MASKS / sequence, ".png"),
    ):
        target = split / kind / sequence
        target.mkdir(parents=True, exist_ok=True)
        for frame in frames:
            path = origin / f"{frame}{suffix}"
            if not path.is_file():
                what = "mask" if suffix == ".png" else "frame"
                raise Damage(f"missing {what}", "A file is missing.", path)
            link_or_copy(path, target / path.name)
    return frames


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file where the disk allows it, else a copy."""
    if target.exists():
        target.unlink()
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _objects(folder: Path, frames: Sequence[str], categories: Mapping[str, Any]) -> dict[str, Any]:
    """``meta.json``'s objects: category, and the frames in which each shows."""
    seen: dict[int, list[str]] = {}
    for frame in frames:
        for label in np.unique(read_labels(folder / f"{frame}.png")).tolist():
            if label not in (0, VOID):
                seen.setdefault(label, []).append(frame)
    return {
        str(label): {"category": categories.get(str(label), ""), "frames": seen[label]}
        for label in sorted(seen)
    }


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
