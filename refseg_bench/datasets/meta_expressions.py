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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refseg_bench.config.schema import option
from refseg_bench.datasets.base import Dataset
from refseg_bench.datasets.files import (
    bad_name,
    cache_root,
    check_link,
    find_base,
    read_json,
    rename_that_helps,
    safe_join,
)
from refseg_bench.datasets.issues import Damage, Place, Report, refuse
from refseg_bench.datasets.masks import (
    MOST_SIDE,
    LabelMapMasks,
    MaskSource,
    RunLengthMasks,
    Wanted,
    open_mask_dict,
    png_names,
    report_extra,
)
from refseg_bench.errors import ConfigError, DataError
from refseg_bench.files.images import image_size
from refseg_bench.types import Clip, Expression, Target, sample_id

#: Fields of an expression that have a place of their own; all others become attributes as they are.
_OWN = ("exp", "obj_id", "anno_id")
#: Names that need no closer look.
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,200}")
#: What some releases write for "no object".
_NOBODY = ("-1",)


@dataclass
class MetaExpressions(Dataset):
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
    root: Path | None = option(None, transient=True)
    cache: Path | None = option(None, transient=True)
    folders: list[str] = option(factory=lambda: ["mevis", "MeViS", "MeViS_release"], transient=True)
    meta: list[str] = field(default_factory=lambda: ["{split}/meta_expressions.json"])
    frames: list[str] = field(default_factory=lambda: ["{split}/JPEGImages", "{split}"])
    masks: list[str] = field(default_factory=lambda: ["{split}/mask_dict.json", "{split}/mask_dict.pkl"])
    hidden: list[str] = field(default_factory=lambda: ["valid", "test"])
    videos: list[str] = field(default_factory=list)
    protocols: list[str] = option(factory=lambda: ["rvos-expr"], transient=True)
    every_frame_listed: bool = option(True, transient=True)
    follow_links: bool = option(False, transient=True)

    def __post_init__(self) -> None:
        # Papers say "val", the folders say "valid".
        if self.split == "val":
            self.split = "valid"

    _state: _State | None = field(default=None, init=False, repr=False, compare=False)
    #: The mask source, or ``None`` in its place, once it was looked for.
    _sources: list[MaskSource | None] = field(default_factory=list, init=False, repr=False, compare=False)

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

    def target(self, clip: Clip, expression: Expression, report: Report = refuse) -> Target | None:
        """The annotated objects of an expression; ``None`` where a server keeps the masks.

        Raises:
            DataError: the masks are missing or damaged; where ``report`` takes that, they are left empty.
        """
        state = self._loaded()
        source, wanted = self._masks(), self.wanted(expression)
        if self.split in self.hidden and (source is None or wanted is None):
            return None
        at = Place(state.file, f"videos.{clip.id}.expressions.{expression.id}", report)
        if wanted is None:
            hint = "Use the expression file of a split with public masks."
            at.tell("missing field", "The expression names no object ('obj_id', 'anno_id').", hint)
            return None
        if source is None:
            paths = [self.fill(path) for path in self.masks]
            told = f"Split '{self.split}' of '{self.name}' has public masks, but there is none of "
            hints = (rename_that_helps(state.base / path) for path in paths)
            rename = next(filter(None, hints), None)
            report(Damage("missing file", f"{told}{', '.join(paths)}.", state.base / paths[0], hint=rename))
            return None
        if not isinstance(source, LabelMapMasks) and "anno_ids" not in expression.attrs:
            told = f"The expression has no 'anno_id', by which {source.path.name} names its masks."
            at.tell("missing field", told, "Use the expression file and the masks of one release.")
            return None
        tracks = source.tracks(clip, wanted, report)
        ids = tuple(w.object_id for w in wanted)
        return Target(clip.size, len(clip), tuple(tracks), ids, void=source.void(clip, report))

    def no_truth(self, clip: Clip, expression: Expression) -> tuple[str, str]:
        """Why :meth:`target` has none for a sample of a hidden split, and what helps."""
        state = self._loaded()
        source, sample = self._masks(), sample_id(clip.id, expression.id)
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
        source = self._masks()
        return source.files(clip) if isinstance(source, LabelMapMasks) else None

    def encodings(self) -> Counter[str]:
        """How the mask files read since the last call are stored, in words → number of files."""
        source = self._masks()
        if source is None:
            return Counter()
        found, source.encodings = source.encodings, Counter()
        return found

    # ── the same with every problem told (for ``refseg data verify``) ────────

    def survey(self, report: Report) -> Iterator[tuple[Clip | None, list[Expression]]]:
        """Read everything but the masks, with every problem told.

        Yields:
            Per video its clip (``None`` if it can't be made) and its readable expressions.
        """
        self._state = None
        try:
            self._state = self.read(report)
        except Damage as damage:
            report(damage)
        # A torn mask file is told although nothing asks for it.
        self._sources = [None]
        try:
            self._sources = [self.mask_source(self.base())]
        except Damage as damage:
            report(damage)
        if self._state is None:
            return
        clips = {clip.id: clip for clip in self._state.clips}
        for video, record in self._state.videos.items():
            yield clips.get(video), self.expressions_of(video, report) if isinstance(record, dict) else []

    def check_targets(self, clip: Clip, expressions: Sequence[Expression], report: Report) -> None:
        """Read every mask the expressions mean, each once."""
        source = self._masks()
        if source is None:
            if expressions:
                self.target(clip, expressions[0], report)
            return
        seen: dict[Wanted, None] = {}
        for expression in expressions:
            wanted = self.wanted(expression)
            if wanted is None or not (isinstance(source, LabelMapMasks) or "anno_ids" in expression.attrs):
                self.target(clip, expression, report)
                continue
            seen.update(dict.fromkeys(wanted))
        source.tracks(clip, list(seen), report)
        if isinstance(source, LabelMapMasks):
            folder = source.path / clip.id
            report_extra(folder, png_names(folder), clip, report)

    def expressions_of(self, video: str, report: Report) -> list[Expression]:
        """The readable expressions of a video."""
        state = self._loaded()
        at = Place(state.file, f"videos.{video}", report)
        found = at.field(state.videos[video], "expressions", dict)
        if found is not None and not found:
            at.tell("video without expressions", f"Video '{video}' has no expression.")
        out: list[Expression] = []
        for key, raw in (found or {}).items():
            here = at.at("expressions").at(key or "''")
            if not here.holds(raw, dict):
                continue
            if bad_name(key) is not None or "/" in key:
                hint = "Restore the original file: ids are plain names without slashes."
                here.tell("unsafe name", f"The expression id '{key}' can't name a folder.", hint)
                continue
            text = here.field(raw, "exp", str)
            if text is None:
                continue
            if not text.strip():
                here.at("exp").tell("empty expression", "The expression has no words.")
                continue
            attrs = self.attributes(video, key, raw, here)
            if attrs is not None:
                out.append(Expression(key, text, attrs))
        return out

    def attributes(self, video: str, key: str, raw: Mapping[str, Any], at: Place) -> dict[str, Any] | None:
        """Attributes of one expression; ``None`` after reporting a problem.

        ``obj_ids`` and ``anno_ids`` are lists of text whatever the file spells; they are missing
        where the split's masks are hidden. All other fields are kept as they are.
        """
        attrs: dict[str, Any] = {k: v for k, v in raw.items() if k not in _OWN}
        for name, attr in (("obj_id", "obj_ids"), ("anno_id", "anno_ids")):
            if name in raw:
                ids = id_list(raw[name])
                if ids is None:
                    told = f"'{name}' is {raw[name]!r}, not an id or a list of ids."
                    at.at(name).tell("bad object id", told)
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

    # ── where things are ─────────────────────────────────────────────────────

    def base(self) -> Path:
        """The set's folder.

        Raises:
            DataError: it is not found.
        """
        return find_base(self.name, self.root, self.folders, self.meta, self.split)

    def fill(self, path: str) -> str:
        """A layout path of this split."""
        return path.replace("{split}", self.split)

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

    # ── reading the split ────────────────────────────────────────────────────

    def read(self, report: Report) -> _State:
        """Everything but expressions and masks; damaged videos go to ``report`` and are left out."""
        base = self.base()
        file = next(path for p in self.meta if (path := base / self.fill(p)).exists())
        videos = self.read_videos(file, report)
        if self.videos:
            unknown = sorted(set(self.videos) - set(videos))
            if unknown:
                raise ConfigError(
                    f"dataset.videos names '{unknown[0]}', which split '{self.split}' doesn't hold.",
                    where=file,
                )
            videos = {video: videos[video] for video in videos if video in set(self.videos)}
        frames = self._frames_folder(base, videos)
        masks = self.mask_source(base) if frames is None else None
        clips: list[Clip] = []
        for video, record in videos.items():
            at = Place(file, f"videos.{video}", report)
            names = self._names(video, record, frames or base, at)
            if names is None:
                continue
            if frames is None:
                # A copy of the annotations, good for scoring.
                folder = base / self.fill(self.frames[0]) / video
                paths = [Path(f"{folder}/{name}.jpg") for name in names]
                size = self._told_size(record, at) or self._mask_size(masks, record, video, names)
                if size is None:
                    report(Damage("missing video", f"The folder of video '{video}' is missing.", folder))
            else:
                paths = list(self._frame_paths(frames / video, names, (base, frames), report))
                size = self._told_size(record, at) if record.keys() >= _SIZE else _frame_size(paths, report)
            if size is not None:
                attrs = {k: v for k, v in record.items() if isinstance(v, _SCALARS) and k not in _SIZE}
                clips.append(Clip(video, tuple(paths), tuple(names), size, attrs))
        return _State(base, file, videos, clips)

    def read_videos(self, file: Path, report: Report) -> dict[str, dict[str, Any]]:
        """The ``videos`` object of the expression file, as the split has it."""
        whole = read_json(file)
        Place(file).holds(whole, dict)
        return dict(Place(file).field(whole, "videos", dict))

    def _loaded(self) -> _State:
        if self._state is None:
            self._state = self.read(refuse)
        return self._state

    def _masks(self) -> MaskSource | None:
        if not self._sources:
            self._sources = [self.mask_source(self._loaded().base)]
        return self._sources[0]

    def _frames_folder(self, base: Path, videos: Mapping[str, Any]) -> Path | None:
        """The first frames folder that holds a video of the split (copies drop ``JPEGImages/``).

        ``None`` = there is no frames folder at all.
        """
        folders = [base / self.fill(p) for p in self.frames]
        for folder in folders:
            if any(bad_name(video) is None and (folder / video).is_dir() for video in videos):
                return folder
        return folders[0] if folders[0].is_dir() else None

    def _mask_size(
        self, masks: MaskSource | None, record: Mapping[str, Any], video: str, names: Sequence[str]
    ) -> tuple[int, int] | None:
        """The size of a video whose frames are not there, by its masks."""
        if isinstance(masks, LabelMapMasks):
            with contextlib.suppress(DataError):
                return image_size(masks.path / video / f"{names[0]}.png")
        if isinstance(masks, RunLengthMasks):
            expressions = record.get("expressions")
            for raw in expressions.values() if isinstance(expressions, dict) else ():
                for anno_id in id_list(raw.get("anno_id", [])) or () if isinstance(raw, dict) else ():
                    if (size := masks.size(anno_id)) is not None:
                        return size
        return None

    def _names(self, video: str, record: Any, frames: Path, at: Place) -> list[str] | None:
        """A video's frame names, checked; ``None`` after reporting that there are none to trust."""
        names: list[str] | None = at.field(record, "frames", list) if at.holds(record, dict) else None
        if names is None:
            return None
        here = at.at("frames")
        try:
            folder = safe_join(frames, video, at)
            if not all(isinstance(name, str) and _PLAIN.fullmatch(name) for name in names):
                for index, name in enumerate(names):
                    safe_join(folder, name, here.at(f"[{index}]"))
        except Damage as damage:
            at.report(damage)
            return None
        if not names:
            here.tell("video without frames", f"Video '{video}' lists no frame.")
        elif len(set(names)) != len(names):
            repeated = next(n for i, n in enumerate(names) if n in names[:i])
            here.tell("duplicate id", f"Frame '{repeated}' is listed twice.")
        return list(dict.fromkeys(names)) or None

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
            report(Damage("missing video", f"The folder of video '{folder.name}' is missing.", folder))
            return
        for name in names:
            file = f"{name}.jpg"
            if file not in present:
                endings = (".png", ".jpeg", ".JPG", ".PNG", ".JPEG")
                file = next((f"{name}{e}" for e in endings if f"{name}{e}" in present), file)
            if file not in present:
                report(Damage("missing frame", f"Frame '{name}' is missing.", folder / file))
            elif present[file]:
                check_link(folder / file, *homes, follow=self.follow_links, report=report)
            # One parse of a joined text: a large split has 10^5 frames, and `folder / file` parses twice.
            yield Path(f"{folder}/{file}")

    def _told_size(self, record: Mapping[str, Any], at: Place) -> tuple[int, int] | None:
        """The video's (height, width) by the expression file, if it has both."""
        found = at.fields(record, height=int, width=int) if record.keys() >= _SIZE else None
        if found is None:
            return None
        height, width = found
        if 0 < height <= MOST_SIDE and 0 < width <= MOST_SIDE:
            return height, width
        at.tell("bad size", f"The video is said to be {height} x {width} pixels.")
        return None


_SIZE = {"height", "width"}
_SCALARS = (str, int, float)


def _frame_size(paths: Sequence[Path], report: Report) -> tuple[int, int] | None:
    """The size of the first frame that is there."""
    for path in paths:
        if os.path.exists(path):
            try:
                return image_size(path)
            except DataError as error:
                report(Damage("unreadable frame", error.what, path))
    if paths:
        report(Damage("missing frame", "No frame of the video can be read.", paths[0].parent))
    return None


@dataclass
class _State:
    """What has been read of a split."""

    base: Path
    file: Path
    videos: dict[str, dict[str, Any]]
    clips: list[Clip]


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
