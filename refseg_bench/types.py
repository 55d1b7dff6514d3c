"""The nouns of the harness: what a dataset yields, a method returns, a protocol scores.

Only frozen dataclasses and the run-length coding that :class:`MaskTrack` rests on live here;
reading files, models and metrics live elsewhere. Array names carry their axes as a suffix:
``T`` frames, ``H`` rows, ``W`` columns, ``C`` colour channels (``frames_THWC``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refseg_bench.errors import DataError
from refseg_bench.files import compiled

BoolHW = NDArray[np.bool_]
Uint8THWC = NDArray[np.uint8]
FloatTHW = NDArray[np.float32]


# ── masks ────────────────────────────────────────────────────────────────────


def encode_rle(mask_HW: NDArray[Any]) -> bytes:
    """Compress one mask of any dtype (nonzero = foreground) to the ``counts`` of COCO's run-length format.

    The size is kept by the owner.

    >>> import numpy as np
    >>> decode_rle(encode_rle(np.eye(2, dtype=bool)), (2, 2)).tolist()
    [[True, False], [False, True]]
    """
    binary = mask_HW != 0
    if compiled.KERNEL is not None:
        return bytes(compiled.KERNEL.encode(np.ascontiguousarray(binary).view(np.uint8)))
    binary = np.asfortranarray(binary).view(np.uint8)
    return bytes(coco_mask.encode(binary)["counts"])


def decode_rle(counts: bytes, size: tuple[int, int]) -> BoolHW:
    """Undo :func:`encode_rle`: a boolean mask of ``size`` (height, width)."""
    if compiled.KERNEL is not None:
        canvas_HW = np.zeros(size, np.uint8)
        compiled.KERNEL.paint(counts, 1, canvas_HW)
        return canvas_HW.view(np.bool_)
    decoded = coco_mask.decode({"size": [size[0], size[1]], "counts": counts})
    return np.asarray(decoded, dtype=np.uint8).view(np.bool_)


def paint_rle(counts: bytes, value: int, canvas_HW: NDArray[np.uint8]) -> None:
    """Give the pixels of a mask a value, on a canvas of the mask's size."""
    if compiled.KERNEL is not None:
        compiled.KERNEL.paint(counts, value, canvas_HW)
    else:
        canvas_HW[decode_rle(counts, canvas_HW.shape)] = value


def run_lengths(counts: bytes) -> NDArray[np.int64]:
    """Decode compressed COCO counts to run lengths (background first).

    The format: each number is a little-endian sequence of 5-bit groups offset by 48, bit 6 =
    "more follows", the last group's top bit = sign; from the fourth number on it is a
    difference to the number two before.

    Raises:
        ValueError: a byte outside the alphabet, or a number that does not end.

    >>> import numpy as np
    >>> run_lengths(encode_rle(np.array([[0, 1, 1]], bool))).tolist()
    [1, 2]
    """
    groups = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if groups.size == 0:
        raise ValueError("it is empty")
    if groups.min() < 0 or groups.max() > 63:
        raise ValueError("it holds a byte outside of the RLE alphabet")
    last = (groups & 0x20) == 0
    if not last[-1]:
        raise ValueError("its last number does not end")
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    digit = np.arange(groups.size) - np.repeat(starts, ends - starts + 1)
    if digit.max() > 11:
        raise ValueError("it holds a number of more than 60 bits")
    numbers = np.add.reduceat((groups & 0x1F) << (5 * digit), starts)
    negative = (groups[ends] & 0x10) != 0
    numbers = np.where(negative, numbers - (np.int64(1) << (5 * (ends - starts + 1))), numbers)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


#: Most pixels of a frame: more is a damaged size, and would be memory taken for nothing.
MOST_PIXELS = 1 << 28


def rle_fault(counts: bytes, size: tuple[int, int]) -> str | None:
    """Why compressed counts are no mask of that size, or ``None`` if they are.

    pycocotools trusts its input: counts that describe more pixels than the size says make it write
    past its buffer. So whatever was read from a file is measured before it is decoded.
    """
    pixels = size[0] * size[1]
    if min(size) < 1 or pixels > MOST_PIXELS:
        return f"no frame has the size {size[0]} x {size[1]}"
    if compiled.KERNEL is not None and compiled.KERNEL.sound(counts, pixels):
        return None
    try:
        runs = run_lengths(counts)
    except ValueError as error:
        return str(error)
    if runs.min() < 0:
        return "it holds a negative run"
    # The longest run first: a sum of damaged runs may overflow.
    total = int(runs.max()) if runs.max() > pixels else int(runs.sum())
    if total != pixels:
        return f"its runs cover {total} pixels, the size {size[0]} x {size[1]} has {pixels}"
    return None


