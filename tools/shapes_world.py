"""The *shapes* world: short procedural videos with exact masks and true expressions.

A scene is drawn from a seed: textured objects that move, pass behind each other, leave the
picture and come back, over a textured ground seen by a slightly shaking camera. From the scene's
geometry follow the exact visible mask of every object in every frame and a list of expressions
that are *true and unambiguous by construction*: each is a predicate that is evaluated on all
objects, and an expression is only kept if the objects that satisfy it are the ones meant and no
other object comes near to satisfying it.

The shipped ``shapes`` data set is written from this world by ``tools/make_shapes.py``; the tiny
models are trained on other seeds of it (``tools/train``). This module draws and describes; it
writes no files and knows no model.

Everything is deterministic given the seed. OpenCV is imported at first use.
Axes in array names: ``T`` frames, ``N`` objects, ``H`` rows, ``W`` columns, ``C`` RGB, ``P`` points.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench.errors import ConfigError

Kind = Literal["appearance", "relation", "motion", "multi", "reasoning", "absent"]
KINDS: tuple[Kind, ...] = ("appearance", "relation", "motion", "multi", "reasoning", "absent")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 35, 40),
    "orange": (240, 135, 25),
    "yellow": (235, 215, 40),
    "green": (35, 155, 60),
    "blue": (35, 85, 205),
    "purple": (130, 50, 165),
}
TEXTURES = ("plain", "striped", "dotted", "checked")
OUTLINES = ("circle", "ellipse", "square", "triangle", "hexagon", "star", "cross", "blob")
GROUNDS: dict[str, tuple[int, int, int]] = {
    "sand": (196, 180, 150),
    "stone": (120, 120, 124),
    "snow": (222, 226, 230),
    "soil": (92, 76, 66),
    "moss": (128, 142, 118),
}
MOTIONS = ("still", "left", "right", "up", "down")
_STEP = {"left": (0.0, -1.0), "right": (0.0, 1.0), "up": (-1.0, 0.0), "down": (1.0, 0.0), "still": (0.0, 0.0)}
_NOUNS = ("one", "object", "thing", "shape")
_PLURALS = ("ones", "objects", "things", "shapes")
_STRIPE_NOUN = {"striped": "stripes", "dotted": "dots", "checked": "checks"}

NOTHING = "nothing"
"""The word that answers an expression whose target is not there."""
SEVERAL = "several"
"""The word that answers an expression whose targets share neither colour nor texture."""


# ── what a world is made of ──────────────────────────────────────────────────


@dataclass(frozen=True)
class World:
    """How scenes are drawn.

    Attributes:
        height: rows of a frame in pixels.
        width: columns of a frame in pixels.
        n_frames: frames of a clip.
        path_frames: frames in which an object goes all of its path: a shorter clip shows the middle of it. By
            default those of the clip.
        difficulty: 0 (few, large, well separated objects, calm camera) to 1 (crowded, small,
            camouflaged, shaking, noisy).
        objects: smallest and largest number of objects in a scene.
    """

    height: int = 192
    width: int = 256
    n_frames: int = 18
    difficulty: float = 0.5
    objects: tuple[int, int] = (3, 5)
    path_frames: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.difficulty <= 1.0:
            raise ConfigError(
                f"difficulty is {self.difficulty}.", allowed=["0.0 to 1.0"], hint="Choose a value in range."
            )
        if self.height < 48 or self.width < 48 or self.n_frames < 1:
            raise ConfigError(
                f"A clip of {self.n_frames} frames of {self.height} x {self.width} can't be drawn.",
                allowed=["at least 48 x 48 pixels and 1 frame"],
                hint="Choose a larger clip.",
            )
        if not 1 <= self.objects[0] <= self.objects[1] <= 8:
            raise ConfigError(
                f"objects is {self.objects}.",
                allowed=["1 <= smallest <= largest <= 8"],
                hint="Choose a range.",
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a frame."""
        return self.height, self.width


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        colour: key of :data:`COLOURS`.
        texture: one of :data:`TEXTURES`.
        big: whether its size word is "big" (else "small").
        outline: one of :data:`OUTLINES`.
        radius: half its extent in pixels.
        angle: rotation of outline and texture in radians.
        motion: direction of its net movement, one of :data:`MOTIONS`.
        centre_T2: (y, x) of its centre per frame, before camera jitter.
        vertices_P2: its outline relative to the centre, (y, x) in pixels.
        texture_seed: what the details of its surface are drawn from.
    """

    colour: str
    texture: str
    big: bool
    outline: str
    radius: float
    angle: float
    motion: str
    centre_T2: NDArray[np.float64]
    vertices_P2: NDArray[np.float64]
    texture_seed: int

    @property
    def name(self) -> str:
        """Colour and texture as one word: ``"red-striped"``."""
        return f"{self.colour}-{self.texture}"


@dataclass(frozen=True)
class Scene:
    """A scene before any pixel is drawn.

    Attributes:
        seed: what it was drawn from.
        world: how.
        ground: key of :data:`GROUNDS`.
        things: objects, back to front: a later one covers an earlier one.
        jitter_T2: camera offset (y, x) in whole pixels per frame.
    """

    seed: int
    world: World
    ground: str
    things: tuple[Thing, ...]
    jitter_T2: NDArray[np.int64]


@dataclass(frozen=True)
class Footage:
    """The drawn frames of a scene.

    Attributes:
        indices: which frames of the scene these are.
        frames_THWC: uint8 RGB.
        ids_THW: uint8, 0 = ground, k = ``scene.things[k - 1]`` is the visible one.
        whole_TN: pixels each object would show inside the frame if nothing covered it.
        seen_TN: pixels it does show.
        covered_by_TNN: ``[t, i, j]`` pixels of object i hidden by object j.
        full_N: pixels of the whole object, outside the frame too.
    """

    indices: tuple[int, ...]
    frames_THWC: NDArray[np.uint8]
    ids_THW: NDArray[np.uint8]
    whole_TN: NDArray[np.int64]
    seen_TN: NDArray[np.int64]
    covered_by_TNN: NDArray[np.int64]
    full_N: NDArray[np.int64]

    def masks_THW(self, thing: int) -> NDArray[np.bool_]:
        """Visible mask of object ``thing`` in every drawn frame."""
        return np.asarray(self.ids_THW == thing + 1)


@dataclass(frozen=True)
class Utterance:
    """An expression about a scene with what it means.

    Attributes:
        text: the words.
        kind: one of :data:`KINDS`.
        targets: indices into ``scene.things``; empty if nothing in the scene is meant.
        word: one word for the target: ``colour-texture``, the shared colour or texture of several,
            :data:`SEVERAL` or :data:`NOTHING`.
        dynamic: whether it takes more than one frame to know the target.
    """

    text: str
    kind: Kind
    targets: tuple[int, ...]
    word: str
    dynamic: bool = False
    attrs: dict[str, Any] = field(default_factory=dict)


# ── drawing a scene ──────────────────────────────────────────────────────────


def sample_scene(seed: int, world: World | None = None) -> Scene:
    """Draw a scene.

    Args:
        seed: any non-negative integer; the same seed and world give the same scene.
        world: how scenes are drawn; the default world if omitted.
    """
    world = world or World()
    rng = np.random.default_rng([seed, 7])
    count = int(rng.integers(world.objects[0], world.objects[1] + 1))
    looks = _looks(rng, count)
    bodies = [_body(rng, world, *look) for look in looks]
    centres = _paths(rng, world, bodies)
    things = tuple(
        Thing(motion=motion, centre_T2=path, **body)
        for body, (motion, path) in zip(bodies, centres, strict=True)
    )
    amplitude = 0.4 + 1.4 * world.difficulty
    steps = rng.normal(0, amplitude, (world.n_frames, 2))
    jitter = np.clip(np.rint(steps), -3, 3).astype(np.int64)
    return Scene(seed, world, str(rng.choice(list(GROUNDS))), things, jitter)


def _looks(rng: np.random.Generator, count: int) -> list[tuple[str, str, bool]]:
    """Colour, texture and size of every object: distinct names, but often a shared half.

    Distractors that share one half of the name are what makes an expression such as "the red
    striped one" need both of its words.
    """
    colours = list(COLOURS)
    looks: list[tuple[str, str, bool]] = []
    names: set[tuple[str, str]] = set()
    while len(looks) < count:
        colour, texture = str(rng.choice(colours)), str(rng.choice(TEXTURES))
        if looks and rng.random() < 0.55:
            other = looks[int(rng.integers(len(looks)))]
            colour, texture = (other[0], texture) if rng.random() < 0.5 else (colour, other[1])
        twin = rng.random() < 0.12  # the same name twice: told apart by size, place or motion
        if (colour, texture) in names and not twin:
            continue
        names.add((colour, texture))
        looks.append((colour, texture, bool(rng.random() < 0.5)))
    return looks


def _body(rng: np.random.Generator, world: World, colour: str, texture: str, big: bool) -> dict[str, Any]:
    unit = min(world.height, world.width * 0.75) / 192.0
    shrink = 1.0 - 0.22 * world.difficulty
    radius = (rng.uniform(34, 41) if big else rng.uniform(20, 24)) * unit * shrink
    outline = str(rng.choice(OUTLINES))
    angle = float(rng.uniform(0, 2 * math.pi))
    return {
        "colour": colour,
        "texture": texture,
        "big": big,
        "outline": outline,
        "radius": float(radius),
        "angle": angle,
        "vertices_P2": _vertices(outline, radius, angle, rng),
        "texture_seed": int(rng.integers(2**31)),
    }


def _vertices(outline: str, radius: float, angle: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Outline around (0, 0), scaled so that all outlines of one radius have similar areas."""
    turn = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    if outline == "circle":
        reach = np.full_like(turn, 0.95)
    elif outline == "ellipse":
        reach = 0.72 / np.sqrt(np.cos(turn) ** 2 * 0.5 + np.sin(turn) ** 2 * 1.25) * 0.98
    elif outline == "star":
        turn = np.linspace(0, 2 * math.pi, 10, endpoint=False)
        reach = np.where(np.arange(10) % 2 == 0, 1.25, 0.66)
    elif outline == "cross":
        a, b = 1.12, 0.46
        corners = [
            (b, a),
            (b, b),
            (a, b),
            (a, -b),
            (b, -b),
            (b, -a),
            (-b, -a),
            (-b, -b),
            (-a, -b),
            (-a, b),
            (-b, b),
            (-b, a),
        ]
        turn = np.array([math.atan2(y, x) for y, x in corners])
        reach = np.array([math.hypot(y, x) for y, x in corners])
    elif outline == "blob":
        phases = rng.uniform(0, 2 * math.pi, 3)
        reach = 0.95 + sum(0.13 * np.sin((k + 2) * turn + phase) for k, phase in enumerate(phases))
    else:
        sides = {"triangle": 3, "square": 4, "hexagon": 6}[outline]
        turn = np.linspace(0, 2 * math.pi, sides, endpoint=False)
        reach = np.full(sides, {3: 1.35, 4: 1.2, 6: 1.05}[sides])
    return np.stack([np.sin(turn + angle) * reach, np.cos(turn + angle) * reach], axis=1) * radius


