"""What a data set is, where it lies, and a part of one.

Not here: what is known of the public ones (``verify``), reading their formats.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from refseg_bench.config.schema import Component
from refseg_bench.datasets.files import Damage, Tell, data_root, refuse, rename_that_helps, wordless
from refseg_bench.env import resource
from refseg_bench.errors import ConfigError, DataError, some
from refseg_bench.types import Clip, Expression, MaskTrack, Target, sample_id


class Dataset(Component):
    """Yields clips, their expressions and (where public) their targets.

    A data set is a dataclass with ``clips``, ``expressions`` and ``target``; the other methods are hooks.
    They may raise a ``DataError``: the set is not found, or what is read of it is missing or damaged.
    """

    kind: ClassVar[str] = "dataset"

    #: The data set's name.
    name: str
    #: The split's name.
    split: str
    #: The folder given for its files; ``None`` = it is looked for, or there are none.
    root: Path | None = None
    #: Folder names its archives unpack to, looked for below ``root`` too.
    folders: Sequence[str] = ()
    #: Ids of the protocols a run is scored under unless it says otherwise.
    protocols: Sequence[str] = ()
    #: Options whose value the publication leaves open: tables say how they were set.
    unsettled: ClassVar[tuple[str, ...]] = ()
    #: True if a frame file that no clip lists is damage (``refseg data verify``).
    every_frame_listed: bool = False
    #: Receives what is wrong with its files: a run refuses the first, ``refseg data verify`` collects all.
    tell: Tell = staticmethod(refuse)

    @abstractmethod
    def clips(self) -> Sequence[Clip]:
        """All clips of the split, in the order of the dataset's own files."""

    @abstractmethod
    def expressions(self, clip: Clip) -> Sequence[Expression]:
        """The expressions of a clip, in the order of the dataset's own files."""

    @abstractmethod
    def target(self, clip: Clip, expression: Expression) -> Target | None:
        """The truth of a sample, or ``None`` where the masks are hidden on a server."""

    # ── hooks of scoring ─────────────────────────────────────────────────────

    def no_truth(self, clip: Clip, expression: Expression) -> tuple[str, str]:
        """Why a sample has no target, and what to do instead."""
        return (
            f"The masks of '{sample_id(clip.id, expression.id)}' are not public.",
            "`refseg submission RUN` (or --predictions) makes the zip for the evaluation server.",
        )

    def pair_key(self, clip: Clip, expression: Expression) -> Hashable:
        """What a sample shares with the same one of another release of the set (:class:`OtherTruth`)."""
        return sample_id(clip.id, expression.id), expression.text

    def annotation_files(self, clip: Clip) -> Sequence[Path | None] | None:
        """One id-map PNG (or ``None``) per frame, as DAVIS stores them; ``None`` = the set has no id maps."""
        return None

    def truth_files(self, clip: Clip) -> Sequence[Path | None] | None:
        """Mask files of a clip's truth, beside those that ``files_read`` collects; ``None`` = not known.

        Where they are known, a complete run is scored again only if one of them has changed.
        """
        return None

    def foreground(self, clip: Clip) -> MaskTrack | None:
        """The union of all annotated instances of a clip; ``None`` = of the targets."""
        return None

    def encodings(self) -> Mapping[str, int]:
        """How the mask files read since the last call are stored (``"0/255"`` → files)."""
        return {}

    def taken(self) -> str | None:
        """Where the truth was found, if that was a choice."""
        return None

    # ── hooks of where its files are (`refseg data`) ─────────────────────────

    def landmarks(self) -> Sequence[str]:
        """Paths of which one shows where the set is; ``{split}`` stands for the split, ``/`` ends a folder's.

        A ``*`` stands for any part of a name.

        None = it is not looked for, and comes in no archives of its own.
        """
        return ()

    def layout(self) -> Sequence[str]:
        """All paths it reads below its folder, by which ``refseg data prepare`` knows an archive's parts."""
        return self.landmarks()

    def convert(self, places: Sequence[Path], stage: Path, say: Callable[[str], None]) -> Path | None:
        """Make the layout of what is published in another one, for ``refseg data prepare``.

        Args:
            places: folders that hold what is published, unpacked.
            stage: a folder to work in; what was an archive lies unpacked below it.
            say: receives progress, one line at a time.

        Returns:
            The folder that holds the layout; ``None`` = what is published has it.
        """
        return None

    def base(self) -> Path | None:
        """The folder its files lie in: the first that holds one of its landmarks; ``None`` = not known.

        Looked at are ``root``, or else ``$REFSEG_DATA`` (or ``data``) and the samples that ship with the
        package; in each the folders of its name and of its archives, in any case and with any of ``-``,
        ``_`` and space.

        Raises:
            DataError: it isn't there, or not with that split; says where it is, if it is near.
        """
        landmarks = [landmark.replace("{split}", self.split) for landmark in self.landmarks()]
        if not landmarks:
            return self.root
        for folder in _places(self):
            if any(_there(folder, landmark) for landmark in landmarks):
                return folder
        splits = _splits_there(self)
        if splits:
            raise DataError(
                f"'{self.name}' has no split '{self.split}' here.",
                where=self.root or self.name,
                allowed=splits,
                hint="Set dataset.split (`refseg score`: --split) to one of them.",
            )
        raise _not_found(self, landmarks)

    @cached_property
    def home(self) -> Path:
        """The folder its files lie in, looked for once; see :meth:`base`."""
        found = self.base()
        assert found is not None, f"{type(self).__name__} has neither landmarks nor a root"
        return found

    def splits(self, known: Sequence[str]) -> Sequence[str]:
        """Those of the known splits whose files are there."""
        found = []
        for split in known:
            with contextlib.suppress(DataError):
                dataclasses.replace(self, split=split).base()  # type: ignore[type-var]
                found.append(split)
        return found

    def survey(self) -> Iterator[tuple[Clip | None, Sequence[Expression]]]:
        """All clips with their expressions, for a set whose :attr:`tell` collects damage.

        Yields:
            A clip (``None`` where it can't be made) and its readable expressions.
        """
        try:
            clips = self.clips()
        except Damage as damage:
            self.tell(damage)
            return
        for clip in clips:
            try:
                expressions = self.expressions(clip)
                for expression in expressions:
                    if wordless(expression.text):
                        told = f"Expression '{expression.id}' has no words."
                        self.tell(Damage("empty expression", told, clip.id))
                yield clip, expressions
            except DataError as error:
                self.tell(damaged(clip, error))


