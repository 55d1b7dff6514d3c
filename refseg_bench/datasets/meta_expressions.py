"""The JSON shape that the public video sets share: videos → frames and expressions, masks beside.

``{"videos": {video: {"frames": [name], "expressions": {id: {"exp": text, "obj_id", "anno_id"}}}}}``.
MeViS, and any set in its layout, is this class and a YAML; Ref-YouTube-VOS, Ref-DAVIS17, ReVOS
and ReasonVOS change a rule each in their own modules.

Orders are the files' own (protocols average in that order); nothing here depends on them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refseg_bench.config.schema import knob
from refseg_bench.datasets.damage import UNPACK_AGAIN, Damage, Report, refuse
from refseg_bench.datasets.files import (
    bad_name,
    cache_root,
    check_link,
    data_root,
    field_of,
    read_json,
    rename_that_helps,
    safe_join,
    want,
)
from refseg_bench.datasets.masks import (
    LabelMapMasks,
    MaskSource,
    RunLengthMasks,
    Wanted,
    open_mask_dict,
)
from refseg_bench.errors import ConfigError, DataError
from refseg_bench.files.images import image_size
from refseg_bench.files.resources import resource
from refseg_bench.types import Clip, Expression, Target, sample_id

#: Fields of an expression that have a place of their own; all others become attributes as they are.
_OWN = ("exp", "obj_id", "anno_id")
#: Names that need no closer look.
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,200}")
#: What some releases write for "no object".
_NOBODY = ("-1",)


def find_base(name: str, root: Path | None, folders: Sequence[str], landmarks: Sequence[str]) -> Path | None:
    """The folder a data set lies in: the first that holds one of its landmark files.

    Args:
        name: the data set's name, also a folder tried.
        root: what the user gave; ``None`` looks in ``$REFSEG_DATA`` (or ``data``) and then among
            the samples that ship with the package.
        folders: names its archives unpack to, tried in any case and with any of ``-``, ``_`` and space.
        landmarks: relative paths of which one must be there.
    """
    for base in _bases(name, root, folders):
        if any(os.path.exists(base / landmark) for landmark in landmarks):
            return base
    return None


def _bases(name: str, root: Path | None, folders: Sequence[str]) -> Iterator[Path]:
    for place in [root] if root is not None else [data_root(), resource("datasets")]:
        homes = [place] if root is not None else list(_spelled(place, name))
        yield from homes
        for home in dict.fromkeys((*homes, place)):
            for folder in folders:
                yield from _spelled(home, folder)


def _spelled(place: Path, folder: str) -> Iterator[Path]:
    """The folder as it is named, and as others write such a name."""
    yield place / folder
    plain = _plainly(folder)
    with contextlib.suppress(OSError):
        for entry in sorted(os.listdir(place)):
            if entry != folder and _plainly(entry) == plain:
                yield place / entry


def _plainly(name: str) -> str:
    return re.sub("[-_ ]", "", name.lower())


def splits_there(name: str, root: Path | None, folders: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The splits a data set has on this disk.

    Args:
        name: the data set's name.
        root: what the user gave, as in :func:`find_base`.
        folders: names its archives unpack to.
        patterns: landmarks with ``{split}`` in its place.
    """
    found = set()
    for base in _bases(name, root, folders):
        for pattern in patterns:
            head, mark, tail = pattern.partition("{split}")
            if mark and "{" not in head + tail and os.path.isdir(base):
                full = re.compile(re.escape(head) + r"([^/]+)" + re.escape(tail))
                names = (path.relative_to(base).as_posix() for path in base.glob(f"{head}*{tail}"))
                found |= {match[1] for match in map(full.fullmatch, names) if match}
    return sorted(found)