@dataclass(frozen=True, slots=True)
class MaskTrack:
    """One mask per frame of a clip, run-length coded.

    ``None`` at a frame means *not predicted* (or, in a target, *not annotated*); an RLE without
    foreground means *the object is absent*. The two are never mixed.
    """

    size: tuple[int, int]  #: (height, width) in pixels, the same for all frames
    rles: tuple[bytes | None, ...]  #: compressed COCO counts per frame, in the order of ``Clip.frame_names``

    def __len__(self) -> int:
        return len(self.rles)

    @classmethod
    def from_masks(cls, masks: Iterable[NDArray[Any] | None], size: tuple[int, int]) -> MaskTrack:
        """Encode one mask (or ``None``) per frame: booleans or integers, nonzero = foreground.

        Raises:
            DataError: a mask of another size than ``size``, or of fractions.
        """
        rles: list[bytes | None] = []
        for index, mask in enumerate(masks):
            if mask is None:
                rles.append(None)
                continue
            if mask.shape != size:
                raise DataError(
                    f"The mask of frame {index} is {mask.shape}, the clip is {size} (height, width).",
                    hint="Resize the mask to the clip's size before making a MaskTrack.",
                )
            if (mask := np.asarray(mask)).dtype.kind not in "biu":
                # Any probability, logit or NaN would count as foreground.
                raise DataError(
                    f"The mask of frame {index} holds {mask.dtype} values, not booleans or integers.",
                    hint="Compare it with your threshold before making a MaskTrack: mask > 0.5",
                )
            rles.append(encode_rle(mask))
        return cls(size, tuple(rles))

    @classmethod
    def gather(
        cls, found: Iterable[tuple[int, NDArray[Any]]], size: tuple[int, int], rest: Sequence[bytes | None]
    ) -> MaskTrack:
        """Encode masks as they come, in any order of frames, so that only one is held at a time.

        ``rest``: what stands in each frame that none comes for.

        Raises:
            DataError: a mask of another size.
        """
        rles = list(rest)
        for index, mask in found:
            (rles[index],) = cls.from_masks([mask], size).rles
        return cls(size, tuple(rles))

    @classmethod
    def empty(cls, size: tuple[int, int], length: int) -> MaskTrack:
        """A track that says "absent" in every frame."""
        blank = encode_rle(np.zeros(size, np.uint8))
        return cls(size, (blank,) * length)

    @classmethod
    def union(cls, tracks: Sequence[MaskTrack], size: tuple[int, int], length: int) -> MaskTrack:
        """Several objects as one track: ``None`` where none of them has a mask, absent without objects."""
        if not tracks:
            return cls.empty(size, length)
        rles: list[bytes | None] = []
        for frame in range(length):
            present = [counts for counts in (track.rles[frame] for track in tracks) if counts is not None]
            rles.append(union_rle(present, size) if present else None)
        return cls(size, tuple(rles))

    def mask(self, frame: int) -> BoolHW | None:
        """The boolean mask of one frame, or ``None`` where there is none."""
        counts = self.rles[frame]
        return None if counts is None else decode_rle(counts, self.size)

    def misfit(self, size: tuple[int, int], length: int) -> str:
        """Why the masks can't be those of a clip of that size and length; empty if they can.

        To be asked before masks of two sources meet: run lengths of another size are no masks of this one.
        """
        if self.size == tuple(size) and len(self.rles) == length:
            return ""
        return (
            f"there are {len(self.rles)} masks of {self.size}, the clip has {length} frames of "
            f"{tuple(size)} (height, width)"
        )

    def masks(self) -> Iterator[BoolHW | None]:
        """Decode frame by frame (never the whole clip at once)."""
        for frame in range(len(self.rles)):
            yield self.mask(frame)

    def area(self) -> list[int | None]:
        """Foreground pixels per frame, without decoding."""
        # One by one: of a list of more than 255, pycocotools (2.0.11) can't tell the areas.
        return [
            None if counts is None else int(coco_mask.area({"size": list(self.size), "counts": counts}))
            for counts in self.rles
        ]

    @property
    def empty_throughout(self) -> bool:
        """True if no frame has a foreground pixel (one without a mask has none)."""
        sized = {"size": list(self.size)}
        return not any(c is not None and coco_mask.area({**sized, "counts": c}) for c in self.rles)