def damaged(clip: Clip, error: DataError) -> Damage:
    """An error of a clip as a problem of the data set's files."""
    if isinstance(error, Damage):
        return error
    return Damage("damaged clip", error.what, error.where or clip.id, hint=error.hint)


def no_sample(data: Dataset) -> Damage:
    """The problem of a split that holds no expression."""
    told = f"Split '{data.split}' of '{data.name}' holds no expression."
    hint = "Restore the files of this split, or choose another (dataset.split; elsewhere: --split)."
    return Damage("empty split", told, data.base() or data.name, hint=hint)


#: What is asked of the whole where a part is asked for it.
_OF_WHOLE = (
    "name", "split", "root", "protocols", "base",
    "no_truth", "annotation_files", "truth_files", "foreground", "encodings", "taken", "pair_key",
)  # fmt: skip


@dataclass
class LimitedDataset(Dataset):
    """The first clips, the first expressions of each, or named samples only."""

    inner: Dataset  #: the whole dataset
    clips_limit: int | None = None  #: the first N clips that have an expression left
    expressions_limit: int | None = None  #: the first N expressions of each clip
    samples: Sequence[str] = ()  #: only these sample ids (applied before the counts); empty = all
    _clips: list[Clip] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in _OF_WHOLE:
            setattr(self, name, getattr(self.inner, name))

    def clips(self) -> Sequence[Clip]:
        """The clips that have an expression in the part.

        Raises:
            ConfigError: ``samples`` names one the split does not have.
        """
        if self._clips is None:
            clips = [clip for clip in self.inner.clips() if self.expressions(clip)]
            if self.samples:
                self._check_samples(clips)
            self._clips = clips[: self.clips_limit]
        return self._clips

    def expressions(self, clip: Clip) -> Sequence[Expression]:
        """The clip's expressions in the part."""
        expressions = self.inner.expressions(clip)
        if self.samples:
            chosen = set(self.samples)
            expressions = [e for e in expressions if sample_id(clip.id, e.id) in chosen]
        return expressions[: self.expressions_limit]

    def cuts(self, clip: Clip) -> bool:
        """Whether the part lacks some of the clip's expressions."""
        return len(self.expressions(clip)) < len(self.inner.expressions(clip))

    def target(self, clip: Clip, expression: Expression) -> Target | None:
        """The truth of a sample."""
        return self.inner.target(clip, expression)

    def _check_samples(self, clips: Sequence[Clip]) -> None:
        known = {sample_id(c.id, e.id) for c in clips for e in self.inner.expressions(c)}
        unknown = sorted(set(self.samples) - known)
        if unknown:
            raise ConfigError(
                f"limit.samples names samples the split does not have: {some(unknown)}",
                where=f"{self.name}, split {self.split}",
                hint="A sample's id is CLIP/EXPRESSION, as `refseg status` and the score tables spell it.",
            )