def not_found(name: str, root: Path | None, landmarks: Sequence[str]) -> DataError:
    """The error of a data set that isn't where it is looked for; says where it is, if it is near."""
    place = root or data_root() / name
    holds = ""
    try:
        inside = sorted(entry.name for entry in os.scandir(place) if not entry.name.startswith("."))
        holds = f" The folder holds {', '.join(inside[:8]) + (' …' if len(inside) > 8 else '') or 'nothing'}."
    except FileNotFoundError:
        inside = []
        holds = " There is no such folder." if root is not None else ""
    except OSError as error:
        inside = []
        holds = f" It can't be read as a folder ({error.strerror})."
    cure = (
        f"Get it as datasets/{name}/README.md says, then set dataset.root=FOLDER (`refseg score`: "
        "--root FOLDER) or put it under $REFSEG_DATA; `refseg data list` shows what is found where."
    )
    near = [place / one for one in inside[:1000]] + [place.parent, place.parent.parent]
    for folder in near:
        if any(os.path.exists(folder / landmark) for landmark in landmarks):
            cure = f"It lies in {folder}: set {shlex.quote(f'dataset.root={folder}')} (elsewhere: --root)."
            break
    else:
        cure = next(filter(None, (rename_that_helps(place / landmark) for landmark in landmarks)), cure)
    return DataError(
        f"The data set '{name}' is not here: none of its files {', '.join(landmarks)} exists.{holds}",
        where=place,
        cure=cure,
    )


