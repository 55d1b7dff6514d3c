"""SAM 3 through transformers: points, boxes and masks by its tracker, words by its concept detector.

A text prompt stands alone. On a frame it gives every instance of the concept; through a video the
instances found on the prompted frame are followed by the tracker, and their union is the object.
The detector's and the tracker's image features differ, so a frame that serves both is encoded by each.

``find`` is SAM 3's own way with a video: the concept is looked for on every frame, and what is found is
joined to what is tracked. transformers leaves out its removal of duplicates and the filling of holes where
a compiled kernel can't be fetched from the hub; here both are always done, by :class:`_Kernel`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import cv2
import numpy as np

from refseg_bench.backbones.lazy_torch import F, inference, torch
from refseg_bench.backbones.weights import Weights, fetch, load_processor
from refseg_bench.errors import ConfigError, DataError
from refseg_bench.segmenters.base import (
    Candidates,
    Instance,
    Prompt,
    SegmenterCounters,
    SegmenterSession,
    TrackedMasks,
    TrackingDirection,
    united,
)
from refseg_bench.segmenters.memory_tracking import SamTracker, TrackingSession
from refseg_bench.segmenters.sam2_hf import HfTrackerCore
from refseg_bench.segmenters.sam_base import (
    Features,
    FeatureStore,
    HoleFilling,
    Resampling,
    autocast_for,
    require_finite,
    square_pixels,
)
from refseg_bench.types import Clip, MaskTrack, encode_rle

#: SAM 3's pixels are normalised to -1 … 1.
_HALF = (0.5, 0.5, 0.5)
#: Length every text prompt is padded to, as the processor does.
_TEXT_TOKENS = 32


@dataclass
class Sam3(SamTracker):
    """SAM 3. The feature budgets count for detector and tracker each."""

    name: ClassVar[str] = "sam3"
    implementation: ClassVar[str] = "transformers Sam3TrackerVideoModel, Sam3Model"

    model: str = "facebook/sam3"  #: hub id or local folder of the tracker
    #: Hub id or local folder of the concept detector and its tokenizer; ``None`` = the same as ``model``, as
    #: published.
    detector: str | None = None
    text_threshold: float = 0.5  #: an instance of the concept counts above this score
    resampling: Resampling = "bilinear"
    fill_holes: HoleFilling = "off"

    def open(self, clip: Clip) -> Sam3Session:
        """Start a session; tracker and detector load when a prompt first needs them."""
        return Sam3Session(clip, self)

    def weights(self) -> tuple[Weights, ...]:
        """What ``refseg models`` lists and fetches."""
        repos = dict.fromkeys((self.model, self.detector or self.model))
        return tuple(self._needs(repo, patterns=("*.json", "*.safetensors", "*.txt")) for repo in repos)

    @cached_property
    def concept_detector(self) -> Any:
        """The concept model for a frame, loaded at its first use."""
        from transformers import Sam3Model

        return self._pretrained(Sam3Model, self.weights()[-1])

    @cached_property
    def concept_tracker(self) -> Any:
        """The concept model for video, loaded at its first use.

        Raises:
            ConfigError: this version of transformers computes what its kernel does in another way.
        """
        from transformers import Sam3VideoModel
        from transformers.models.sam3_video import modeling_sam3_video

        if not hasattr(modeling_sam3_video, "cv_utils_kernel"):
            raise ConfigError(
                "This version of transformers has no place for SAM 3's kernel.",
                where=self.model,
                hint="Install transformers 5.23 … 5.24.",
            )
        modeling_sam3_video.cv_utils_kernel = _Kernel()
        return self._pretrained(Sam3VideoModel, self.weights()[-1])

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of both concept models."""
        from transformers import AutoTokenizer

        return load_processor(AutoTokenizer, fetch(self.weights()[-1], offline=self.offline))

    def words(self, text: str) -> Any:
        """The tokens of a concept, as both concept models take them."""
        return self.tokenizer(
            text, return_tensors="pt", padding="max_length", max_length=_TEXT_TOKENS, truncation=True
        )

    def _load(self) -> HfTrackerCore:
        from transformers import Sam3TrackerVideoModel

        model = self._pretrained(Sam3TrackerVideoModel, self.weights()[0])
        return HfTrackerCore(model, self.resampling, _HALF, _HALF)


