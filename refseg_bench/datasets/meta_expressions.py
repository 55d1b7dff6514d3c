"""The JSON shape that the public video sets share: videos → frames and expressions, masks beside.

``{"videos": {video: {"frames": [name], "expressions": {id: {"exp": text, "obj_id", "anno_id"}}}}}``.
MeViS, and any set in its layout, is this class and a YAML; Ref-YouTube-VOS, Ref-DAVIS17, ReVOS
and ReasonVOS change a rule each in their own modules.

Orders are the files' own (protocols average in that order); nothing here depends on them.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from refseg_bench.config.schema import option
from refseg_bench.datasets.base import Dataset
from refseg_bench.datasets.files import (
    Damage,
    Place,
    bad_name,
    cache_root,
    check_link,
    frame_key,
    other_form,
    read_json,
    rename_that_helps,
    safe_join,
    unreadable,
    wordless,
)
from refseg_bench.datasets.masks import (
    MOST_SIDE,
    LabelMapMasks,
    MaskSource,
    ObjectFolders,
    RunLengthMasks,
    Wanted,
    id_list,
    open_mask_dict,
)
from refseg_bench.datasets.verify import manifest
from refseg_bench.errors import ConfigError, DataError
from refseg_bench.files.images import image_size
from refseg_bench.types import Clip, Expression, Target, sample_id

#: Fields of an expression that have a place of their own; all others become attributes as they are.
_OWN = ("obj_id", "anno_id")
_SIZE = {"height", "width"}
#: What a frame's name may end in, likeliest first.
PICTURES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG")


@dataclass
class MetaExpressions(Dataset):
    """A video set in MeViS' layout.

    Paths are relative to the set's folder; ``{split}`` stands for the split. Where several are
    given, the first that exists is used.
    """

    #: Keys of a video's expressions and of an expression's text in the file.
    entries: ClassVar[str] = "expressions"
    words: ClassVar[str] = "exp"

    name: str = "mevis"  #: name of the set
    split: str = "valid_u"  #: name of the split
    root: Path | None = option(None, transient=True)  #: the set's folder; ``None`` = it is looked for
    #: Folder of the indices; ``None`` = ``$REFSEG_CACHE`` or ``cache``.
    cache: Path | None = option(None, transient=True)
    #: Folder names its archives unpack to, looked for below ``root`` too.
    folders: list[str] = option(["mevis", "MeViS", "MeViS_release"], transient=True)
    meta: list[str] = option(["{split}/meta_expressions.json"])  #: the expression file
    frames: list[str] = option(["{split}/JPEGImages", "{split}"])  #: the folder of the videos' folders
    #: run-length dictionary (``.json``, ``.pkl``) or folder of PNGs; the order is the preference.
    masks: list[str] = option(["{split}/mask_dict.json", "{split}/mask_dict.pkl"])
    hidden: list[str] = option(["valid", "test"])  #: splits whose masks only an evaluation server has
    videos: list[str] = option([])  #: only these videos; empty = all
    #: Ids a run is scored under unless it says otherwise.
    protocols: list[str] = option(["rvos-expr"], transient=True)
    #: A frame file that the expression file doesn't list is a problem to ``verify`` (some releases ship more
    #: frames than they use).
    every_frame_listed: bool = option(True, transient=True)
    follow_links: bool = option(False, transient=True)  #: read symbolic links that lead out of ``root``

    def __post_init__(self) -> None:
        # Papers say "val", the folders say "valid".
        if self.split == "val":
            self.split = "valid"

    def clips(self) -> Sequence[Clip]:
        """All clips of the split, in the order of the expression file."""
        return list(self._clips.values())

    def expressions(self, clip: Clip) -> list[Expression]:
        """The expressions of a clip, in the order of the expression file."""
        return self._expressions(clip.id)

    def target(self, clip: Clip, expression: Expression) -> Target | None:
        """The annotated objects of an expression; ``None`` where a server keeps the masks."""
        source, wanted = self._source, self.wanted(expression)
        if self.split in self.hidden and (source is None or wanted is None):
            return None
        at = self.place("videos", clip.id, self.entries, expression.id)
        if wanted is None:
            told = "The expression names no object ('obj_id', 'anno_id')."
            at.tell("missing field", told, "Use the expression file of a split with public masks.")
            return None
        if source is None:
            paths = [self.fill(path) for path in self.masks]
            if any(path.endswith((".json", ".pkl")) and (self.home / path).is_file() for path in paths):
                return None  # what is wrong with it was told
            told = f"Split '{self.split}' of '{self.name}' has public masks, but there is none of "
            hint = rename_that_helps(*(self.home / path for path in paths))
            self.tell(Damage("missing file", f"{told}{', '.join(paths)}.", self.home / paths[0], hint=hint))
            return None
        if not isinstance(source, LabelMapMasks) and "anno_ids" not in expression.attrs:
            told = f"The expression has no 'anno_id', by which {source.path.name} names its masks."
            at.tell("missing field", told, "Use the expression file and the masks of one release.")
            return None
        tracks = source.tracks(clip, wanted, self.tell)
        ids = tuple(w.object_id for w in wanted)
        return Target(clip.size, len(clip), tuple(tracks), ids, void=source.void(clip, self.tell))

    # ── hooks ────────────────────────────────────────────────────────────────

    def no_truth(self, clip: Clip, expression: Expression) -> tuple[str, str]:
        """Why :meth:`target` has none for a sample of a hidden split, and what helps."""
        source, sample = self._source, sample_id(clip.id, expression.id)
        zipped = "`refseg submission RUN` (or --predictions) makes the zip for the server, where there is one"
        if source is not None and (not isinstance(source, LabelMapMasks) or any(source.files(clip))):
            return (
                f"There are masks in {source.path}, but {self.file} doesn't say which of them '{sample}' "
                "means: it has no 'obj_id'.",
                f"Use the expression file that was released with the masks (datasets/{self.name}/README.md); "
                f"{zipped}.",
            )
        return (
            f"The masks of '{sample}' are not here: split '{self.split}' came out without.",
            f"Where they were released later, as datasets/{self.name}/README.md says, put them at "
            f"{self.home / self.fill(self.masks[0])}, with an expression file that has 'obj_id'; {zipped}.",
        )

    def annotation_files(self, clip: Clip) -> list[Path | None] | None:
        """The id map of every frame (``None`` where it is missing), where the set keeps such maps."""
        return self._source.files(clip) if isinstance(self._source, LabelMapMasks) else None

    def truth_files(self, clip: Clip) -> list[Path | None] | None:
        """The clip's id maps, or its objects' masks; none beside a run-length dictionary."""
        source = self._source
        if isinstance(source, ObjectFolders):
            ids = dict.fromkeys(i for e in self._expressions(clip.id) for i in e.attrs.get("anno_ids", ()))
            return list(source.pngs(clip.id, (), ids))
        return [] if isinstance(source, RunLengthMasks) else self.annotation_files(clip)

    def encodings(self) -> Counter[str]:
        """How the mask files read since the last call are stored, in words → number of files."""
        source, found = self._source, Counter[str]()
        if source is not None:
            found, source.encodings = source.encodings, found
        return found

    def landmarks(self) -> list[str]:
        """The expression file."""
        return self.meta

    def layout(self) -> list[str]:
        """The expression file, frames and masks."""
        return [*self.frames, *self.masks, *self.meta]

    def survey(self) -> Iterator[tuple[Clip | None, Sequence[Expression]]]:
        """As :meth:`Dataset.survey`, then the expressions of the videos whose clips can't be made."""
        yield from super().survey()
        with contextlib.suppress(Damage):
            for video, record in self._videos.items():
                if video not in self._clips:
                    yield None, self._expressions(video) if isinstance(record, dict) else []

    # ── rules that a set may change ──────────────────────────────────────────

    def read_videos(self) -> dict[str, dict[str, Any]]:
        """The ``videos`` object of the expression file, as the split has it."""
        whole = read_json(self.file)
        Place(self.file).holds(whole, dict)
        return dict(Place(self.file).field(whole, "videos", dict))

    def attributes(self, video: str, key: str, raw: Mapping[str, Any], at: Place) -> dict[str, Any] | None:
        """Attributes of one expression; ``None`` after telling a problem.

        ``obj_ids`` and ``anno_ids`` are lists of text whatever the file spells; they are missing
        where the split's masks are hidden. All other fields are kept as they are.
        """
        attrs: dict[str, Any] = {k: v for k, v in raw.items() if k not in (self.words, *_OWN)}
        for name, attr in (("obj_id", "obj_ids"), ("anno_id", "anno_ids")):
            if name in raw:
                ids = id_list(raw[name])
                if ids is None:
                    told = f"'{name}' is {raw[name]!r}, not an id or a list of ids, of which -1 stands alone."
                    at.at(name).tell("bad object id", told)
                    return None
                attrs[attr] = ids
        many = [len(attrs[name]) for name in ("obj_ids", "anno_ids") if name in attrs]
        if len({*many}) > 1:
            told = f"'obj_id' names {many[0]} objects, 'anno_id' {many[1]}, which are taken."
            at.tell("bad object id", told, harmless=True)
        return attrs

    def png_source(self, path: Path) -> MaskSource:
        """How this set's folders of PNGs are read."""
        return LabelMapMasks(path, self.home, follow_links=self.follow_links)

    def frames_of(self, video: str) -> str:
        """The folder of a video's frames, below that of all."""
        return video

    def frame_names(self, video: str, record: Mapping[str, Any], at: Place) -> list[str] | None:
        """The names of a video's frames, in its order; ``None`` after telling a problem."""
        names: list[str] | None = at.field(record, "frames", list)
        if names == []:
            at.at("frames").tell("video without frames", f"Video '{video}' lists no frame.")
        return names

    # ── parts ────────────────────────────────────────────────────────────────

    def fill(self, path: str) -> str:
        """A layout path of this split."""
        return path.replace("{split}", self.split)

    @cached_property
    def file(self) -> Path:
        """The expression file."""
        return next(path for p in self.meta if (path := self.home / self.fill(p)).exists())

    def place(self, *parts: str) -> Place:
        """A place in the expression file."""
        return Place(self.file, ".".join(parts), self.tell)

    def wanted(self, expression: Expression) -> list[Wanted] | None:
        """The objects an expression means; ``None`` if the file doesn't say."""
        objects = expression.attrs.get("obj_ids")
        annos = expression.attrs.get("anno_ids", objects)
        if annos is None:
            return None
        if isinstance(self._source, LabelMapMasks) and objects is not None:
            annos = objects  # the number of an expression is no value of a map
        if objects is None or len(objects) != len(annos):
            objects = annos
        return [Wanted(o, a) for o, a in zip(objects, annos, strict=True)]

    @cached_property
    def _videos(self) -> dict[str, dict[str, Any]]:
        videos = self.read_videos()
        self._tell_other_release(videos)
        if self.videos:
            unknown = sorted(set(self.videos) - set(videos))
            if unknown:
                raise ConfigError(
                    f"dataset.videos names '{unknown[0]}', which split '{self.split}' doesn't hold.",
                    where=self.file,
                )
            videos = {video: videos[video] for video in videos if video in set(self.videos)}
        return videos

    def _tell_other_release(self, videos: Mapping[str, Any]) -> None:
        facts = manifest(self.name)
        if facts is None or not facts.unlike:
            return
        lists = (record.get("expressions") for record in videos.values() if isinstance(record, dict))
        found = [
            raw for each in lists if isinstance(each, dict) for raw in each.values() if isinstance(raw, dict)
        ]
        if why := facts.taken_for(self.split, found):
            hint = f"If it is {facts.unlike}: dataset={facts.unlike}. A set of your own: dataset.name=NAME."
            self.tell(
                Damage("another release", f"This is no file of {facts.title}: {why}.", self.file, hint=hint)
            )

    @cached_property
    def _source(self) -> MaskSource | None:
        """The first mask source that exists."""
        for path in (self.home / self.fill(p) for p in self.masks):
            if path.suffix in (".json", ".pkl"):
                if path.is_file():
                    try:
                        return RunLengthMasks(path, open_mask_dict(path, cache_root(self.cache)))
                    except Damage as damage:
                        self.tell(damage)
                        return None
            elif path.is_dir():
                return self.png_source(path)
        return None

    def _expressions(self, video: str) -> list[Expression]:
        at = self.place("videos", video)
        found = at.field(self._videos[video], self.entries, dict)
        if found is not None and not found:
            at.tell("video without expressions", f"Video '{video}' has no expression.")
        out: list[Expression] = []
        for key, raw in (found or {}).items():
            here = at.at(self.entries).at(key or "''")
            if not here.holds(raw, dict):
                continue
            if bad_name(key) is not None or "/" in key:
                hint = "Restore the original file: ids are plain names without slashes."
                here.tell("unsafe name", f"The expression id '{key}' can't name a folder.", hint)
                continue
            text = here.field(raw, self.words, str)
            if text is None:
                continue
            if wordless(text):
                here.at(self.words).tell("empty expression", "The expression has no words.")
                continue
            attrs = self.attributes(video, key, raw, here)
            if attrs is not None:
                out.append(Expression(key, text, attrs))
        return out

    @cached_property
    def _clips(self) -> dict[str, Clip]:
        frames = self._frames_folder()
        clips: dict[str, Clip] = {}
        for video, record in self._videos.items():
            at = self.place("videos", video)
            names = self._names(video, record, at)
            if names is None:
                continue
            # Without frames it is a copy of the annotations, good for scoring.
            folder = (frames or self.home / self.fill(self.frames[0])) / self.frames_of(video)
            paths = (
                [Path(f"{folder}/{name}.jpg") for name in names]
                if frames is None
                else list(self._frame_paths(folder, names, frames))
            )
            size = self._told_size(record, at)
            if size is None and frames is None:
                size = self._mask_size(video, names)
                if size is None:
                    self.tell(Damage("missing video", f"The folder of video '{video}' is missing.", folder))
            elif size is None and not record.keys() >= _SIZE:
                size = self._frame_size(paths)
            if size is not None:
                attrs = {
                    k: v for k, v in record.items() if isinstance(v, str | int | float) and k not in _SIZE
                }
                clips[video] = Clip(video, tuple(paths), tuple(names), size, attrs)
        return clips

    def _frames_folder(self) -> Path | None:
        """The first frames folder that holds a video of the split (copies drop ``JPEGImages/``).

        ``None`` = there is no frames folder at all.
        """
        folders = [self.home / self.fill(p) for p in self.frames]
        videos = [self.frames_of(video) for video in self._videos if bad_name(video) is None]
        for folder in folders:
            if any((folder / video).is_dir() for video in videos):
                return folder
        return folders[0] if folders[0].is_dir() else None

    def _names(self, video: str, record: Any, at: Place) -> list[str] | None:
        """A video's frame names, checked; ``None`` after telling that there are none to trust."""
        here = at.at("frames")
        try:
            safe_join(self.home, video, at)
            names = self.frame_names(video, record, at) if at.holds(record, dict) else None
            for index, name in enumerate(names or ()):
                if bad_name(name) is not None:
                    safe_join(self.home, name, here.at(f"[{index}]"))
        except Damage as damage:
            self.tell(damage)
            return None
        if names is not None and len(set(names)) != len(names):
            repeated = Counter(names).most_common(1)[0][0]
            here.tell("duplicate id", f"Frame '{repeated}' is listed twice.")
        # The plain order first: keys of 10^5 frames take a third of a second at each start.
        if names is not None and sorted(names) != names != sorted(names, key=frame_key):
            told = f"The frames of '{video}' are listed in another order than their names'."
            here.tell("frames out of order", told, harmless=True)
        return list(dict.fromkeys(names or ())) or None

    def _frame_paths(self, folder: Path, names: Sequence[str], frames: Path) -> Iterator[Path]:
        """One file per frame; the folder is listed once instead of asking for each file.

        A file that is told as missing or as a link keeps its place, so that the masks of the other
        frames can be checked in the same pass.
        """
        homes = self.home, frames
        if not check_link(folder, *homes, follow=self.follow_links, tell=self.tell):
            return
        try:
            with os.scandir(folder) as entries:
                present = {entry.name: entry.is_symlink() for entry in entries}
        except FileNotFoundError:
            told, hint = f"The folder of video '{folder.name}' is missing.", other_form(folder)
            self.tell(Damage("missing video", told, folder, hint=hint))
            return
        except OSError as error:
            self.tell(unreadable(folder, error))
            return
        for name in names:
            file = f"{name}.jpg"
            if file not in present:
                file = next((f for end in PICTURES if (f := f"{name}{end}") in present), file)
            # One parse of a joined text: a large split has 10^5 frames, and `folder / file` parses twice.
            path = Path(f"{folder}/{file}")
            if file not in present:
                hint = f"'{name}' is there: take the ending off the names." if name in present else None
                self.tell(Damage("missing frame", f"Frame '{name}' is missing.", path, hint=hint))
            elif present[file]:
                check_link(path, *homes, follow=self.follow_links, tell=self.tell)
            yield path

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

    def _frame_size(self, paths: Sequence[Path]) -> tuple[int, int] | None:
        for path in paths:
            if os.path.exists(path):
                try:
                    return image_size(path)
                except DataError as error:
                    self.tell(Damage("unreadable frame", error.what, path))
        if paths:
            self.tell(Damage("missing frame", "No frame of the video can be read.", paths[0].parent))
        return None

    def _mask_size(self, video: str, names: Sequence[str]) -> tuple[int, int] | None:
        """The size of a video whose frames are not there, by its masks."""
        if self._source is None:
            return None
        ids = (i for e in self._expressions(video) for i in e.attrs.get("anno_ids", ()))
        return self._source.size(video, names, ids)
