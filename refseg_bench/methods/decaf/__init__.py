"""DecAF: training-free grounding by decomposed attention fusion (arXiv 2510.19592).

A multimodal language model is asked what the expression means (object prompt) and what the scene is
without it (background prompt), on the video and on each sampled frame. The attention of each prompt's
last token, rolled out over the upper layers, is contrasted and fused to one volume V; V gives masks by
itself, or prompts a segmenter. This module holds the order of the stages and the options; the stages
are pure functions in ``fusion``, ``tracklets`` and ``prompts``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench.backbones.base import (
    GroundingMLLM,
    HeadWeights,
    MLLMSession,
    RolloutSettings,
    VisualSettings,
    Where,
    layer_range,
    weighting,
)
from refseg_bench.cache import Entry, fingerprint
from refseg_bench.config.schema import option, refuse_outside
from refseg_bench.errors import ConfigError, RefsegError
from refseg_bench.methods.base import AttentionMethod, click, highest
from refseg_bench.methods.decaf import prompts
from refseg_bench.methods.decaf.fusion import (
    Fusion,
    Maps,
    attention_volume,
    candidate_points,
    coarse_masks,
    contrast,
    keypoints,
    minmax,
    sample_frames,
    smoothed,
)
from refseg_bench.methods.decaf.prompts import Version
from refseg_bench.methods.decaf.tracklets import (
    Consistency,
    Tracklet,
    coverage,
    select,
    suppress_duplicates,
    tracklet_scores,
)
from refseg_bench.methods.spatial import SpatialBias, biased
from refseg_bench.segmenters.base import Prompt, Segmenter, SegmenterSession
from refseg_bench.types import (
    BoolHW,
    Clip,
    Expression,
    FloatTHW,
    Grounding,
    HeatPoint,
    MaskTrack,
    encode_rle,
    union_rle,
)

#: Part of every cache key: bump when a stage's result changes.
STAGE = "decaf-attention"
STAGE_VERSION = 3
#: Clicks asked for at once: each offers several masks at full size.
_CLICKS = 32


@dataclass
class DecAF(AttentionMethod):
    """Decomposed attention fusion. Defaults are the one setting of all the paper's experiments."""

    knows: ClassVar[str] = "where a multimodal language model looks, against background prompts"
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    cache_folder: ClassVar[str] = "attention"
    makes_maps: ClassVar[tuple[str, ...]] = (
        *("n_frames", "video_tokens", "multiscale", "frame_scale", "frame_tokens", "max_tiles"),
        *("rollout", "start_layer", "end_layer", "residual", "precision", "rollout_form"),
        *("prompt_obj", "prompt_bg", "prompt_choice"),
        *("prompt_obj_text", "prompt_bg_text", "prompt_choice_text"),
    )
    #: The video branch's rollout for the object prompt, as it is.
    raw_options: ClassVar[Mapping[str, Any]] = {
        "fusion.contrast": "obj_only",
        "fusion.branch": "video",
        "fusion.video_kernel": 1,
        "absent_words": None,
        "absent_below": None,
    }

    absence_rule: ClassVar[str] = "method.absent_words=[nothing,none,no]"

    backbone: GroundingMLLM  #: the multimodal language model
    segmenter: Segmenter | None = None  #: needed with ``mask: sam2``
    #: ``sam2`` = attention prompts a segmenter (Table 2); ``attention`` = coarse masks of the sampled frames
    #: (Table 1).
    mask: Literal["sam2", "attention"] = "sam2"
    n_frames: int = 16  #: frames sampled uniformly
    video_tokens: int = 400  #: most tokens per frame of the video branch (Qwen)
    multiscale: Literal["on", "off"] = "on"  #: single frames at a higher resolution than the video (Table 4c)
    frame_scale: int = 2  #: that resolution over the video's, per axis (Qwen)
    frame_tokens: int = -1  #: most tokens of a single frame instead of the scale; -1 = off (Qwen)
    max_tiles: int = 12  #: most tiles of a single frame (InternVL)
    #: Head weighting (Table 5a): ``v_max``; ``rollout_max`` or ``max_all_keys``; ``rollout`` or ``plain``.
    rollout: HeadWeights = "v_max"
    start_layer: int = -1  #: first layer (Table 5b); -1 = the middle one
    end_layer: int = -1  #: one past the last layer; -1 = all of the rest
    residual: float = 0.5  #: share of the identity in each layer
    precision: Literal["float32", "float64", "bfloat16"] = "float32"  #: of the rollout
    #: ``streamed``, or ``dense``: every matrix built, the oracle for small inputs.
    rollout_form: Literal["streamed", "dense"] = "streamed"
    fusion: Fusion = field(default_factory=Fusion)  #: see :class:`Fusion`
    tau_pq: float = 0.8  #: cells of V at or above it are prompts (Table 6)
    tau_trk: float = 0.8  #: tracklets scoring above it are kept (Table 6)
    nms_iou: float = 0.7  #: masks overlapping more are one object
    ac: Consistency = "mean_penalty"  #: consistency score (Table 7)
    ac_divide_by_max: bool = True  #: the official code's division by the largest score, absent from the paper
    fallback_argmax: bool = True  #: keep the best tracklet where none passes
    prompt_obj: Version = "default"  #: object prompt (Table 10)
    prompt_bg: Version = "default"  #: background prompt (Table 11)
    prompt_choice: Version = "default"  #: choice prompt (Table 12)
    prompt_obj_text: str | None = None  #: an object prompt of your own, with ``{sent}``
    prompt_bg_text: str | None = None  #: a background prompt of your own, with ``{obj_name}`` or ``{sent}``
    #: A choice prompt of your own, with ``{ref_query}`` and ``{obj_cls_list}``.
    prompt_choice_text: str | None = None
    sb: SpatialBias | None = None  #: weight V by the side the expression names; off in the paper
    keypoints: int = 0  #: strongest cells of V to record for PP@K; 0 = none, the paper's metric takes 100
    #: What a constant V gives, on which the official code crashes: an ``empty`` answer, as absent, or a
    #: recorded ``failure``.
    on_constant: Literal["empty", "failure"] = option("empty", newer=True)
    #: Answers of the object prompt, on the video, that mean "there is no such thing": the expression is then
    #: answered as absent. Not in the paper; ``null`` = off, as ``absent_below``.
    absent_words: list[str] | None = option(None, newer=True)
    #: So is one whose contrast peaks lower (the smoothed difference of Eq. 4 on the frames, before any
    #: normalisation; the share of a token's attention that the object gets more than the background).
    absent_below: float | None = option(None, newer=True)
    use_cache: bool = option(True, transient=True)  #: read and write the attention cache

    def __post_init__(self) -> None:
        if self.mask == "sam2" and self.segmenter is None:
            raise ConfigError(
                "method.mask=sam2 needs a segmenter.",
                hint="Add segmenter=NAME, or take the coarse masks with method.mask=attention.",
            )
        refuse_outside(self, 1, math.inf, "n_frames", "video_tokens", "frame_scale", "max_tiles")
        refuse_outside(self, 0, math.inf, "keypoints")
        refuse_outside(self, -1, math.inf, "frame_tokens")
        refuse_outside(self, 0, 1, "tau_pq", "nms_iou", "residual", *(["sb.floor"] if self.sb else []))
        refuse_outside(self, 0.01, math.inf, "fusion.sigma")
        self._object = prompts.template("object", self.prompt_obj, self.prompt_obj_text)
        self._background = prompts.template("background", self.prompt_bg, self.prompt_bg_text)
        self._choice = prompts.template("choice", self.prompt_choice, self.prompt_choice_text)

    # ── the loop ─────────────────────────────────────────────────────────────

    @property
    def uses_segmenter(self) -> bool:
        """Whether the segmenter makes the masks."""
        return self.mask == "sam2"

    def reads(self, clip: Clip) -> tuple[int, ...]:
        """The sampled frames."""
        return sample_frames(len(clip), self.n_frames)

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        """One grounding per expression, in the order given.

        Attention of all expressions is read first (they share the visual prefix), then each is
        fused, prompted and yielded.
        """
        frames = self.reads(clip)
        began = time.perf_counter()
        attention = self.attend(clip, frames, [expression.text for expression in expressions])
        share = (time.perf_counter() - began) / max(1, len(expressions))
        with ExitStack() as stack:
            session = None
            for expression in expressions:
                seconds = {"attention": share}
                read, found = attention[expression.text], dict[str, Any]()
                began = time.perf_counter()
                volume = self.volume(read, expression.text)
                seconds["fusion"] = time.perf_counter() - began
                began = time.perf_counter()
                point = highest(volume, frames)
                absent = self._absent(read)
                if absent:
                    track = MaskTrack.empty(clip.size, len(clip))
                elif point is None and self.on_constant == "failure":
                    raise RefsegError("V is constant: nowhere does the object map exceed the background.")
                elif self.mask == "attention":
                    track = self._coarse(clip, frames, volume)
                else:
                    if session is None:
                        assert self.segmenter is not None
                        session = stack.enter_context(self.segmenter.open(clip))
                    track, found = self.prompt_segmenter(session, frames, volume)
                seconds["segment"] = time.perf_counter() - began
                if self.keypoints:
                    found["keypoints"] = keypoints(volume, frames, self.keypoints).round(6).tolist()
                shown = self._shown(read, volume)
                yield Grounding(
                    expression=expression,
                    track=track,
                    point=point,
                    # A constant map points at nothing, which is an answer; otherwise only a rule can tell.
                    no_target=True if point is None else absent,
                    maps=shown,
                    # A map of the video stands for several frames at a time: for the first of them.
                    map_frames={
                        name: tuple(frames[i * len(frames) // len(v)] for i in range(len(v)))
                        for name, v in shown.items()
                    },
                    details={
                        "object": read.object_word,
                        "prompts": list(read.prompts),
                        "answers": list(read.answers),
                        "frames": list(frames),
                        "constant": not bool(volume.any()),
                        "contrast_peak": self._contrast(read),
                        **found,
                    },
                    seconds=seconds,
                )

    def capture(self, clip: Clip, expressions: Sequence[Expression]) -> None:
        """Fill the cache with the attention of the expressions, for every run that fuses it otherwise."""
        frames = self.reads(clip)
        self.attend(clip, frames, [expression.text for expression in expressions], background=True)

    @classmethod
    def capture_digest(cls, values: Mapping[str, Any]) -> str | None:
        """Names what :meth:`capture` caches; two spellings of a head weighting are one."""
        method = {**values["method"], "rollout": weighting(values["method"]["rollout"])}
        return super().capture_digest({**values, "method": method})

    def cached(self, clip: Clip, texts: Sequence[str]) -> int:
        """How many of the texts need no model call, by the cache. Loads no weights."""
        frames = self.reads(clip)
        if self.cache.root is None or not self.cache.root.is_dir():
            return 0  # and the model's hub need not be asked which commit it is
        ready = 0
        for text in texts:
            with suppress(_NotCached):
                self.attend(clip, frames, [text], only_cached=True)
                ready += 1
        return ready

    # ── stage A: attention ───────────────────────────────────────────────────

    def attend(
        self,
        clip: Clip,
        frames: tuple[int, ...],
        texts: Sequence[str],
        *,
        background: bool | None = None,
        only_cached: bool = False,
    ) -> dict[str, Attention]:
        """Raw attention maps of each text, from the cache or from the model.

        Every distinct prompt is run once: expressions that name the same object share their background maps.
        ``background``: run the background prompts, by default if they are subtracted. ``only_cached``: give
        up at the first prompt that would need the model.
        """
        if background is None:
            background = self.fusion.contrast == "obj_minus_bg"
        texts = list(dict.fromkeys(texts))
        with _Reader(self, clip, frames, only_cached) as reader:
            objects = {text: prompts.object_prompt(self._object, text) for text in texts}
            seen = reader.maps("object", list(objects.values()), answer=True)
            answers = {text: tuple(json.loads(str(seen[objects[text]]["answers"]))) for text in texts}
            if not background:
                return {
                    text: Attention(_maps(seen[objects[text]]), None, None, answers[text], (objects[text],))
                    for text in texts
                }
            choices = {text: prompts.choice_prompt(self._choice, text, answers[text]) for text in texts}
            chosen = reader.choices(list(choices.values()))
            words = {text: prompts.object_name(chosen[choices[text]]) for text in texts}
            grounds = {text: prompts.background_prompt(self._background, text, words[text]) for text in texts}
            rest = reader.maps("background", list(grounds.values()), answer=False)
        return {
            text: Attention(
                _maps(seen[objects[text]]),
                _maps(rest[grounds[text]]),
                words[text],
                answers[text],
                (objects[text], choices[text], grounds[text]),
            )
            for text in texts
        }

    def visual_settings(self) -> VisualSettings:
        """How frames become tokens."""
        return VisualSettings(
            self.video_tokens, self.frame_scale, self.frame_tokens, self.max_tiles, self.multiscale == "on"
        )

    def rollout_settings(self) -> RolloutSettings:
        """Which attention is read."""
        return RolloutSettings(
            self.rollout,
            self.start_layer,
            self.end_layer,
            self.residual,
            self.precision,
            self.rollout_form == "dense",
        )

    # ── stage B: fusion and masks ────────────────────────────────────────────

    def volume(self, read: Attention, text: str) -> FloatTHW:
        """V of one expression."""
        volume = attention_volume(read.object, read.background, self.fusion)
        return volume if self.sb is None else minmax(biased(volume, text, self.sb))

    def _contrast(self, read: Attention) -> float:
        """The peak of the frames' contrast (Eq. 4), before any normalisation."""
        obj = smoothed(read.object, self.fusion).frame
        bg = None if read.background is None else smoothed(read.background, self.fusion).frame
        return float(contrast(obj, bg).max())

    def _absent(self, read: Attention) -> bool | None:
        """Whether the expression means nothing in the clip; ``None`` = no rule is on."""
        if self.absent_words is None and self.absent_below is None:
            return None
        words = [word.lower() for word in self.absent_words or ()]
        said = read.answers[0].strip(" \t\n.!'\"").lower() in words
        return said or (self.absent_below is not None and self._contrast(read) < self.absent_below)

    def _coarse(self, clip: Clip, frames: tuple[int, ...], volume: FloatTHW) -> MaskTrack:
        """Otsu masks of the sampled frames; the others are not predicted."""
        masks: list[NDArray[Any] | None] = [None] * len(clip)
        for frame, mask_HW in zip(frames, coarse_masks(volume, clip.size), strict=True):
            masks[frame] = mask_HW
        return MaskTrack.from_masks(masks, clip.size)

    def prompt_segmenter(
        self, session: SegmenterSession, frames: tuple[int, ...], volume: FloatTHW
    ) -> tuple[MaskTrack, dict[str, Any]]:
        """Points → tracklets on the sampled frames → selection → masks of all frames (§3.3).

        Besides the union of the selected tracklets' masks, empty of a constant volume, what a reader may want
        to know of them.
        """
        clip = session.clip
        points = candidate_points(volume, frames, self.tau_pq)
        tracklets, grid = self._tracklets(session, frames, points), volume.shape[1:]
        scores = tracklet_scores(
            [tracklet.score for tracklet in tracklets],
            [np.stack([coverage(k.mask(t, clip.size), grid) for t in frames]) for k in tracklets],
            volume,
            ac=self.ac,
            divide_by_max=self.ac_divide_by_max,
        )
        chosen = select(scores, self.tau_trk, fallback=self.fallback_argmax)
        found = {
            "points": len(points),
            "clicks": [[point.frame, round(point.x, 5), round(point.y, 5)] for point in points],
            "tracklets": [
                {
                    "frame": tracklet.frame,
                    "s_obj": round(tracklet.score, 6),
                    "s_trk": round(float(score), 6),
                    "kept": index in chosen,
                }
                for index, (tracklet, score) in enumerate(zip(tracklets, scores, strict=True))
            ],
        }
        # Each chosen tracklet's own mask, from its own frame, through all frames of the clip.
        masks: list[list[bytes]] = [[] for _ in range(len(clip))]
        for frame, members in groupby((tracklets[index] for index in chosen), lambda member: member.frame):
            prompted = [Prompt(mask=member.mask(frame, clip.size)) for member in members]
            for index, moved_NHW in session.propagate(frame, prompted, direction="both"):
                masks[index].append(encode_rle(np.asarray(moved_NHW.any(axis=0))))
        return MaskTrack(clip.size, tuple(union_rle(counts, clip.size) for counts in masks)), found

    def _tracklets(
        self, session: SegmenterSession, frames: tuple[int, ...], points: Sequence[HeatPoint]
    ) -> list[Tracklet]:
        """Click every point and drop duplicates; the rest are followed through the sampled frames."""
        size = session.clip.size
        tracklets: list[Tracklet] = []
        for frame, group in groupby(points, lambda point: point.frame):
            here = list(group)
            best = self._clicked(session, frame, here)
            masks_NHW = np.stack([mask for mask, _ in best])
            scores = [iou + point.value for (_, iou), point in zip(best, here, strict=True)]
            earlier_MHW = np.array([k.mask(frame, size) for k in tracklets], np.bool_).reshape(-1, *size)
            earlier = [k.score for k in tracklets]
            verdict = suppress_duplicates(masks_NHW, scores, earlier_MHW, earlier, self.nms_iou)
            if verdict is None:
                continue
            kept = [Prompt(mask=masks_NHW[i]) for i in verdict.keep]
            steps, seen = session.propagate(frame, kept, frames=frames, direction="both"), dict[int, Any]()
            tracklets = [tracklet for k, tracklet in enumerate(tracklets) if k not in verdict.delete]
            tracklets += [Tracklet(frame, scores[i], n, steps, seen) for n, i in enumerate(verdict.keep)]
        return tracklets

    def _clicked(
        self, session: SegmenterSession, frame: int, points: Sequence[HeatPoint]
    ) -> list[tuple[BoolHW, float]]:
        """Best mask and its predicted IoU for each point; candidates are dropped as soon as chosen from."""
        best: list[tuple[BoolHW, float]] = []
        for first in range(0, len(points), _CLICKS):
            clicks = [click(point) for point in points[first : first + _CLICKS]]
            best += [offer.best() for offer in session.segment(frame, clicks, multimask=True)]
        return best

    # ── for the reader ───────────────────────────────────────────────────────

    def _shown(self, read: Attention, volume: FloatTHW) -> dict[str, FloatTHW]:
        """The maps of every stage in the method's order, those of the frames and of the video apart."""
        obj = smoothed(read.object, self.fusion)
        bg = None if read.background is None else smoothed(read.background, self.fusion)
        shown = {}
        for branch in ("frame", "video"):
            seen, behind = getattr(obj, branch), None if bg is None else getattr(bg, branch)
            suffix = "" if branch == "frame" else " (video)"
            shown[f"object{suffix}"] = minmax(seen)
            if behind is not None:
                shown[f"background{suffix}"] = minmax(behind)
            shown[f"contrast{suffix}"] = minmax(contrast(seen, behind), per_frame=branch == "frame")
        return {**shown, "fused": volume}


@dataclass(frozen=True, eq=False)
class Attention:
    """What the model gave for one expression."""

    object: Maps  #: the object prompt's maps
    background: Maps | None  #: the background prompt's; ``None`` where it isn't subtracted
    object_word: str | None  #: the chosen object name
    answers: tuple[str, ...]  #: to the object prompt: on the video, then on the frames
    #: As they were sent: the object prompt, and where background is subtracted the choice and background
    #: prompts.
    prompts: tuple[str, ...]


class _NotCached(Exception):
    """A prompt would need the model."""


class _Reader(ExitStack):
    """Prompts of one clip, each answered from the cache or by a session that opens at the first miss."""

    def __init__(self, method: DecAF, clip: Clip, frames: tuple[int, ...], only_cached: bool) -> None:
        super().__init__()
        self.method, self.clip, self.frames, self.only_cached = method, clip, frames, only_cached
        self._common: dict[str, Any] = {}
        if method.cache.root is not None:
            self._common = {
                "stage": STAGE,
                "version": STAGE_VERSION,
                "model": method.backbone.identity(),
                "visual": asdict(method.visual_settings()),
                "frames": list(frames),
                "clip": fingerprint((clip.frame_paths[index] for index in frames), upright=clip.upright),
            }

    def maps(self, kind: str, texts: Sequence[str], *, answer: bool) -> dict[str, Entry]:
        """Maps (and answers) of prompts on the video and on every frame."""

        def run(missing: list[str]) -> list[Entry]:
            places: list[Where] = ["video", *range(len(self.frames))]
            read = self.session.read_places(places, missing, answer=answer)
            return [
                {
                    "video": read[0][row].map_Thw,
                    "frame": np.concatenate([place[row].map_Thw for place in read[1:]]),
                    "answers": json.dumps([place[row].answer for place in read] if answer else []),
                }
                for row in range(len(missing))
            ]

        settings = self.method.rollout_settings()
        rollout: dict[str, Any] = {}
        if self._common:
            # Two ways to say the same layers, or the same weights, are one key.
            layers = layer_range(settings.start, settings.end, self.method.backbone.layers())
            same = {"mode": weighting(settings.mode), "start": layers.start, "end": layers.stop}
            rollout = {**asdict(settings), **same}
        return self._through_cache({"kind": kind, "rollout": rollout, "answer": answer}, texts, run)

    def choices(self, texts: Sequence[str]) -> dict[str, str]:
        """Answers to text-only prompts."""

        def run(missing: list[str]) -> list[Entry]:
            return [{"answer": answer} for answer in self.session.ask(missing)]

        found = self._through_cache({"kind": "choice"}, texts, run)
        return {text: str(entry["answer"]) for text, entry in found.items()}

    @cached_property
    def session(self) -> MLLMSession:
        """The model's session on the sampled frames."""
        method = self.method
        return self.enter_context(
            method.backbone.open(
                self.clip.load(self.frames), method.visual_settings(), method.rollout_settings()
            )
        )

    def _through_cache(
        self, key: Mapping[str, Any], texts: Sequence[str], run: Callable[[list[str]], list[Entry]]
    ) -> dict[str, Entry]:
        def made(missing: list[str]) -> list[Entry]:
            if self.only_cached:
                raise _NotCached
            return run(missing)

        return self.method.cache.through({**self._common, **key}, texts, made)


def _maps(entry: Entry) -> Maps:
    return Maps(np.asarray(entry["video"], np.float32), np.asarray(entry["frame"], np.float32))
