"""Make Ref-DAVIS17 from DAVIS 2017 and the four text files of its expressions.

The texts come in two encodings and spell three sequences wrongly; both are put right here.
Ref-DAVIS17's numbers come from the order of the lines: objects sorted by id *as text*, four
sentences each.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refseg_bench.datasets.damage import Damage
from refseg_bench.datasets.files import bad_name, read_json, read_text
from refseg_bench.datasets.masks import read_labels
from refseg_bench.datasets.ref_davis17 import ANNOTATORS, VOID

#: Text files in the order of the annotator numbers, with their encodings.
TEXTS = (
    ("Davis17_annot1.txt", "utf-8-sig"),
    ("Davis17_annot1_full_video.txt", "utf-8-sig"),
    ("Davis17_annot2.txt", "latin-1"),
    ("Davis17_annot2_full_video.txt", "latin-1"),
)
#: Sequences that the texts spell differently from DAVIS.
REPAIRS = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
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
        place = f"line {number}"
        found = _LINE.fullmatch(line)
        if found is None:
            raise Damage(
                "malformed line",
                f'The line is not SEQUENCE ID "EXPRESSION": {line[:60]!r}.',
                file=path,
                place=place,
                cure="Restore the original file.",
            )
        sequence, object_id, sentence = found.groups()
        sequence = REPAIRS.get(sequence, sequence)
        if not sentence.strip():
            raise Damage(
                "empty expression",
                "The expression has no words.",
                file=path,
                place=place,
                cure="Restore the file.",
            )
        if object_id in out.setdefault(sequence, {}):
            raise Damage(
                "duplicate id",
                f"Object {object_id} of '{sequence}' has two lines.",
                file=path,
                place=place,
                cure="Restore the original file.",
            )
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
    """Write the converted layout below ``out``; frames and masks are linked where that is possible.

    Args:
        davis: the ``DAVIS`` folder (unsupervised trainval 480p, and semantics if wanted).
        texts: the folder of the four text files.
        out: where to write; must not hold the set yet.

    Returns:
        Number of videos per split.

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
                    file=davis / "Annotations_unsupervised" / "480p" / sequence,
                    allowed=objects[sequence]["objects"],
                    cure="Use DAVIS-2017-Unsupervised-trainval-480p.zip.",
                )
        _write(out / "meta_expressions" / split / "meta_expressions.json", {"videos": meta})
        _write(out / split / "meta.json", {"videos": objects})
        counts[split] = len(names)
    return counts


def _of_sequence(sequence: str, sentences: Sequence[Sentences], texts: Path) -> list[dict[str, str]]:
    if bad_name(sequence) is not None or "/" in sequence:
        raise Damage(
            "unsafe name",
            f"The sequence {sequence!r} is no plain name.",
            file=texts,
            cure="Don't use this file.",
        )
    for (name, _), mapping in zip(TEXTS, sentences, strict=True):
        if sequence not in mapping:
            raise Damage(
                "missing entry",
                f"Sequence '{sequence}' has no expression.",
                file=texts / name,
                cure="Use the four files of davis_text_annotations.zip.",
            )
        if set(mapping[sequence]) != set(sentences[0][sequence]):
            raise Damage(
                "missing entry",
                f"The files describe different objects of '{sequence}': {sorted(mapping[sequence])} here, "
                f"{sorted(sentences[0][sequence])} in {TEXTS[0][0]}.",
                file=texts / name,
                cure="Use the four files of davis_text_annotations.zip.",
            )
    return [mapping[sequence] for mapping in sentences]


def _transfer(davis: Path, sequence: str, split: Path) -> list[str]:
    source = davis / "JPEGImages" / "480p" / sequence
    frames = sorted(p.stem for p in source.glob("*.jpg") if not p.name.startswith("."))
    if not frames:
        raise Damage("missing video", f"Sequence '{sequence}' has no frames.", file=source)
    for kind, origin, suffix in (
        ("JPEGImages", source, ".jpg"),
        ("Annotations", davis / "Annotations_unsupervised" / "480p" / sequence, ".png"),
    ):
        target = split / kind / sequence
        target.mkdir(parents=True, exist_ok=True)
        for frame in frames:
            path = origin / f"{frame}{suffix}"
            if not path.is_file():
                raise Damage(
                    "missing mask" if suffix == ".png" else "missing frame", "A file is missing.", file=path
                )
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