class Sam3Session(SegmenterSession):
    """A clip opened with SAM 3.

    A text prompt's candidates on a frame are the instances of the concept by descending score; with
    ``multimask=False`` their union. Without any instance it is one empty mask with the best score
    there was.
    """

    name = "sam3"
    accepts = ("points", "box", "mask", "text")

    def __init__(self, clip: Clip, options: Sam3) -> None:
        super().__init__(clip)
        self._options = options
        self._tracking: TrackingSession | None = None
        self._concepts: _Concepts | None = None

    def check(
        self, frame: int, prompts: Sequence[Prompt], frames: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """See :meth:`SegmenterSession.check`; words stand alone."""
        for prompt in prompts:
            if prompt.text is not None and len(prompt.kinds()) > 1:
                raise DataError(f"A text prompt stands alone; this one has {prompt.kinds()}.", where="sam3")
        return super().check(frame, prompts, frames)

    def _segment(self, frame: int, prompts: Sequence[Prompt], multimask: bool) -> list[Candidates]:
        spoken = [row for row, prompt in enumerate(prompts) if prompt.text is not None]
        shown = [row for row, prompt in enumerate(prompts) if prompt.text is None]
        out: dict[int, Candidates] = {}
        if shown:
            drawn = self._tracker().segment(frame, [prompts[row] for row in shown], multimask=multimask)
            out.update(zip(shown, drawn, strict=True))
        for row in spoken:
            instances = self._detector().find(frame, str(prompts[row].text))
            if not multimask:
                union_HW = np.logical_or.reduce(instances.masks_KHW)
                instances = Candidates(union_HW[None], instances.ious_K.max(keepdims=True))
            out[row] = instances
        return [out[row] for row in range(len(prompts))]

    def _propagate(
        self, frame: int, prompts: Sequence[Prompt], video: tuple[int, ...], direction: TrackingDirection
    ) -> TrackedMasks:
        objects: list[Prompt] = []
        owners: list[int] = []
        for row, prompt in enumerate(prompts):
            parts = [prompt]
            if prompt.text is not None:
                found = self._detector().find(frame, prompt.text)
                # An empty mask is tracked as well: it says "not here", and may turn up later.
                parts = [Prompt(mask=mask_HW) for mask_HW in found.masks_KHW]
            objects.extend(parts)
            owners.extend([row] * len(parts))
        tracks = self._tracker().propagate(frame, objects, frames=video, direction=direction)
        return united(tracks, owners, len(prompts))

    def find(self, phrase: str) -> list[Instance]:
        """See the interface: on an image the detector's instances, through a clip those of every frame.

        Raises:
            DataError: there are no words.
        """
        self.check(0, [Prompt(text=phrase)])
        if len(self.clip) == 1:
            return super().find(phrase)
        model = self._options.concept_tracker
        with self.counters.timed("find"):
            return _find(self.clip, self._options, model, phrase)

    def close(self) -> None:
        """Drop the features."""
        if self._tracking is not None:
            self._tracking.close()
        if self._concepts is not None:
            self._concepts.features.clear()

    def _tracker(self) -> TrackingSession:
        if self._tracking is None:
            self._tracking = self._options.track(self.clip, self.counters)
        return self._tracking

    def _detector(self) -> _Concepts:
        if self._concepts is None:
            self._concepts = _Concepts(self.clip, self._options, self.counters)
        return self._concepts


class _Frames(Mapping[int, "torch.Tensor"]):
    """A clip's frames as the model takes them, decoded when they are asked for."""

    def __init__(self, clip: Clip, size: int, resampling: Resampling, device: torch.device) -> None:
        self._clip, self._rest = clip, (size, resampling, device, _HALF, _HALF)

    def __getitem__(self, frame: int) -> torch.Tensor:
        return square_pixels(self._clip.load([frame])[0], *self._rest)[0]

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._clip)))

    def __len__(self) -> int:
        return len(self._clip)


@inference()
def _find(clip: Clip, options: Sam3, model: Any, phrase: str) -> list[Instance]:
    """The concept in every frame, forward from the first, by the model's own loop and rules of output."""
    from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession
    from transformers.models.sam3_video.processing_sam3_video import Sam3VideoProcessor

    device = next(model.parameters()).device
    state = Sam3VideoInferenceSession(
        video_height=clip.size[0],
        video_width=clip.size[1],
        inference_device=device,
        inference_state_device=device,
        video_storage_device=device,
        dtype=torch.float32,
    )
    state.processed_frames = _Frames(clip, int(model.config.image_size), options.resampling, device)
    tokens = options.words(phrase).to(device)
    number = state.add_prompt(phrase)
    state.prompt_input_ids[number] = tokens["input_ids"]
    state.prompt_attention_masks[number] = tokens["attention_mask"]
    # Its rules of output need none of the parts that a processor is made of.
    rules = object.__new__(Sam3VideoProcessor)
    blank = encode_rle(np.zeros(clip.size, np.uint8))
    rles: dict[int, list[bytes]] = {}
    scores: dict[int, float] = {}

    def check(detector: Any, given: Any, output: Any) -> None:
        require_finite("sam3", output.pred_logits, output.presence_logits)

    with model.detector_model.register_forward_hook(check), autocast_for(options.precision, device)():
        for step in model.propagate_in_video_iterator(state):
            require_finite("sam3", *step.obj_id_to_mask.values())
            shown = rules.postprocess_outputs(state, step)
            for one, score, mask_HW in zip(
                shown["object_ids"].tolist(),
                shown["scores"].tolist(),
                shown["masks"].cpu().numpy(),
                strict=True,
            ):
                rles.setdefault(one, [blank] * len(clip))[step.frame_idx] = encode_rle(mask_HW)
                scores[one] = max(score, scores.get(one, 0.0))
    order = sorted(rles, key=lambda one: (-scores[one], one))
    return [Instance(MaskTrack(clip.size, tuple(rles[one])), scores[one]) for one in order]