@dataclass
class OtherTruth(Dataset):
    """The samples of a data set that another release of it has too, with that one's targets."""

    inner: Dataset
    other: Dataset

    def __post_init__(self) -> None:
        self.name, self.split, self.protocols = self.other.name, self.other.split, self.inner.protocols

    @cached_property
    def _pairs(self) -> dict[Hashable, tuple[Clip, Expression]]:
        return {
            self.other.pair_key(clip, e): (clip, e)
            for clip in self.other.clips()
            for e in self.other.expressions(clip)
        }

    def clips(self) -> list[Clip]:
        """The clips with such a sample."""
        return [clip for clip in self.inner.clips() if self.expressions(clip)]

    def expressions(self, clip: Clip) -> list[Expression]:
        """Those of a clip that the other release has."""
        return [e for e in self.inner.expressions(clip) if self.inner.pair_key(clip, e) in self._pairs]

    def target(self, clip: Clip, expression: Expression) -> Target | None:
        """The other release's truth."""
        return self.other.target(*self._pairs[self.inner.pair_key(clip, expression)])


# ── where data sets are ──────────────────────────────────────────────────────


def _places(data: Dataset) -> Iterator[Path]:
    """Folders that may be the data set's, likeliest first."""
    for place in [data.root] if data.root is not None else [data_root(), resource("datasets")]:
        homes = [place] if data.root is not None else list(_spelled(place, data.name))
        yield from homes
        for home in dict.fromkeys((*homes, place)):
            for folder in data.folders:
                yield from _spelled(home, folder)


def _there(folder: Path, landmark: str) -> bool:
    return os.path.exists(folder / landmark) or ("*" in landmark and any(folder.glob(landmark)))


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


def _splits_there(data: Dataset) -> list[str]:
    """The splits a data set has on this disk, by its landmarks with ``{split}`` in a split's place."""
    found = set()
    for base in _places(data):
        for pattern in data.landmarks():
            head, mark, tail = pattern.partition("{split}")
            end = tail.rstrip("/")
            for path in base.glob(f"{head}*{tail}") if mark and "{" not in head + tail else ():
                name = path.relative_to(base).as_posix()
                with contextlib.suppress(OSError):
                    # Folders of folders are data sets, not splits.
                    if end == tail or any(p.is_file() for p in path.iterdir()):
                        found.add(name[len(head) : len(name) - len(end)])
    return sorted(found - {""})


def _not_found(data: Dataset, landmarks: Sequence[str]) -> DataError:
    place = data.root or data_root() / data.name
    inside: list[str] = []
    try:
        inside = sorted(name for name in os.listdir(place) if not name.startswith("."))
        holds = f" The folder holds {some(inside, 8) or 'nothing'}."
    except FileNotFoundError:
        holds = " There is no such folder." if data.root is not None else ""
    except OSError as error:
        holds = f" It can't be read as a folder ({error.strerror})."
    hint = (
        f"Get it as datasets/{data.name}/README.md says, then set dataset.root=FOLDER (where a command "
        "has it: --root FOLDER) or put it under $REFSEG_DATA; `refseg data list` shows what is found where."
    )
    above = [p for landmark in landmarks for p in (place / landmark).parents]
    if barred := next((p for p in above if os.path.isdir(p) and not os.access(p, os.X_OK)), None):
        hint = f"Check the permissions of {barred}, which may not be entered."
    near = [place / one for one in inside[:1000]] + [place.parent, place.parent.parent]
    for folder in near:
        if any(_there(folder, landmark) for landmark in landmarks):
            hint = f"It lies in {folder}: set {shlex.quote(f'dataset.root={folder}')} (elsewhere: --root)."
            break
    else:
        hint = rename_that_helps(*(place / landmark for landmark in landmarks)) or hint
    return DataError(
        f"The data set '{data.name}' is not here: none of its files {', '.join(landmarks)} exists.{holds}",
        where=place,
        hint=hint,
    )