def _paths(
    rng: np.random.Generator, world: World, bodies: Sequence[dict[str, Any]]
) -> list[tuple[str, NDArray[np.float64]]]:
    """Find a path per object: places are tried until objects mostly keep apart at both ends.

    One object in some scenes is led behind or before another, some leave, some come back.
    """
    height, width, length = world.height, world.width, world.n_frames
    whole = world.path_frames or length
    skipped = (whole - length) / 2
    time_T = np.linspace(0.0, 1.0, length) if whole == length else (np.arange(length) + skipped) / (whole - 1)
    paths: list[tuple[str, NDArray[np.float64]]] = []
    for index, body in enumerate(bodies):
        radius = body["radius"]
        best: tuple[float, str, NDArray[np.float64]] | None = None
        cross = index > 0 and rng.random() < 0.25
        for _ in range(12):
            motion = str(rng.choice(MOTIONS, p=[0.32, 0.2, 0.2, 0.14, 0.14])) if length > 1 else "still"
            step = np.array(_STEP[motion])
            extent = width if step[1] else height
            travel = float(rng.uniform(0.32, 0.5)) * extent if motion != "still" else 0.0
            style = str(rng.choice(["through", "leave", "enter", "return"], p=[0.62, 0.16, 0.12, 0.1]))
            middle = np.array([rng.uniform(0.2, 0.8) * height, rng.uniform(0.16, 0.84) * width])
            if cross and motion != "still":
                middle = paths[int(rng.integers(index))][1][length // 2] + rng.normal(0, 4, 2)
            lo, hi = np.array([radius * 0.8] * 2), np.array([height, width]) - radius * 0.8
            progress = time_T - 0.5
            if motion == "still" or style == "through":
                half = np.abs(step) * travel / 2
                middle = np.clip(
                    middle, np.minimum(lo + half, (lo + hi) / 2), np.maximum(hi - half, (lo + hi) / 2)
                )
            else:
                # the far end of the path lies outside the frame, along the direction of movement
                axis = 1 if step[1] else 0
                ahead = step[axis] > 0
                limit = (height, width)[axis]
                middle[1 - axis] = np.clip(middle[1 - axis], lo[1 - axis], hi[1 - axis])
                outside = limit + radius * 2.2 if ahead else -radius * 2.2
                if style == "enter":
                    outside = -radius * 2.2 if ahead else limit + radius * 2.2
                inside = rng.uniform(0.35, 0.65) * limit
                travel = abs(outside - inside)
                middle[axis] = (outside + inside) / 2
                if style == "return":  # out by the middle of the clip, back at its end
                    progress = 0.5 - np.abs(2 * time_T - 1.0)
                    motion = "return"
            path = middle + progress[:, None] * travel * step
            crowding = _crowding(path, radius, paths, bodies) * (0.3 if cross else 1.0)
            if best is None or crowding < best[0]:
                best = (crowding, motion, path)
            if best[0] < 0.05:
                break
        assert best is not None
        paths.append((best[1], best[2]))
    return paths


def _crowding(
    path_T2: NDArray[np.float64],
    radius: float,
    paths: Sequence[tuple[str, NDArray[np.float64]]],
    bodies: Sequence[dict[str, Any]],
) -> float:
    """Mean share of frames in which the path comes too near to an earlier one, ends weigh more."""
    total = 0.0
    for (_, other), body in zip(paths, bodies, strict=False):
        near = np.hypot(*(path_T2 - other).T) < 0.95 * (radius + body["radius"])
        total += float(near.mean()) + 0.5 * float(near[0]) + 0.5 * float(near[-1])
    return total


# ── drawing pixels ───────────────────────────────────────────────────────────


def render(scene: Scene, indices: Sequence[int] | None = None) -> Footage:
    """Draw frames of a scene with the exact visible object of every pixel.

    Args:
        scene: the scene.
        indices: which frames; all by default. A frame looks the same whatever others are drawn.
    """
    import cv2

    world = scene.world
    chosen = tuple(range(world.n_frames)) if indices is None else tuple(int(i) for i in indices)
    height, width = world.size
    count = len(scene.things)
    stamps = [_stamp(thing) for thing in scene.things]
    ground = _ground(scene, margin=4)
    frames = np.empty((len(chosen), height, width, 3), np.uint8)
    ids = np.zeros((len(chosen), height, width), np.uint8)
    whole = np.zeros((len(chosen), count), np.int64)
    covered = np.zeros((len(chosen), count, count), np.int64)
    noise = 0.6 + 1.2 * world.difficulty
    grain_field = _grain(noise)
    for row, index in enumerate(chosen):
        dy, dx = (int(v) for v in scene.jitter_T2[index])
        frame = frames[row]
        frame[:] = ground[4 - dy : 4 - dy + height, 4 - dx : 4 - dx + width]
        for k, (thing, (stencil, surface)) in enumerate(zip(scene.things, stamps, strict=True)):
            half = stencil.shape[0] // 2
            top = round(float(thing.centre_T2[index, 0])) + dy - half
            left = round(float(thing.centre_T2[index, 1])) + dx - half
            y0, y1 = max(top, 0), min(top + stencil.shape[0], height)
            x0, x1 = max(left, 0), min(left + stencil.shape[1], width)
            if y0 >= y1 or x0 >= x1:
                continue
            part = stencil[y0 - top : y1 - top, x0 - left : x1 - left]
            window = ids[row, y0:y1, x0:x1]
            whole[row, k] = int(part.sum())
            if window.any():
                hidden = np.bincount(window[part], minlength=count + 1)
                covered[row, :count, k] += hidden[1 : count + 1]
            window[part] = k + 1
            frame[y0:y1, x0:x1][part] = surface[y0 - top : y1 - top, x0 - left : x1 - left][part]
        # sensor noise: a window into one fixed field, so that a frame never depends on the others
        grain = _tile(grain_field, height, width, scene.seed * 31 + index * 53, scene.seed * 17 + index * 29)
        cv2.add(frame, grain, dst=frame, dtype=cv2.CV_8U)
    seen = np.stack([np.bincount(i.ravel(), minlength=count + 1)[1:] for i in ids]) if chosen else whole
    full = np.array([int(stencil.sum()) for stencil, _ in stamps], np.int64)
    return Footage(chosen, frames, ids, whole, seen.astype(np.int64), covered, full)


@functools.lru_cache(maxsize=1)
def _noise_field() -> NDArray[np.float32]:
    return np.random.default_rng(20251121).normal(0, 1, (320, 384)).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _grain(noise: float) -> NDArray[np.int16]:
    return np.repeat(np.rint(_noise_field() * noise).astype(np.int16)[..., None], 3, axis=2)


def _tile(field: NDArray[Any], height: int, width: int, top: int, left: int) -> NDArray[Any]:
    """Cut a window of the field, which repeats where the window outgrows it."""
    if height <= 256 and width <= 320:
        return field[top % 64 : top % 64 + height, left % 64 : left % 64 + width]
    rows = (top + np.arange(height)) % field.shape[0]
    cols = (left + np.arange(width)) % field.shape[1]
    return np.asarray(field[rows[:, None], cols[None, :]])


def _stamp(thing: Thing) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Draw the object's stencil and its surface, on a square around its centre."""
    import cv2

    half = math.ceil(float(np.abs(thing.vertices_P2).max())) + 1
    side = 2 * half + 1
    canvas = np.zeros((side, side), np.uint8)
    points = np.rint((thing.vertices_P2[:, ::-1] + half) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [points], 1, shift=4)
    return canvas.astype(bool), _surface(thing, side)


def _surface(thing: Thing, side: int) -> NDArray[np.uint8]:
    """Paint the base colour with the texture's marks; marks are near-white or near-black, never a colour."""
    rng = np.random.default_rng([thing.texture_seed, 3])
    base = np.clip(np.array(COLOURS[thing.colour], np.float64) + rng.normal(0, 9, 3), 0, 255)
    dark = rng.random() < 0.5
    mark = np.array((18.0, 18.0, 22.0)) if dark else np.array((244.0, 244.0, 240.0))
    grid = np.arange(side, dtype=np.float64) - side / 2
    y, x = np.meshgrid(grid, grid, indexing="ij")
    turn = float(rng.uniform(0, math.pi))
    u = x * math.cos(turn) + y * math.sin(turn)
    v = -x * math.sin(turn) + y * math.cos(turn)
    period = float(rng.uniform(11.0, 13.5))
    if thing.texture == "striped":
        marked = (u / period) % 1.0 < 0.42
    elif thing.texture == "dotted":
        pu, pv = (u / period) % 1.0 - 0.5, (v / period) % 1.0 - 0.5
        marked = pu**2 + pv**2 < 0.3**2
    elif thing.texture == "checked":
        cell = period * 0.62
        marked = (np.floor(u / cell) + np.floor(v / cell)) % 2 == 0
    else:
        marked = np.zeros((side, side), bool)
    shade = 1.0 + 0.10 * (x * math.cos(turn + 1.0) + y * math.sin(turn + 1.0)) / (side / 2)
    surface = np.where(marked[..., None], mark, base) * shade[..., None]
    return np.clip(surface, 0, 255).astype(np.uint8)


def _ground(scene: Scene, margin: int) -> NDArray[np.uint8]:
    """Ground larger than the frame by ``margin`` on each side: smooth patches under fine grain."""
    import cv2

    rng = np.random.default_rng([scene.seed, 11])
    height, width = scene.world.height + 2 * margin, scene.world.width + 2 * margin
    strength = 0.5 + 0.5 * scene.world.difficulty
    tone = np.zeros((height, width), np.float32)
    for cells, weight in ((4, 14.0), (12, 9.0), (40, 7.0)):
        coarse = rng.normal(0, 1, (cells, cells * 4 // 3 + 1)).astype(np.float32)
        tone += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR) * weight * strength
    tone += (
        _tile(_noise_field(), height, width, int(rng.integers(64)), int(rng.integers(64))) * 2.5 * strength
    )
    base = np.array(GROUNDS[scene.ground], np.float32) + rng.normal(0, 5, 3).astype(np.float32)
    return np.asarray(np.clip(base + tone[..., None], 0, 255).astype(np.uint8))


# ── saying what is there ─────────────────────────────────────────────────────


def describe(scene: Scene, footage: Footage, seed: int = 0) -> list[Utterance]:
    """All expressions that are true and unambiguous in a scene, each kind in random wording.

    Args:
        scene: the scene.
        footage: its drawn frames; what is hidden or outside is judged on them, so draw all frames
            (or an even sample of them).
        seed: wording and choice of absent targets.

    Returns:
        Utterances in a random order, without repeated texts. Objects that are hardly ever visible
        are not meant by any.
    """
    rng = np.random.default_rng([scene.seed, seed, 13])
    facts = _Facts(scene, footage)
    found = [
        *_appearance(facts, rng),
        *_relation(facts, rng),
        *_motion(facts, rng),
        *_multi(facts, rng),
        *_reasoning(facts, rng),
        *_absent(facts, rng),
    ]
    order = rng.permutation(len(found))
    unique: dict[str, Utterance] = {}
    for index in order:
        unique.setdefault(found[int(index)].text, found[int(index)])
    return list(unique.values())


class _Facts:
    """What can be read off a scene: visibility, tracks and who is hidden by whom."""

    def __init__(self, scene: Scene, footage: Footage) -> None:
        self.scene = scene
        self.things = scene.things
        self.n = len(scene.things)
        seen = footage.seen_TN / np.maximum(footage.full_N, 1)  # share of the object that shows
        inside = footage.whole_TN / np.maximum(footage.full_N, 1)
        self.seen_TN, self.inside_TN = seen, inside
        self.size = scene.world.size
        self.centre_TN2 = np.stack([t.centre_T2[list(footage.indices)] for t in scene.things], axis=1)
        self.visible_N = (seen > 0.5).sum(0) >= max(1, 0.3 * len(footage.indices))
        # hidden: clearly visible at some time, mostly covered at another while inside the frame
        hidden_TN = (inside > 0.7) & (footage.seen_TN < 0.4 * footage.whole_TN)
        by = footage.covered_by_TNN
        self.hidden_by = [
            sorted({int(by[t, i].argmax()) for t in np.flatnonzero(hidden_TN[:, i])})
            if (seen[:, i] > 0.8).sum() >= 2 and hidden_TN[:, i].sum() >= 1
            else []
            for i in range(self.n)
        ]
        self.touched_N = [bool((by[:, i].sum(1) > 0.12 * footage.full_N[i]).any()) for i in range(self.n)]

    def motions(self, i: int) -> str:
        return self.things[i].motion

    def pick(self, members: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted(int(i) for i in members))

    def word(self, targets: Sequence[int]) -> str:
        if not targets:
            return NOTHING
        names = {self.things[i].name for i in targets}
        colours = {self.things[i].colour for i in targets}
        textures = {self.things[i].texture for i in targets}
        for options in (names, colours, textures):
            if len(options) == 1:
                return options.pop()
        return SEVERAL

    def say(
        self, text: str, kind: Kind, targets: Sequence[int], *, dynamic: bool = False
    ) -> Utterance | None:
        """Make the utterance, unless one of its targets is hardly ever visible."""
        if any(not self.visible_N[i] for i in targets):
            return None
        return Utterance(text, kind, self.pick(targets), self.word(targets), dynamic)


def _kept(*candidates: Utterance | None) -> list[Utterance]:
    return [c for c in candidates if c is not None]


def _choose(rng: np.random.Generator, *options: str) -> str:
    return options[int(rng.integers(len(options)))]


def _look_phrase(rng: np.random.Generator, colour: str, texture: str, noun: str, size: str = "") -> str:
    """Say an appearance as "the big red striped one" or "the big red one with stripes"."""
    lead = f"the {size} " if size else "the "
    if texture in _STRIPE_NOUN and rng.random() < 0.25:
        return f"{lead}{colour} {noun} with {_STRIPE_NOUN[texture]}"
    return f"{lead}{colour} {texture} {noun}"


def _appearance(facts: _Facts, rng: np.random.Generator) -> list[Utterance]:
    out: list[Utterance | None] = []
    things = facts.things
    for i, thing in enumerate(things):
        noun = _choose(rng, *_NOUNS)
        same = [j for j, t in enumerate(things) if t.name == thing.name]
        if same == [i]:
            out.append(facts.say(_look_phrase(rng, thing.colour, thing.texture, noun), "appearance", [i]))
        elif sum(things[j].big == thing.big for j in same) == 1:
            size = "big" if thing.big else "small"
            out.append(
                facts.say(_look_phrase(rng, thing.colour, thing.texture, noun, size), "appearance", [i])
            )
        if [j for j, t in enumerate(things) if t.colour == thing.colour] == [i]:
            out.append(facts.say(f"the {thing.colour} {noun}", "appearance", [i]))
        if [j for j, t in enumerate(things) if t.texture == thing.texture] == [i]:
            text = f"the {thing.texture} {noun}"
            if thing.texture in _STRIPE_NOUN and rng.random() < 0.3:
                text = f"the {noun} with {_STRIPE_NOUN[thing.texture]}"
            out.append(facts.say(text, "appearance", [i]))
        peers = [j for j, t in enumerate(things) if t.colour == thing.colour and t.big == thing.big]
        if peers == [i] and sum(t.colour == thing.colour for t in things) > 1:
            out.append(
                facts.say(f"the {'big' if thing.big else 'small'} {thing.colour} {noun}", "appearance", [i])
            )
    return _kept(*out)


def _relation(facts: _Facts, rng: np.random.Generator) -> list[Utterance]:
    """Places that hold in every frame: beyond the others, or to one side of a named object."""
    out: list[Utterance | None] = []
    things, n = facts.things, facts.n
    inside = bool((facts.inside_TN > 0.6).all())
    margin = 0.06 * min(facts.size)
    sides = (("left", 1, -1), ("right", 1, 1), ("top", 0, -1), ("bottom", 0, 1))
    for word, axis, sign in sides:
        ahead_TN = facts.centre_TN2[:, :, axis] * sign
        for i in range(n):
            noun = _choose(rng, *_NOUNS)
            others = [j for j in range(n) if j != i]
            lead = {j: bool((ahead_TN[:, i] > ahead_TN[:, j] + margin).all()) for j in others}
            if inside and others and all(lead.values()):
                text = {
                    "left": _choose(rng, f"the leftmost {noun}", f"the {noun} on the far left"),
                    "right": _choose(rng, f"the rightmost {noun}", f"the {noun} on the far right"),
                    "top": f"the topmost {noun}",
                    "bottom": f"the lowest {noun}",
                }[word]
                out.append(facts.say(text, "relation", [i]))
            for colour_of in ("colour", "texture"):
                value = getattr(things[i], colour_of)
                rivals = [j for j in others if getattr(things[j], colour_of) == value]
                there = bool((facts.inside_TN[:, [i, *rivals]] > 0.4).all())
                if rivals and there and all(lead[j] for j in rivals) and axis == 1:
                    out.append(facts.say(f"the {value} {noun} on the {word}", "relation", [i]))
            for j in others:
                if sum(t.name == things[j].name for t in things) > 1 or not facts.visible_N[j]:
                    continue
                anchor = f"the {things[j].colour} {things[j].texture} one"
                rest = [k for k in others if k != j]
                away = all(bool((ahead_TN[:, k] < ahead_TN[:, j] - 0.2 * margin).all()) for k in rest)
                there = bool((facts.inside_TN[:, [i, j]] > 0.4).all())
                if rest and there and lead[j] and away:
                    place = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}[word]
                    out.append(facts.say(f"the {noun} {place} {anchor}", "relation", [i]))
    return _kept(*out)


def _motion(facts: _Facts, rng: np.random.Generator) -> list[Utterance]:
    out: list[Utterance | None] = []
    motions = [facts.motions(i) for i in range(facts.n)]
    if facts.scene.world.n_frames < 4:
        return []
    for i, motion in enumerate(motions):
        noun = _choose(rng, *_NOUNS)
        thing = facts.things[i]
        if motion in ("left", "right", "up", "down"):
            phrase = _choose(
                rng,
                *(
                    (f"that moves {motion}", f"moving to the {motion}", f"going {motion}")
                    if motion in ("left", "right")
                    else (f"that moves {motion}", f"moving {motion}", f"going {motion}")
                ),
            )
            # an object that goes out and comes back also moves that way for a while
            if motions.count(motion) == 1 and "return" not in motions:
                out.append(facts.say(f"the {noun} {phrase}", "motion", [i], dynamic=True))
            peers = [j for j in range(facts.n) if facts.things[j].colour == thing.colour]
            if (
                len(peers) > 1
                and [motions[j] for j in peers].count(motion) == 1
                and all(motions[j] != "return" for j in peers)
            ):
                out.append(facts.say(f"the {thing.colour} {noun} {phrase}", "motion", [i], dynamic=True))
        if motion == "still" and motions.count("still") == 1:
            phrase = _choose(rng, "that does not move", "standing still", "that stays in place")
            out.append(facts.say(f"the {noun} {phrase}", "motion", [i], dynamic=True))
        starts, ends = facts.inside_TN[0, i], facts.inside_TN[-1, i]
        others = [j for j in range(facts.n) if j != i]
        if (
            motion != "return"
            and starts > 0.8
            and ends < 0.05
            and all(facts.inside_TN[:, j].min() > 0.5 or facts.inside_TN[0, j] < 0.05 for j in others)
        ):
            phrase = _choose(rng, "that leaves the picture", "that goes out of view")
            out.append(facts.say(f"the {noun} {phrase}", "motion", [i], dynamic=True))
        if (
            motion != "return"
            and starts < 0.05
            and ends > 0.8
            and all(facts.inside_TN[0, j] > 0.5 and motions[j] != "return" for j in others)
        ):
            phrase = _choose(rng, "that enters the picture", "that comes into view")
            out.append(facts.say(f"the {noun} {phrase}", "motion", [i], dynamic=True))
    return _kept(*out)


def _multi(facts: _Facts, rng: np.random.Generator) -> list[Utterance]:
    out: list[Utterance | None] = []
    things = facts.things
    groups: list[tuple[str, list[int], bool]] = []
    for attribute in ("colour", "texture"):
        for value in dict.fromkeys(getattr(t, attribute) for t in things):
            members = [i for i, t in enumerate(things) if getattr(t, attribute) == value]
            plural = _choose(rng, *_PLURALS)
            count = {2: "two ", 3: "three "}.get(len(members), "")
            groups.append(
                (
                    _choose(
                        rng, f"the {value} {plural}", f"all {value} {plural}", f"the {count}{value} {plural}"
                    ),
                    members,
                    False,
                )
            )
    motions = [facts.motions(i) for i in range(facts.n)]
    if facts.scene.world.n_frames >= 4 and "return" not in motions:
        for motion in ("left", "right", "up", "down", "still"):
            members = [i for i, m in enumerate(motions) if m == motion]
            plural = _choose(rng, *_PLURALS)
            phrase = (
                "that stand still"
                if motion == "still"
                else _choose(rng, f"that move {motion}", f"moving {motion}")
            )
            groups.append((f"the {plural} {phrase}", members, True))
    for a, b in itertools.combinations(range(facts.n), 2):
        if rng.random() < 0.15 and things[a].name != things[b].name:
            pair = [i for i, t in enumerate(things) if t.name in (things[a].name, things[b].name)]
            if len(pair) == 2:
                first, second = (f"the {things[k].colour} {things[k].texture} one" for k in (a, b))
                groups.append((f"{first} and {second}", pair, False))
    for text, members, dynamic in groups:
        if len(members) > 1:
            out.append(facts.say(text, "multi", members, dynamic=dynamic))
    return _kept(*out)


def _reasoning(facts: _Facts, rng: np.random.Generator) -> list[Utterance]:
    out: list[Utterance | None] = []
    things, n = facts.things, facts.n
    motions = [facts.motions(i) for i in range(n)]
    noun = _choose(rng, *_NOUNS)
    hidden = [i for i in range(n) if facts.hidden_by[i]]
    if len(hidden) == 1 and not any(facts.touched_N[j] for j in range(n) if j != hidden[0]):
        (i,) = hidden
        phrase = _choose(rng, "that hides behind another", "which is hidden for a while")
        out.append(facts.say(f"the {noun} {phrase}", "reasoning", [i], dynamic=True))
        if len(facts.hidden_by[i]) == 1:
            phrase = _choose(rng, "that hides another", "which covers something else for a while")
            out.append(facts.say(f"the {noun} {phrase}", "reasoning", facts.hidden_by[i], dynamic=True))
    returning = [i for i in range(n) if motions[i] == "return"]
    if len(returning) == 1:
        phrase = _choose(rng, "that leaves and comes back", "which goes away and then returns")
        out.append(facts.say(f"the {noun} {phrase}", "reasoning", returning, dynamic=True))
    for attribute in ("colour", "texture"):
        values = [getattr(t, attribute) for t in things]
        odd = [i for i, v in enumerate(values) if values.count(v) == 1]
        if n >= 3 and len(odd) == 1 and len(set(values)) == 2:
            phrase = {
                "colour": _choose(
                    rng, f"the only {noun} of another colour", f"the {noun} whose colour no other has"
                ),
                "texture": _choose(
                    rng, f"the only {noun} of another pattern", f"the {noun} whose pattern no other has"
                ),
            }[attribute]
            out.append(facts.say(phrase, "reasoning", odd))
    bigs = [i for i, t in enumerate(things) if t.big]
    smalls = [i for i, t in enumerate(things) if not t.big]
    if len(bigs) == 1 and n > 1:
        out.append(
            facts.say(
                _choose(
                    rng,
                    f"the {noun} that would need the most paint",
                    f"the {noun} that could cover any other",
                ),
                "reasoning",
                bigs,
            )
        )
    if len(smalls) == 1 and n > 1:
        out.append(
            facts.say(
                _choose(
                    rng,
                    f"the {noun} that would fit inside the others",
                    f"the {noun} that needs the least paint",
                ),
                "reasoning",
                smalls,
            )
        )
    return _kept(*out)


def _absent(facts: _Facts, rng: np.random.Generator) -> list[Utterance]:
    """Names nobody carries: half of the name present (the hard ones), or all of it strange."""
    out: list[Utterance | None] = []
    present = {(t.colour, t.texture) for t in facts.things}
    colours, textures = {c for c, _ in present}, {t for _, t in present}
    missing = [(c, t) for c in COLOURS for t in TEXTURES if (c, t) not in present]
    near = [(c, t) for c, t in missing if c in colours and t in textures]
    half = [(c, t) for c, t in missing if (c in colours) != (t in textures)]
    far = [(c, t) for c, t in missing if c not in colours and t not in textures]
    for pool, count in ((near, 3), (half, 2), (far, 1)):
        for index in rng.permutation(len(pool))[:count]:
            colour, texture = pool[int(index)]
            out.append(facts.say(_look_phrase(rng, colour, texture, _choose(rng, *_NOUNS)), "absent", []))
    for colour in COLOURS:
        if colour not in colours and rng.random() < 0.35:
            out.append(facts.say(f"the {colour} {_choose(rng, *_NOUNS)}", "absent", []))
    for texture in TEXTURES:
        if texture not in textures and rng.random() < 0.6:
            out.append(facts.say(f"the {texture} {_choose(rng, *_NOUNS)}", "absent", []))
    motions = {t.motion for t in facts.things}
    if facts.scene.world.n_frames >= 4 and "return" not in motions:
        for motion in ("left", "right", "up", "down"):
            if motion not in motions and rng.random() < 0.35:
                out.append(
                    facts.say(f"the {_choose(rng, *_NOUNS)} that moves {motion}", "absent", [], dynamic=True)
                )
    return _kept(*out)