class _Kernel:
    """What transformers would fetch compiled from the hub for SAM 3's videos, in NumPy and OpenCV."""

    def generic_nms(
        self, ious_NN: torch.Tensor, scores_N: torch.Tensor, most: float, use_iou_matrix: bool = True
    ) -> torch.Tensor:
        """What is kept: in order of score, each that overlaps none kept before by more than ``most``."""
        ious, kept = ious_NN.float().cpu().numpy(), list[int]()
        for row in scores_N.argsort(descending=True, stable=True).tolist():
            if not kept or ious[row, kept].max() <= most:
                kept.append(row)
        return torch.tensor(kept, dtype=torch.long, device=ious_NN.device)

    def cc_2d(self, masks_N1HW: torch.Tensor, get_counts: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels of the 8-connected components, and at each pixel the size of its own; 0 outside."""
        masks = masks_N1HW.to(torch.uint8).cpu().numpy()
        labels, counts = np.zeros(masks.shape, np.int32), np.zeros(masks.shape, np.int32)
        for place in np.ndindex(*masks.shape[:2]):
            _, labels[place], stats, _ = cv2.connectedComponentsWithStats(masks[place], connectivity=8)
            sizes = stats[:, cv2.CC_STAT_AREA].copy()
            sizes[0] = 0
            counts[place] = sizes[labels[place]]
        device = masks_N1HW.device
        return torch.from_numpy(labels).to(device), torch.from_numpy(counts).to(device)


class _Concepts:
    """Instances of a concept on the frames of a clip."""

    def __init__(self, clip: Clip, options: Sam3, counters: SegmenterCounters) -> None:
        self._clip = clip
        self._options = options
        self._counters = counters
        self._model = options.concept_detector
        self._device = next(self._model.parameters()).device
        self._autocast = autocast_for(options.precision, self._device)
        self._positions: tuple[torch.Tensor, ...] = ()
        self.features = FeatureStore(self._encode, self._device, options, counters)

    @inference()
    def find(self, frame: int, text: str) -> Candidates:
        """Instances above the threshold by descending score; one empty mask if there is none."""
        features = self.features.get(frame)
        self._counters.decoder_calls += 1
        with self._counters.timed("detect"):
            return self._find(features, text)

    def _find(self, features: Features, text: str) -> Candidates:
        from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

        tokens = self._options.words(text)
        vision = Sam3VisionEncoderOutput(fpn_hidden_states=features, fpn_position_encoding=self._positions)
        with self._autocast():
            output = self._model(
                vision_embeds=vision,
                input_ids=tokens["input_ids"].to(self._device),
                attention_mask=tokens["attention_mask"].to(self._device),
            )
        # An instance's score is its own times "the concept is in the picture at all".
        score_Q = (output.pred_logits[0].sigmoid() * output.presence_logits[0].sigmoid()).float()
        require_finite("sam3", score_Q, output.pred_masks)
        score_Q = score_Q.cpu()
        kept = [int(q) for q in score_Q.argsort(descending=True, stable=True)]
        kept = [q for q in kept if float(score_Q[q]) > self._options.text_threshold]
        masks_KHW = np.zeros((max(len(kept), 1), *self._clip.size), np.bool_)
        for row, query in enumerate(kept):
            # Probabilities are enlarged, not logits, as in the processor of SAM 3.
            share = output.pred_masks[0, query].float().sigmoid()[None, None]
            enlarged = F.interpolate(share, self._clip.size, mode="bilinear", align_corners=False)
            masks_KHW[row] = (enlarged[0, 0] > 0.5).cpu().numpy()
        scores_K = score_Q[kept] if kept else score_Q.max()[None]
        return Candidates(masks_KHW, scores_K.numpy())

    @inference()
    def _encode(self, frame: int) -> Features:
        with self._counters.timed("encode"):
            pixels = square_pixels(
                self._clip.load([frame])[0],
                int(self._model.config.image_size),
                self._options.resampling,
                self._device,
                _HALF,
                _HALF,
            )
            with self._autocast():
                output = self._model.get_vision_features(pixels)
        # The same for every frame, and as large as the features.
        self._positions = self._positions or tuple(output.fpn_position_encoding)
        return tuple(output.fpn_hidden_states)