@dataclass
class MetaExpressions:
    """A video set in MeViS' layout.

    Paths are relative to the set's folder; ``{split}`` stands for the split. Where several are
    given, the first that exists is used.

    Attributes:
        name: name of the set.
        split: name of the split.
        root: the set's folder; ``None`` = ``$REFSEG_DATA/NAME``, ``data/NAME`` or the shipped sample.
        cache: folder of the indices; ``None`` = ``$REFSEG_CACHE`` or ``cache``.
        folders: folder names its archives unpack to, looked for below ``root`` too.
        meta: the expression file.
        frames: the folder of the videos' folders.
        masks: run-length dictionary (``.json``, ``.pkl``) or folder of PNGs; the order is the preference.
        hidden: splits whose masks only an evaluation server has.
        videos: only these videos; empty = all.
        protocols: ids a run is scored under unless it says otherwise.
        every_frame_listed: a frame file that the expression file doesn't list is a problem to
            ``verify`` (some releases ship more frames than they use).
        follow_links: read symbolic links that lead out of ``root``.
    """

    name: str = "mevis"
    split: str = "valid_u"
    root: Path | None = knob(None, transient=True)
    cache: Path | None = knob(None, transient=True)
    folders: list[str] = knob(factory=lambda: ["mevis", "MeViS", "MeViS_release"], transient=True)
    meta: list[str] = field(default_factory=lambda: ["{split}/meta_expressions.json"])
    frames: list[str] = field(default_factory=lambda: ["{split}/JPEGImages", "{split}"])
    masks: list[str] = field(default_factory=lambda: ["{split}/mask_dict.json", "{split}/mask_dict.pkl"])
    hidden: list[str] = field(default_factory=lambda: ["valid", "test"])
    videos: list[str] = field(default_factory=list)
    protocols: list[str] = knob(factory=lambda: ["rvos-expr"], transient=True)
    every_frame_listed: bool = knob(True, transient=True)
    follow_links: bool = knob(False, transient=True)

    def __post_init__(self) -> None:
        # Papers say "val", the folders say "valid".
        if self.split == "val":
            self.split = "valid"

    _state: _State | None = field(default=None, init=False, repr=False, compare=False)

    # ── the Dataset interface ────────────────────────────────────────────────

    def clips(self) -> Sequence[Clip]:
        """All clips of the split, in the order of the expression file.

        Raises:
            DataError: the set is not found, or its files are damaged.
        """
        return self._loaded().clips

    def expressions(self, clip: Clip) -> Sequence[Expression]:
        """The expressions of a clip, in the order of the expression file.

        Raises:
            DataError: an expression is damaged.
        """
        return self.expressions_of(clip.id, refuse)

    def target(self, clip: Clip, expression: Expression) -> Target | None:
        """The annotated objects of an expression; ``None`` where a server keeps the masks.

        Raises:
            DataError: the masks are missing or damaged.
        """
        return self.target_of(clip, expression, refuse)

    def no_truth(self, clip: Clip, expression: Expression) -> tuple[str, str]:
        """Why :meth:`target` has none for a sample of a hidden split, and what helps."""
        state = self._loaded()
        source, sample = state.masks(self), sample_id(clip.id, expression.id)
        zipped = "`refseg submission RUN` (or --predictions) makes the zip for the server, where there is one"
        if source is not None and (not isinstance(source, LabelMapMasks) or any(source.files(clip))):
            return (
                f"There are masks in {source.path}, but {state.file} doesn't say which of them '{sample}' "
                "means: it has no 'obj_id'.",
                f"Use the expression file that was released with the masks (datasets/{self.name}/README.md); "
                f"{zipped}.",
            )
        return (
            f"The masks of '{sample}' are not here: split '{self.split}' came out without.",
            f"Where they were released later, as datasets/{self.name}/README.md says, put them at "
            f"{state.base / self.fill(self.masks[0])}, with an expression file that has 'obj_id'; {zipped}.",
        )

    def annotation_files(self, clip: Clip) -> list[Path | None] | None:
        """The id map of every frame (``None`` where it is missing), where the set keeps such maps."""
        source = self._loaded().masks(self)
        return source.files(clip) if isinstance(source, LabelMapMasks) else None

    def encodings(self) -> Counter[str]:
        """How the mask files read since the last call are stored, in words → number of files."""
        source = self._loaded().masks(self)
        if source is None:
            return Counter()
        found, source.encodings = source.encodings, Counter()
        return found

    # ── the same with every problem told (for ``refseg data verify``) ────────

    def base(self) -> Path:
        """The set's folder.

        Raises:
            DataError: it is not found.
        """
        landmarks = [self.fill(path) for path in self.meta]
        found = find_base(self.name, self.root, self.folders, landmarks)
        if found is None:
            splits = splits_there(self.name, self.root, self.folders, self.meta)
            if splits:
                raise DataError(
                    f"'{self.name}' has no split '{self.split}' here.",
                    where=self.root or self.name,
                    allowed=splits,
                    cure="Set dataset.split (`refseg score`: --split) to one of them.",
                )
            raise not_found(self.name, self.root, landmarks)
        return found

    def fill(self, path: str) -> str:
        """A layout path of this split."""
        return path.replace("{split}", self.split)

    def meta_file(self) -> Path:
        """The expression file."""
        base = self.base()
        return next(base / self.fill(p) for p in self.meta if (base / self.fill(p)).exists())

    def read(self, report: Report) -> _State:
        """Everything but expressions and masks; damaged videos go to ``report`` and are left out."""
        file = self.meta_file()
        videos = self.read_videos(file, report)
        if self.videos:
            unknown = sorted(set(self.videos) - set(videos))
            if unknown:
                raise ConfigError(
                    f"dataset.videos names '{unknown[0]}', which split '{self.split}' doesn't hold.",
                    where=file,
                )
            videos = {video: videos[video] for video in videos if video in set(self.videos)}
        base = self.base()
        frames = self._frames_folder(base, videos)
        if frames is None:
            return _State(base, file, videos, self._clips_without_frames(base, file, videos, report))
        clips = [
            clip
            for video, record in videos.items()
            if (clip := self._clip(video, record, frames, base, file, report)) is not None
        ]
        return _State(base, file, videos, clips)

    def read_videos(self, file: Path, report: Report) -> dict[str, dict[str, Any]]:
        """The ``videos`` object of the expression file, as the split has it."""
        whole = read_json(file)
        want(whole, dict, file=file, place="the file")
        return dict(field_of(whole, "videos", dict, file=file, place="the file"))

    def expressions_of(self, video: str, report: Report) -> list[Expression]:
        """The readable expressions of a video."""
        state = self._loaded()
        record = state.videos[video]
        place = f"videos.{video}"
        found = field_of(record, "expressions", dict, file=state.file, place=place, report=report)
        out: list[Expression] = []
        for key, raw in (found or {}).items():
            here = f"{place}.expressions.{key}"
            if not want(raw, dict, file=state.file, place=here, report=report):
                continue
            if bad_name(key) is not None or "/" in key:
                report(
                    Damage(
                        "unsafe name",
                        f"The expression id '{key}' can't name a folder.",
                        file=state.file,
                        place=here,
                        cure="Restore the original file: ids are plain names without slashes.",
                    )
                )
                continue
            text = field_of(raw, "exp", str, file=state.file, place=here, report=report)
            if text is None:
                continue
            if not text.strip():
                report(
                    Damage(
                        "empty expression",
                        "The expression has no words.",
                        file=state.file,
                        place=f"{here}.exp",
                        cure="Restore the original file, or take the entry out.",
                    )
                )
                continue
            attrs = self.attributes(video, key, raw, here, report)
            if attrs is not None:
                out.append(Expression(key, text, attrs))
        if found is not None and not found:
            report(
                Damage(
                    "video without expressions",
                    f"Video '{video}' has no expression.",
                    file=state.file,
                    place=place,
                    cure=UNPACK_AGAIN,
                )
            )
        return out

    def attributes(
        self, video: str, key: str, raw: Mapping[str, Any], place: str, report: Report
    ) -> dict[str, Any] | None:
        """Attributes of one expression; ``None`` after reporting a problem.

        ``obj_ids`` and ``anno_ids`` are lists of text whatever the file spells; they are missing
        where the split's masks are hidden. All other fields are kept as they are.
        """
        attrs: dict[str, Any] = {k: v for k, v in raw.items() if k not in _OWN}
        for field_name, attr in (("obj_id", "obj_ids"), ("anno_id", "anno_ids")):
            if field_name not in raw:
                continue
            ids = id_list(raw[field_name])
            if ids is None:
                report(
                    Damage(
                        "bad object id",
                        f"'{field_name}' is {raw[field_name]!r}, not an id or a list of ids.",
                        file=self._loaded().file,
                        place=f"{place}.{field_name}",
                        cure="Restore the original file.",
                    )
                )
                return None
            attrs[attr] = ids
        return attrs

    def wanted(self, expression: Expression) -> list[Wanted] | None:
        """The objects an expression means; ``None`` if the file doesn't say."""
        objects = expression.attrs.get("obj_ids")
        annos = expression.attrs.get("anno_ids")
        if annos is None and objects is None:
            return None
        names: list[str] = annos if annos is not None else objects or []
        if objects is None or len(objects) != len(names):
            objects = names
        return [Wanted(o, a) for o, a in zip(objects, names, strict=True)]

    def target_of(self, clip: Clip, expression: Expression, report: Report) -> Target | None:
        """The target of a sample, with damaged masks told to ``report`` and left empty."""
        if self.split in self.hidden and self._loaded().masks(self) is None:
            return None
        wanted = self.wanted(expression)
        if wanted is None:
            if self.split in self.hidden:
                return None
            report(
                Damage(
                    "missing field",
                    "The expression names no object ('obj_id', 'anno_id').",
                    file=self._loaded().file,
                    place=f"videos.{clip.id}.expressions.{expression.id}",
                    cure="Use the expression file of a split with public masks.",
                )
            )
            return None
        source = self._loaded().masks(self)
        if source is None:
            candidates = [self.fill(path) for path in self.masks]
            report(
                Damage(
                    "missing file",
                    f"Split '{self.split}' of '{self.name}' has public masks, but there is none of "
                    f"{', '.join(candidates)}.",
                    file=self._loaded().base / candidates[0],
                    cure=next(
                        filter(None, (rename_that_helps(self._loaded().base / c) for c in candidates)),
                        UNPACK_AGAIN,
                    ),
                )
            )
            return None
        if not isinstance(source, LabelMapMasks) and "anno_ids" not in expression.attrs:
            report(
                Damage(
                    "missing field",
                    f"The expression has no 'anno_id', by which {source.path.name} names its masks.",
                    file=self._loaded().file,
                    place=f"videos.{clip.id}.expressions.{expression.id}",
                    cure="Use the expression file and the masks of one release.",
                )
            )
            return None
        tracks = source.tracks(clip, wanted, report)
        return Target(
            clip.size,
            len(clip),
            tuple(tracks),
            tuple(w.object_id for w in wanted),
            void=source.void(clip, report),
        )

    def survey(self, report: Report) -> Iterator[tuple[Clip | None, list[Expression]]]:
        """Read everything but the masks, with every problem told.

        Yields:
            Per video its clip (``None`` if it can't be made) and its readable expressions.
        """
        try:
            self._state = self.read(report)
        except Damage as damage:
            report(damage)
            self._mask_file(report)
            return
        self._mask_file(report)
        clips = {clip.id: clip for clip in self._state.clips}
        for video, record in self._state.videos.items():
            yield clips.get(video), self.expressions_of(video, report) if isinstance(record, dict) else []

    def _mask_file(self, report: Report) -> None:
        """Open the masks, so that a torn mask file is told although nothing asks for it."""
        try:
            source = self.mask_source(self.base())
        except Damage as damage:
            report(damage)
            source = None
        if self._state is not None:
            self._state.keep(source)

    def check_targets(self, clip: Clip, expressions: Sequence[Expression], report: Report) -> None:
        """Read every mask the expressions mean, each once."""
        source = self._loaded().masks(self)
        if source is None:
            if expressions:
                self.target_of(clip, expressions[0], report)
            return
        seen: dict[Wanted, None] = {}
        for expression in expressions:
            wanted = self.wanted(expression)
            if wanted is None or not (isinstance(source, LabelMapMasks) or "anno_ids" in expression.attrs):
                self.target_of(clip, expression, report)
                continue
            seen.update(dict.fromkeys(wanted or ()))
        source.tracks(clip, list(seen), report)
        if isinstance(source, LabelMapMasks):
            for path in source.extra(clip):
                report(
                    Damage(
                        "extra mask",
                        f"The mask '{path.name}' belongs to no frame of video '{clip.id}'.",
                        file=path,
                    )
                )

    def mask_source(self, base: Path) -> MaskSource | None:
        """The first mask source that exists."""
        for path in (base / self.fill(p) for p in self.masks):
            if path.suffix in (".json", ".pkl"):
                if path.is_file():
                    return RunLengthMasks(path, open_mask_dict(path, cache_root(self.cache)))
            elif path.is_dir():
                return self.png_source(path, base)
        return None

    def png_source(self, path: Path, base: Path) -> MaskSource:
        """How this set's folders of PNGs are read."""
        return LabelMapMasks(path, base, follow_links=self.follow_links)

    # ── parts ────────────────────────────────────────────────────────────────

    def _loaded(self) -> _State:
        if self._state is None:
            self._state = self.read(refuse)
        return self._state

    def _frames_folder(self, base: Path, videos: Mapping[str, Any]) -> Path | None:
        """The first frames folder that holds a video of the split (copies drop ``JPEGImages/``).

        ``None`` = there is no frames folder at all: a copy of the annotations, good for scoring.
        """
        folders = [base / self.fill(p) for p in self.frames]
        for folder in folders:
            if any(bad_name(video) is None and (folder / video).is_dir() for video in videos):
                return folder
        return folders[0] if folders[0].is_dir() else None

    def _clips_without_frames(
        self, base: Path, file: Path, videos: Mapping[str, Any], report: Report
    ) -> list[Clip]:
        """Clips whose frames are named but not there, with sizes from the file or the masks.

        Raises:
            Damage: nothing says how large a video is.
        """
        frames = base / self.fill(self.frames[0])
        masks = self.mask_source(base)
        clips: list[Clip] = []
        for video, record in videos.items():
            names = self._names(video, record, frames, file, report)
            if names is None:
                continue
            folder = frames / video
            paths = tuple(Path(f"{folder}/{name}.jpg") for name in names)
            size = self._size(record, (), file, f"videos.{video}", report) or self._mask_size(
                masks, record, folder, names
            )
            if size is None:
                report(Damage("missing video", f"The folder of video '{video}' is missing.", file=folder))
            else:
                clips.append(Clip(video, paths, tuple(names), size, self.clip_attributes(record)))
        return clips

    def _mask_size(
        self, masks: MaskSource | None, record: Mapping[str, Any], folder: Path, names: Sequence[str]
    ) -> tuple[int, int] | None:
        if isinstance(masks, LabelMapMasks):
            with contextlib.suppress(DataError):
                return image_size(masks.path / folder.name / f"{names[0]}.png")
        if isinstance(masks, RunLengthMasks):
            expressions = record.get("expressions")
            for raw in expressions.values() if isinstance(expressions, dict) else ():
                for anno_id in id_list(raw.get("anno_id", [])) or () if isinstance(raw, dict) else ():
                    if (size := masks.size(anno_id)) is not None:
                        return size
        return None

    def _clip(
        self, video: str, record: Any, frames: Path, base: Path, file: Path, report: Report
    ) -> Clip | None:
        names = self._names(video, record, frames, file, report)
        if names is None:
            return None
        paths = list(self._frame_paths(frames / video, names, (base, frames), report))
        size = self._size(record, paths, file, f"videos.{video}", report)
        if size is None:
            return None
        return Clip(video, tuple(paths), tuple(names), size, self.clip_attributes(record))

    def _names(self, video: str, record: Any, frames: Path, file: Path, report: Report) -> list[str] | None:
        """A video's frame names, checked; ``None`` after reporting that there are none to trust."""
        place = f"videos.{video}"
        if not want(record, dict, file=file, place=place, report=report):
            return None
        names: list[str] | None = field_of(record, "frames", list, file=file, place=place, report=report)
        if names is None:
            return None
        try:
            folder = safe_join(frames, video, file=file, place=place)
            if not all(isinstance(name, str) and _PLAIN.fullmatch(name) for name in names):
                for index, name in enumerate(names):
                    safe_join(folder, name, file=file, place=f"{place}.frames[{index}]")
        except Damage as damage:
            report(damage)
            return None
        if len(set(names)) != len(names) or not names:
            repeated = next((n for i, n in enumerate(names) if n in names[:i]), None)
            report(
                Damage(
                    "duplicate id" if names else "video without frames",
                    f"Frame '{repeated}' is listed twice." if names else f"Video '{video}' lists no frame.",
                    file=file,
                    place=f"{place}.frames",
                    cure="Restore the original file.",
                )
            )
            names = list(dict.fromkeys(names))
        return names or None

    def clip_attributes(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Facts of a video worth keeping: all scalars of its record."""
        return {
            k: v
            for k, v in record.items()
            if isinstance(v, (str, int, float)) and k not in ("height", "width")
        }

    def _frame_paths(
        self, folder: Path, names: Sequence[str], homes: tuple[Path, ...], report: Report
    ) -> Iterator[Path]:
        """One file per frame; the folder is listed once instead of asking for each file.

        A file that is reported as missing or as a link keeps its place, so that the masks of the
        other frames can be checked in the same pass.
        """
        if not check_link(folder, *homes, follow=self.follow_links, report=report):
            return
        try:
            with os.scandir(folder) as entries:
                present = {entry.name: entry.is_symlink() for entry in entries}
        except OSError:
            report(Damage("missing video", f"The folder of video '{folder.name}' is missing.", file=folder))
            return
        for name in names:
            file = f"{name}.jpg"
            if file not in present:
                endings = (".png", ".jpeg", ".JPG", ".PNG", ".JPEG")
                file = next((f"{name}{e}" for e in endings if f"{name}{e}" in present), "")
            if not file:
                file = f"{name}.jpg"
                report(Damage("missing frame", f"Frame '{name}' is missing.", file=folder / file))
            elif present[file]:
                check_link(folder / file, *homes, follow=self.follow_links, report=report)
            # One parse of a joined text: a large split has 10^5 frames, and `folder / file` parses twice.
            yield Path(f"{folder}/{file}")

    def _size(
        self, record: Mapping[str, Any], paths: Sequence[Path], file: Path, place: str, report: Report
    ) -> tuple[int, int] | None:
        """The video's (height, width): what the file says, else the size of the first readable frame."""
        if "height" in record and "width" in record:
            height = field_of(record, "height", int, file=file, place=place, report=report)
            width = field_of(record, "width", int, file=file, place=place, report=report)
            if height is None or width is None:
                return None
            if 0 < height <= 65535 and 0 < width <= 65535:
                return height, width
            report(
                Damage(
                    "bad size",
                    f"The video is said to be {height} x {width} pixels.",
                    file=file,
                    place=place,
                    cure="Restore the original file.",
                )
            )
            return None
        for path in paths:
            if os.path.exists(path):
                try:
                    return image_size(path)
                except DataError as error:
                    report(Damage("unreadable frame", error.what, file=path))
        if paths:
            report(Damage("missing frame", "No frame of the video can be read.", file=paths[0].parent))
        return None


@dataclass
class _State:
    """What has been read of a split."""

    base: Path
    file: Path
    videos: dict[str, dict[str, Any]]
    clips: list[Clip]
    _masks: MaskSource | None = None
    _looked: bool = False

    def masks(self, owner: MetaExpressions) -> MaskSource | None:
        if not self._looked:
            self._masks = owner.mask_source(self.base)
            self._looked = True
        return self._masks

    def keep(self, masks: MaskSource | None) -> None:
        """Set the source, found or not."""
        self._masks, self._looked = masks, True


def id_list(value: Any) -> list[str] | None:
    """Object ids as texts: ``"1"``, ``1``, ``[1, 2]``, ``["1"]``; ``-1`` means nobody.

    Returns:
        The ids, or ``None`` if the value is something else.
    """
    items = value if isinstance(value, list) else [value]
    if not all(
        isinstance(item, (str, int)) and not isinstance(item, bool) and str(item).strip() for item in items
    ):
        return None
    return [text for item in items if (text := str(item)) not in _NOBODY]