def union_rle(counts: Sequence[bytes], size: tuple[int, int]) -> bytes:
    """Union of several masks of one size, on run lengths.

    >>> import numpy as np
    >>> left, right = (encode_rle(np.array([row], bool)) for row in ([1, 0, 0], [0, 0, 1]))
    >>> decode_rle(union_rle([left, right], (1, 3)), (1, 3)).tolist()
    [[True, False, True]]
    """
    if len(counts) == 1:
        return counts[0]
    if not counts:
        return encode_rle(np.zeros(size, np.uint8))
    merged = coco_mask.merge([{"size": list(size), "counts": c} for c in counts])
    return bytes(merged["counts"])


def extents(tracks: Iterable[MaskTrack]) -> Counter[str]:
    """How many masks are foreground in ``most`` of a picture and in ``less``; all and nothing are neither.

    What covers most, but not three of the corners, is a large object, which is ``less``, too.
    """
    found = Counter[str]()
    # Of a long track eight or so: all would be a tenth of the time that scoring takes.
    for track in (MaskTrack(track.size, track.rles[:: 1 + len(track) // 8]) for track in tracks):
        height, whole = track.size[0], math.prod(track.size)
        corners = [0, height - 1, whole - height, whole - 1]
        for counts, area in zip(track.rles, track.area(), strict=True):
            if counts and area and area < whole:
                most = 2 * area > whole
                ends = np.cumsum(run_lengths(counts)) if most else corners
                most &= sum(np.searchsorted(ends, corners, side="right") % 2) > 2
                found["most" if most else "less"] += 1
    return found


def wrong_way_round(seen: Mapping[str, int]) -> str:
    """What is told where nearly all masks are foreground in most of their pictures, else nothing."""
    most, less = (seen.get(word, 0) for word in ("most", "less"))
    told = f"{most} of {most + less} masks cover most of their picture: are they the wrong way round?"
    return told if most > 3 + 3 * less else ""


# ── what a dataset yields ────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Clip:
    """A video clip, or an image (a clip of one frame)."""

    id: str  #: unique in its dataset; may contain slashes (ReVOS)
    frame_paths: tuple[Path, ...]  #: one readable image file per frame
    frame_names: tuple[str, ...]  #: the frames' names as the dataset spells them (``"00005"``)
    size: tuple[int, int]  #: (height, width) of the original frames in pixels
    #: Facts of the clip worth keeping (source, COCO image id …).
    attrs: Mapping[str, Any] = field(default_factory=dict)
    #: Files are turned as their headers ask for (EXIF orientation); ``size`` is the size after that. Frames
    #: of video sets stay as they are stored.
    upright: bool = False

    def __post_init__(self) -> None:
        _refuse_others(self.id, *self.frame_names)

    def __len__(self) -> int:
        return len(self.frame_paths)

    def load(self, indices: Sequence[int] | None = None) -> Uint8THWC:
        """Decode the given frames (all by default): uint8 RGB ``(len(indices), height, width, 3)``.

        Raises:
            DataError: a frame is missing, unreadable or of another size than the clip.
        """
        from refseg_bench.files.images import read_rgb, turn_in_words

        chosen = range(len(self.frame_paths)) if indices is None else indices
        out = np.empty((len(chosen), *self.size, 3), np.uint8)
        for row, index in enumerate(chosen):
            path = self.frame_paths[index]
            frame = read_rgb(path, upright=self.upright)
            if frame.shape[:2] != self.size:
                raise DataError(
                    f"Frame is {frame.shape[:2]}, its clip '{self.id}' is {self.size} (height, width)."
                    + turn_in_words(path, upright=self.upright),
                    where=path,
                    hint="Restore the original frame, or check with `refseg data verify`.",
                )
            out[row] = frame
        return out


@dataclass(frozen=True, slots=True)
class Expression:
    """A referring expression about one clip."""

    id: str  #: unique in its clip, as the dataset spells it
    text: str  #: the words, untouched
    #: Type, annotator, object ids … whatever protocols or breakdowns need. JSON values.
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _refuse_others(self.id, self.text)


def _refuse_others(*texts: object) -> None:
    for one in texts:
        if not isinstance(one, str):
            raise DataError(
                f"An id, frame name or text is no str: {one!r}.", hint="Make it one in the data set."
            )


def sample_id(clip_id: str, expression_id: str) -> str:
    """The id of one sample: ``"{clip.id}/{expression.id}"``.

    Expression ids never hold a slash, so the last slash separates the two.

    >>> sample_id("set/video", "3")
    'set/video/3'
    """
    return f"{clip_id}/{expression_id}"


@dataclass(frozen=True, slots=True)
class Target:
    """The annotated truth of one sample; only protocols and the oracle bound ever see it."""

    size: tuple[int, int]
    length: int
    #: One track per annotated object the expression means; empty = the target is absent.
    objects: tuple[MaskTrack, ...]
    object_ids: tuple[str, ...] = ()  #: the dataset's name of each object, same order
    void: MaskTrack | None = None  #: pixels no protocol with ``void=ignore`` counts, or ``None``
    #: Doubly covered pixels per object part where the format has them (polygons that overlap within one COCO
    #: annotation), or ``None``.
    overlap: MaskTrack | None = None
    #: Pixels covered three times or more, four times or more … where there are any.
    deeper: tuple[MaskTrack, ...] = ()

    def union(self) -> MaskTrack:
        """All objects as one track. A frame none of them annotates stays ``None``."""
        return MaskTrack.union(self.objects, self.size, self.length)


# ── what a method returns ────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class HeatPoint:
    """Where a grounding method would click: the peak of its map."""

    frame: int  #: index into the clip's frames
    #: y, x: position in [0, 1], measured at pixel centres: pixel row r is ``(r + 0.5) / height``. What lies
    #: outside, as pixels do, is a ``ValueError``.
    y: float
    x: float
    value: float = 0.0  #: the map's value there, in the method's own unit

    def __post_init__(self) -> None:
        if not (self.frame >= 0 and 0 <= self.y <= 1 and 0 <= self.x <= 1):
            raise ValueError(f"y={self.y:g}, x={self.x:g} of frame {self.frame} is no point in [0, 1]")


@dataclass(frozen=True)
class Grounding:
    """A method's answer for one expression."""

    expression: Expression  #: the expression it answers
    track: MaskTrack  #: one mask per frame of the clip
    #: Peak of the heat map, for point accuracy; ``None`` where the method has no map.
    point: HeatPoint | None = None
    #: True if the method *flags* that nothing is meant, the answer "absent" (its masks are then best empty,
    #: as most tools see nothing else); ``None`` = it can't.
    no_target: bool | None = None
    #: Named grey volumes ``(T, h, w)`` in [0, 1] worth showing in a report, with the frame indices they
    #: belong to under the same name in ``map_frames``.
    maps: Mapping[str, FloatTHW] = field(default_factory=dict)
    #: Frame indices (length T) per map.
    map_frames: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    #: Anything JSON a reader may want (object word, tracklet scores, candidate points).
    details: Mapping[str, Any] = field(default_factory=dict)
    #: Seconds per stage spent for this expression, by stage name.
    seconds: Mapping[str, float] = field(default_factory=dict)
    #: What a chat model was shown, as JPEG files by the digest that ``details`` name it by.
    pictures: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SampleFailure:
    """Why a sample has no prediction: the exception's class, text and traceback."""

    kind: str
    message: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one sample was predicted on."""

    text: str  #: the expression's words
    frames: tuple[int, str, str]  #: how many frames, and the names of the first and the last
    size: tuple[int, int]  #: (height, width) of the clip
    facts: str  #: digest of the words, all frame names and the size
    files: str  #: digest of the bytes of all frames; empty where they couldn't be read
    #: Digest of the frame files' sizes and times, by which the same files are known without reading them.
    state: str
    truth: str = ""  #: digest of the target, where the method saw it (bounds do); else empty
    #: Digest of the content of all weights that the method used; empty where it has none, or they couldn't be
    #: told.
    weights: str = ""


#: How a sample is answered: flagged as ``absent``; with ``empty`` masks and no such flag; with ``masks``.
Answer = Literal["absent", "empty", "masks"]


@dataclass(frozen=True)
class Prediction:
    """What the store keeps of one sample: a track or a failure, never both."""

    sample: str
    clip: str
    expression: str
    track: MaskTrack | None = None
    failure: SampleFailure | None = None
    point: HeatPoint | None = None
    no_target: bool | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_mb: float = 0.0
    #: What it was predicted on; ``None`` = not known (a record of an older version).
    inputs: Inputs | None = None
    turn: int = 0  #: how often the sample had been predicted before, on other data
    #: As in :class:`Grounding`; they lie beside the record, which doesn't hold them.
    pictures: Mapping[str, bytes] = field(default_factory=dict, compare=False)

    @property
    def ok(self) -> bool:
        """True if there is a track."""
        return self.failure is None

    @property
    def answer(self) -> Answer | None:
        """What it says about the target; ``None`` where nothing was predicted."""
        if self.no_target and self.ok:
            return "absent"
        if self.track is None or not any(counts is not None for counts in self.track.rles):
            return None
        return "empty" if self.track.empty_throughout else "masks"


# ── what a protocol returns ──────────────────────────────────────────────────

Status = Literal["ok", "failed", "missing"]


@dataclass(frozen=True)
class Score:
    """The values of one scored unit (a sample, an object, an annotator's object …)."""

    unit: str  #: id of the unit under the protocol; a sample id where the unit is the expression
    cluster: str  #: what intervals cluster by: the clip's id
    values: Mapping[str, float]  #: metric name → value, in the protocol's own unit
    attrs: Mapping[str, Any] = field(default_factory=dict)  #: attributes for breakdowns


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval (``low``/``high`` are NaN where none can be made)."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True)
class Result:
    """One row of a results table: all metrics of a run under one protocol, and their coverage."""

    protocol: str  #: ``id@version``, with the options that differ from their defaults (``:option=value``)
    metrics: Mapping[str, Estimate]  #: name → estimate, in the protocol's own unit (see ``scale``)
    n: int  #: units scored
    expected: int
    #: failed, missing: samples without a prediction, by reason.
    failed: int
    missing: int
    scale: float = 1.0  #: 1.0 where the metrics are fractions, 100.0 where percent
    details: Mapping[str, Any] = field(default_factory=dict)

    def percent(self, metric: str) -> float:
        """What a metric is multiplied with to be in percent: some are fractions whatever ``scale`` says."""
        # Rows of before don't tell; GRES' alone have such.
        old = ("N-acc", "T-acc") if self.protocol.startswith("grefcoco-gres@") else ()
        return 100.0 if metric in (self.details.get("fractions") or old) else 100.0 / self.scale

    @property
    def coverage(self) -> dict[str, int]:
        """``n``, ``expected``, ``failed`` and ``missing``, by name."""
        return {"n": self.n, "expected": self.expected, "failed": self.failed, "missing": self.missing}

    @property
    def whole(self) -> bool:
        """True if no sample lacks a prediction, whatever the protocol counts it as."""
        return not (self.n < self.expected or self.failed or self.missing)

    @property
    def part(self) -> str:
        """How much less the data set held than its release; empty = it was whole, or that isn't known."""
        told = self.details.get("part")
        return told if isinstance(told, str) else ""

    @property
    def truth(self) -> tuple[str, str]:
        """Digests of its units and of the facts of their targets; empty where they aren't known."""
        told = self.details.get("truth")
        units, facts = told if isinstance(told, list) and len(told) == 2 else ("", "")
        return str(units), str(facts)

    @property
    def answers(self) -> dict[str, int]:
        """Samples by how they were answered (see :data:`Answer`); 0 where that isn't known."""
        known = self.details.get("answers")
        found = known if isinstance(known, Mapping) else {}
        counts = {answer: found.get(answer, 0) for answer in get_args(Answer)}
        return {answer: n if isinstance(n, int) else 0 for answer, n in counts.items()}
