"""Train ``tiny_mllm``: ``python tools/train/train_mllm.py --work runs/tiny_mllm [--steps 2400]``.

A Qwen2-VL model (transformers' own class) of 2.8 M parameters learns to answer DecAF's prompts about
scenes of the shapes world: the object prompt with the target's name (``red-striped``, or ``nothing``),
the background prompt with the kind of ground, the choice prompt with one of the candidates. It sees clips
(8 or 16 frames, 6 x 8 tokens for two frames) and single frames at twice that grid, as DecAF does.

The vision tower learns first, alone, to name what each token shows (``--vision-steps``): which way a thing
moves is seen only after some hundred steps, and without the language model a step costs a sixth. Then
training begins with pairs of frames and goes on to clips (``STAGES``). Several questions share one visual
prefix: each attends to the prefix and to itself, at the positions it would have alone, which is exactly
what separate sequences would compute.

Two auxiliary losses help binding to appear early; their layers are dropped from the exported model:

* *dense*: each visual token (behind the vision tower) names colour, texture, motion and ground of what it
  shows, and (in the middle of the language model) its place;
* *match*: in the middle of the language model, a product between the last prompt token and each visual
  token tells whether the token lies on the target.

A third one, on the attention of the last prompt token itself, fades out over the first part of training
(``--attention-weight``, ``--attention-until``); see docs/tiny-models.md. A stopped run goes on from its last
checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface, Qwen2VLForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools.shapes_world import (
    COLOURS,
    GROUNDS,
    NOTHING,
    TEXTURES,
    Footage,
    Scene,
    Utterance,
    World,
    describe,
    render,
    sample_scene,
)
from tools.train.common import (
    SEEDS_PER_RUN,
    WATCH_SEEDS,
    Watch,
    learning_rate,
    note_command,
    provenance,
    random_world,
    setup,
    shrink,
    train_seeds,
)
from tools.train.mllm_model import (
    BACKGROUND,
    CELL,
    CHOICE,
    MERGE,
    NAMES,
    OBJECT,
    PATCH,
    START_LAYER,
    SYSTEM,
    make_model,
    make_processor,
    make_tokenizer,
)

VIDEO_SIZE, IMAGE_SIZE = (96, 128), (192, 256)
VISION_PAIRS = 12  # pairs of frames a step while the vision tower learns alone
PER_SEQUENCE = 8  # object questions per visual prefix; one background question comes on top
MIX = {  # chance of each kind of expression, for clips and for single frames
    "video": {
        "appearance": 0.24,
        "absent": 0.16,
        "motion": 0.34,
        "multi": 0.1,
        "relation": 0.06,
        "reasoning": 0.1,
    },
    "image": {
        "appearance": 0.46,
        "absent": 0.24,
        "motion": 0.08,
        "multi": 0.1,
        "relation": 0.08,
        "reasoning": 0.04,
    },
}
_COLOURS, _TEXTURES, _GROUNDS = list(COLOURS), list(TEXTURES), list(GROUNDS)


# ── data ─────────────────────────────────────────────────────────────────────


@dataclass
class Question:
    """A prompt about a visual prefix.

    Attributes:
        text: the filled prompt.
        answer: the word.
        cover_V: share of each visual token that lies on the target, or ``None`` where nothing is asked of
            attention.
        weight: of the answer's loss.
        kind: of the expression, or ``background``.
        utterance: what was asked about.
    """

    text: str
    answer: str
    cover_V: NDArray[np.float32] | None
    weight: float = 1.0
    kind: str = ""
    utterance: Utterance | None = None


@dataclass
class Example:
    """A visual prefix with its questions.

    Attributes:
        frames: float ``(T, 3, h, w)`` in [0, 1].
        video: whether the frames go in as a clip.
        labels_CV: per visual token colour, texture, motion, ground; -100 where mixed.
        questions: about it.
    """

    frames: Tensor
    video: bool
    labels_CV: NDArray[np.int64]
    questions: list[Question] = field(default_factory=list)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Visual tokens in time, rows, columns."""
        count = len(self.frames) // 2 if self.video else 1
        return count, self.frames.shape[2] // CELL, self.frames.shape[3] // CELL


def pool(masks_THW: NDArray[np.bool_], grid: tuple[int, int, int]) -> NDArray[np.float32]:
    """Share of each visual token under a mask, in token order."""
    t, h, w = grid
    frames, height, width = masks_THW.shape
    blocks = masks_THW.reshape(t, frames // t, h, height // h, w, width // w)
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32).ravel()


def token_labels(
    scene: Scene, ids_THW: NDArray[np.uint8], steps: list[int], grid: tuple[int, int, int]
) -> NDArray[np.int64]:
    """What each visual token shows: colour, texture, motion (between its two frames), ground."""
    things = scene.things
    shares = np.stack([pool(ids_THW == k, grid) for k in range(len(things) + 1)])
    labels = np.full((4, shares.shape[1]), -100, np.int64)
    free = shares[0] > 0.95
    labels[:3, free] = [[len(_COLOURS)], [len(_TEXTURES)], [5]]
    labels[3, free] = _GROUNDS.index(scene.ground)
    per_cell = shares.shape[1] // grid[0]
    for k, thing in enumerate(things):
        on = shares[k + 1] > 0.6
        labels[0, on] = _COLOURS.index(thing.colour)
        labels[1, on] = _TEXTURES.index(thing.texture)
        if len(steps) > 1:
            for cell in range(grid[0]):
                a, b = steps[2 * cell], steps[2 * cell + 1]
                dy, dx = thing.centre_T2[b] - thing.centre_T2[a]
                way = (
                    0
                    if max(abs(dy), abs(dx)) < 1
                    else (1 if dx < -1 else 2 if dx > 1 else 3 if dy < -1 else 4)
                )
                span = slice(cell * per_cell, (cell + 1) * per_cell)
                labels[2, span][on[span]] = way
    return labels


def pick(
    rng: np.random.Generator, utterances: list[Utterance], mix: dict[str, float], count: int
) -> list[Utterance]:
    """Expressions by kind, at the chances of ``mix`` as far as the scene has them."""
    by_kind: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_kind.setdefault(utterance.kind, []).append(utterance)
    chosen: list[Utterance] = []
    while len(chosen) < count and by_kind:
        kinds = list(by_kind)
        chances = np.array([mix[k] for k in kinds])
        kind = kinds[int(rng.choice(len(kinds), p=chances / chances.sum()))]
        chosen.append(by_kind[kind].pop())
        if not by_kind[kind]:
            del by_kind[kind]
    return chosen


def version(rng: np.random.Generator, texts: tuple[str, ...]) -> str:
    """The default prompt, or now and then one of its variants."""
    return texts[0] if rng.random() < 0.85 else texts[int(rng.integers(1, len(texts)))]


def target_mask(footage: Footage, rows: list[int], targets: tuple[int, ...]) -> NDArray[np.bool_]:
    """Union of the targets in the given rows of the footage."""
    return np.isin(footage.ids_THW[rows], [i + 1 for i in targets])


def object_question(
    rng: np.random.Generator, utterance: Utterance, cover_V: NDArray[np.float32], *, image: bool
) -> Question:
    """The object prompt; what does not show is ``nothing``."""
    seen = cover_V.max(initial=0.0) > 0.2
    answer = utterance.word if seen else NOTHING
    # One frame does not tell who moves: such a question stays in, as DecAF asks it, but hardly counts.
    weight = 0.3 if image and utterance.dynamic else 1.0
    return Question(
        version(rng, OBJECT).format(sent=utterance.text + "."),
        answer,
        cover_V,
        weight,
        utterance.kind,
        utterance,
    )


def background_question(
    rng: np.random.Generator,
    scene: Scene,
    utterances: list[Utterance],
    footage: Footage,
    rows: list[int],
    grid: tuple[int, int, int],
) -> Question:
    """The background prompt, less an object of the scene; attention is asked of everything but it."""
    utterance = utterances[int(rng.integers(len(utterances)))]
    filled = version(rng, BACKGROUND).format(obj_name=utterance.word, sent=utterance.text + ".")
    free = pool(footage.ids_THW[rows] == 0, grid)
    return Question(filled, scene.ground, free, 0.5, "background")


def choice_question(rng: np.random.Generator, utterance: Utterance) -> Question:
    """The choice prompt over noisy candidates.

    The right answer is the candidate the expression's words agree with; if they leave it open, the most
    frequent one.
    """
    words = set(utterance.text.split())
    colour = next((c for c in COLOURS if c in words), None)
    texture = next((t for t in TEXTURES if t in words), None)
    right = utterance.word if utterance.word != NOTHING or rng.random() < 0.5 else str(rng.choice(NAMES))
    count = int(rng.integers(5, 18))
    pool_ = (
        [right] * int(rng.integers(2, 6))
        + [NOTHING] * int(rng.integers(0, 4))
        + [str(n) for n in rng.choice(NAMES, 3)]
    )
    candidates = [str(rng.choice(pool_)) for _ in range(count)]

    def agrees(candidate: str) -> bool:
        parts = candidate.split("-")
        return (
            len(parts) == 2
            and (colour is None or parts[0] == colour)
            and (texture is None or parts[1] == texture)
        )

    good = (
        [c for c in candidates if (colour or texture) and agrees(c)]
        or [c for c in candidates if c != NOTHING]
        or candidates
    )
    counts = {c: good.count(c) for c in good}
    best = max(counts, key=lambda c: (counts[c], -good.index(c)))
    filled = version(rng, CHOICE).format(ref_query=utterance.text + ".", obj_cls_list=",".join(candidates))
    return Question(filled, best, None, 1.0, "choice")


#: Frames of a sequence by its form: a pair of neighbours, one frame at twice the grid, clips.
FORMS = {"pair": 2, "image": 1, "clip": 8, "long": 16}
STAGES = (  # until this share of the steps: sequences of each form in a step
    (0.35, {"pair": 12, "image": 4}),
    (0.7, {"pair": 6, "image": 5, "clip": 5}),
    (1.01, {"pair": 2, "image": 5, "clip": 5, "long": 3}),
)


def look(rng: np.random.Generator, seed: int, form: str) -> tuple[Scene, Footage, Example]:
    """A scene of its own, the frames that are shown of it, and the visual prefix they make."""
    shown = FORMS[form]
    length = shown if shown > 2 else int(rng.choice([8, 12, 16]))
    scene = sample_scene(seed, random_world(rng, length))
    first = int(rng.integers(length - shown + 1))
    steps = list(range(first, first + shown))
    footage = render(scene, steps)
    video = form != "image"
    frames = shrink(footage.frames_THWC, VIDEO_SIZE if video else IMAGE_SIZE)
    grid = (shown // 2, 6, 8) if video else (1, 12, 16)
    return scene, footage, Example(frames, video, token_labels(scene, footage.ids_THW, steps, grid))


def example(seed: int, form: str) -> tuple[Example, Question]:
    """A visual prefix with its questions, and one choice question about the same scene.

    What is asked is judged on the very frames that are shown.
    """
    rng = np.random.default_rng([seed, 98])
    scene, footage, out = look(rng, seed, form)
    utterances = describe(scene, footage)
    video, grid, rows = out.video, out.grid, list(range(FORMS[form]))
    for utterance in pick(rng, utterances, MIX["video" if video else "image"], PER_SEQUENCE):
        cover = pool(target_mask(footage, rows, utterance.targets), grid)
        out.questions.append(object_question(rng, utterance, cover, image=not video))
    while len(out.questions) < PER_SEQUENCE:
        out.questions.append(out.questions[int(rng.integers(len(out.questions)))])
    out.questions.append(background_question(rng, scene, utterances, footage, rows, grid))
    return out, choice_question(rng, utterances[int(rng.integers(len(utterances)))])


# ── model around the model ───────────────────────────────────────────────────


class Rows:
    """Where the registered attention function keeps what is asked of it (training and checks only)."""

    index_BK: Tensor | None = None
    kept: ClassVar[dict[int, Tensor]] = {}
    full = False


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention by plain products: on a CPU faster to train than the fused kernel, and readable."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1)
    layer = getattr(module, "layer_idx", None)
    if layer is not None and layer >= START_LAYER:
        if Rows.full:
            Rows.kept[layer] = weights
        elif Rows.index_BK is not None:
            index = Rows.index_BK[:, None, :, None].expand(-1, weights.shape[1], -1, weights.shape[-1])
            Rows.kept[layer] = weights.gather(2, index)  # (B, H, K, L)
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


def patches(frames: Tensor, video: bool) -> Tensor:
    """Pixels as the Qwen2-VL processors order them: ``(patches, 3 * 2 * 8 * 8)``, in [-1, 1]."""
    if not video:
        frames = frames.repeat(2, 1, 1, 1)
    t, h, w = len(frames) // 2, frames.shape[2] // PATCH, frames.shape[3] // PATCH
    x = (frames * 2 - 1).reshape(t, 2, 3, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH)
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1)


class Heads(nn.Module):
    """The auxiliary layers. They are not part of the exported model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 7 + 5 + 6 + 5)
        self.place = nn.Linear(width, 2)
        self.query, self.key = nn.Linear(width, 64), nn.Linear(width, 64)
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def dense_loss(self, visual_NV: Tensor, labels_CN: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Mean over colour, texture, motion and ground; and how much is told rightly on objects.

        ``texture`` is the share of right textures, ``motion`` the mean over the five ways of moving.
        """
        parts = self.dense(visual_NV).float().split([7, 5, 6, 5], -1)
        weights = [torch.ones(7), torch.ones(5), torch.ones(6), torch.ones(5)]
        for w, none in zip(weights[:3], (6, 4, 5), strict=True):
            w[none] = 0.15  # most tokens show the ground
        losses = []
        for logits, labels, weight in zip(parts, labels_CN, weights, strict=True):
            if (labels >= 0).any():
                losses.append(F.cross_entropy(logits, labels, weight=weight))
        right = [p.argmax(-1) == labels for p, labels in zip(parts, labels_CN, strict=True)]
        told = {"texture": float(right[1][(labels_CN[1] >= 0) & (labels_CN[1] < 4)].float().mean())}
        ways = [right[2][labels_CN[2] == way].float().mean() for way in range(5) if way in labels_CN[2]]
        if ways:
            told["motion"] = float(torch.stack(ways).mean())
        return torch.stack(losses).mean(), told

    def match(self, asked_BKD: Tensor, visual_BVD: Tensor) -> Tensor:
        """Logits ``(B, K, V)`` of a visual token lying on a question's target."""
        q, k = self.query(asked_BKD), self.key(visual_BVD)
        logits: Tensor = (q @ k.transpose(-1, -2)).float() * 64**-0.5 + self.bias
        return logits


@dataclass
class Packed:
    """A batch of examples of one visual length, ready for the model."""

    ids_BL: Tensor
    labels_BL: Tensor
    weights_BL: Tensor
    positions_3BL: Tensor
    mask_B1LL: Tensor
    last_BK: Tensor
    cover_BKV: Tensor
    asked_BK: Tensor
    visual: slice
    pixels: Tensor
    grids: Tensor
    labels_CN: Tensor
    places_V2: Tensor


class Packer:
    """Turns examples into token ids, positions and masks.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        start, end = "<|im_start|>", "<|im_end|>"
        self.head = tokenizer(f"{start}system\n{SYSTEM}{end}\n{start}user\n<|vision_start|>").input_ids
        self.text_head = tokenizer(f"{start}system\n{SYSTEM}{end}\n{start}user\n").input_ids
        self.tail = tokenizer("<|vision_end|>").input_ids
        self.turn = f"{end}\n{start}assistant\n"
        self.end = tokenizer(end).input_ids
        self.pad = tokenizer.pad_token_id
        self.pads = {
            True: tokenizer.convert_tokens_to_ids("<|video_pad|>"),
            False: tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        }

    def suffix(self, question: Question, *, answer: bool = True) -> tuple[list[int], int]:
        """Ids of prompt, assistant turn and answer; and the prompt's length."""
        prompt = self.tokenizer(question.text + self.turn).input_ids
        return prompt + (self.tokenizer(question.answer).input_ids + self.end if answer else []), len(prompt)

    def pack(self, batch: list[Example], *, answer: bool = True) -> Packed:
        """Examples of equal visual length, one row each; questions follow the prefix one by one."""
        t, h, w = batch[0].grid
        visual = t * h * w
        rows = []
        for example in batch:
            gt, gh, gw = example.grid
            prefix = [*self.head, *[self.pads[example.video]] * visual, *self.tail]
            n = len(self.head)
            place = torch.cartesian_prod(torch.arange(gt), torch.arange(gh), torch.arange(gw)).T + n
            after = n + max(gh, gw)
            position = torch.cat([torch.arange(n).expand(3, n), place, torch.full((3, 1), after)], 1)
            rows.append(self._row(prefix, position, after + 1, example.questions, answer))
        packed = self._join(rows, answer)
        covers = np.stack(
            [
                [q.cover_V if q.cover_V is not None else np.zeros(visual, np.float32) for q in e.questions]
                for e in batch
            ]
        )
        asked = torch.tensor([[1.0 if q.kind != "background" else 0.0 for q in e.questions] for e in batch])
        weights = torch.tensor([[q.weight for q in e.questions] for e in batch])
        n = len(self.head)
        y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
        return Packed(
            **packed,
            cover_BKV=torch.from_numpy(covers),
            asked_BK=asked * weights,
            visual=slice(n, n + visual),
            pixels=torch.cat([patches(e.frames, e.video) for e in batch]),
            grids=torch.tensor([[e.grid[0], e.grid[1] * MERGE, e.grid[2] * MERGE] for e in batch]),
            labels_CN=torch.from_numpy(np.concatenate([e.labels_CV for e in batch], 1)),
            places_V2=torch.stack([y.ravel(), x.ravel()], 1).repeat(t, 1),
        )

    def pack_text(self, questions: list[Question]) -> Packed:
        """Questions without a picture, one row each."""
        n = len(self.text_head)
        rows = [self._row(self.text_head, torch.arange(n).expand(3, n), n, [q], True) for q in questions]
        none = torch.zeros(0)
        return Packed(
            **self._join(rows, True),
            cover_BKV=none,
            asked_BK=none,
            visual=slice(0, 0),
            pixels=none,
            grids=none,
            labels_CN=none,
            places_V2=none,
        )

    def _row(
        self, prefix: list[int], position: Tensor, start: int, questions: list[Question], answer: bool
    ) -> dict[str, Any]:
        ids, labels, weights, segment, positions, last = (
            list(prefix),
            [-100] * len(prefix),
            [0.0] * len(prefix),
            [0] * len(prefix),
            [position],
            [],
        )
        for number, question in enumerate(questions, 1):
            suffix, prompt = self.suffix(question, answer=answer)
            last.append(len(ids) + prompt - 1)
            ids += suffix
            labels += [-100] * prompt + suffix[prompt:]
            weights += [question.weight] * len(suffix)
            segment += [number] * len(suffix)
            positions.append((torch.arange(len(suffix)) + start).expand(3, -1))
        return {
            "ids": ids,
            "labels": labels,
            "weights": weights,
            "segment": segment,
            "position": torch.cat(positions, 1),
            "last": last,
        }

    def _join(self, rows: list[dict[str, Any]], answer: bool) -> dict[str, Any]:
        longest = max(len(r["ids"]) for r in rows)

        def fill(name: str, value: float, dtype: torch.dtype) -> Tensor:
            return torch.tensor([r[name] + [value] * (longest - len(r[name])) for r in rows], dtype=dtype)

        segment = fill("segment", -1, torch.long)
        order = torch.arange(longest)
        allowed = (order[:, None] >= order[None, :]) & (
            (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
        )
        allowed |= torch.eye(longest, dtype=torch.bool)
        position = torch.stack([F.pad(r["position"], (0, longest - r["position"].shape[1])) for r in rows], 1)
        return {
            "ids_BL": fill("ids", self.pad, torch.long),
            "labels_BL": fill("labels", -100, torch.long),
            "weights_BL": fill("weights", 0.0, torch.float32),
            "positions_3BL": position,
            "mask_B1LL": torch.zeros(allowed.shape).masked_fill(~allowed, -1e4)[:, None],
            "last_BK": torch.tensor([r["last"] for r in rows]),
        }


def run(
    model: Qwen2VLForConditionalGeneration, packed: Packed, *, hidden: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Last hidden states ``(B, L, D)``, those at the rollout's start, the vision tower's ``(N, D)``."""
    inner = model.model
    embeds = inner.language_model.embed_tokens(packed.ids_BL)
    visual = None
    if len(packed.pixels):
        visual = inner.visual(packed.pixels, grid_thw=packed.grids).pooler_output
        v = packed.visual
        embeds = torch.cat(
            [
                embeds[:, : v.start],
                visual.view(len(embeds), -1, embeds.shape[-1]).to(embeds.dtype),
                embeds[:, v.stop :],
            ],
            1,
        )
    out = inner.language_model(
        inputs_embeds=embeds,
        position_ids=packed.positions_3BL,
        attention_mask={"full_attention": packed.mask_B1LL},
        use_cache=False,
        output_hidden_states=hidden,
    )
    return out.last_hidden_state, out.hidden_states[START_LAYER] if hidden else None, visual


def losses(
    model: Qwen2VLForConditionalGeneration, heads: Heads, packed: Packed, attention_weight: float
) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum of all losses of a batch, and its parts."""
    seeing = len(packed.pixels) > 0
    Rows.index_BK = packed.last_BK if seeing and attention_weight > 0 else None
    Rows.kept.clear()
    with torch.autocast("cpu", torch.bfloat16):
        last, middle, visual = run(model, packed, hidden=seeing)
        wanted = packed.labels_BL[:, 1:] >= 0
        logits = model.lm_head(last[:, :-1][wanted]).float()
        labels = packed.labels_BL[:, 1:][wanted]
        each = F.cross_entropy(logits, labels, reduction="none")
        weight = packed.weights_BL[:, 1:][wanted]
        answer = (each * weight).sum() / weight.sum()
        parts = {"answer": answer.item(), "right": float((logits.argmax(-1) == labels)[::2].float().mean())}
        total = answer
        if seeing:
            assert middle is not None
            assert visual is not None
            dense, told = heads.dense_loss(visual, packed.labels_CN)
            parts |= told
            states = middle[:, packed.visual]
            place = F.mse_loss(heads.place(states).float(), packed.places_V2.expand(len(states), -1, -1))
            asked = middle.gather(1, packed.last_BK[..., None].expand(-1, -1, middle.shape[-1]))
            match = heads.match(asked, states)
            cover = packed.cover_BKV
            bce = F.binary_cross_entropy_with_logits(
                match, cover, weight=1 + 4 * cover, reduction="none"
            ).mean(-1)
            match_loss = (bce * packed.asked_BK).sum() / packed.asked_BK.sum()
            total = total + dense + 0.2 * place + 4.0 * match_loss
            parts |= {"dense": dense.item(), "place": place.item(), "match": match_loss.item()}
            if attention_weight > 0:
                rows = torch.stack([Rows.kept[k].mean(1) for k in sorted(Rows.kept)]).mean(0)[
                    ..., packed.visual
                ]
                there = (cover > 0.3).float()
                some = (there.sum(-1) > 0).float()
                inside = (rows * there).sum(-1) / rows.sum(-1).clamp_min(1e-6)
                attention = -(inside.clamp_min(1e-4).log() * some).sum() / some.sum().clamp_min(1)
                total = total + attention_weight * attention
                parts["attention"] = attention.item()
    Rows.index_BK = None
    return total, parts


# ── checks while training ────────────────────────────────────────────────────


def rollout_row(attention: dict[int, Tensor], visual: slice) -> Tensor:
    """DecAF's V-Max rollout (section 3.2 of its paper's method) as one row, backwards through the layers."""
    layers = sorted(attention)
    n = attention[layers[0]].shape[-1]
    row = torch.zeros(n)
    row[-1] = 1.0
    for layer in reversed(layers):
        a = attention[layer][0].float()
        w = a[:, :, visual].amax(-1).mean(-1)
        row = 0.5 * row + 0.5 * torch.einsum("h,i,hij->j", w / w.max(), row, a) / len(w)
    return row[visual]


def smooth(map_THW: Tensor, kernel: int) -> Tensor:
    """Gaussian of sigma 1 with zero padding, per time slice."""
    reach = torch.arange(kernel) - kernel // 2
    g = torch.exp(-(reach**2) / 2.0)
    g2 = g[:, None] * g[None, :]
    return F.conv2d(map_THW[:, None], (g2 / g2.sum())[None, None], padding=kernel // 2)[:, 0]


@torch.no_grad()
def check(model: Qwen2VLForConditionalGeneration, packer: Packer, scenes: int = 16) -> dict[str, float]:
    """Answers and pointing on watched scenes, on clips of 16 frames and on one of their frames."""
    model.eval()
    points: dict[str, list[bool]] = {}
    answers: dict[str, list[bool]] = {}
    Rows.full = True
    for seed in range(WATCH_SEEDS, WATCH_SEEDS + scenes):
        rng = np.random.default_rng([seed, 97])
        scene = sample_scene(seed, World(n_frames=16, difficulty=float(rng.integers(2, 9)) / 10))
        footage = render(scene)
        utterances = describe(scene, footage)
        by_kind = {
            kind: next((u for u in utterances if u.kind == kind), None)
            for kind in ("appearance", "motion", "absent")
        }
        for video in (True, False):
            rows = list(range(16)) if video else [8]
            frames = shrink(footage.frames_THWC[rows], VIDEO_SIZE if video else IMAGE_SIZE)
            grid = (8, 6, 8) if video else (1, 12, 16)
            for kind, utterance in by_kind.items():
                if utterance is None or (kind == "motion" and not video):
                    continue
                mask = target_mask(footage, rows, utterance.targets)
                if kind != "absent" and mask.sum() < 150:
                    continue
                question = Question(OBJECT[0].format(sent=utterance.text + "."), "", None)
                example = Example(
                    frames, video, token_labels(scene, footage.ids_THW[rows], rows, grid), [question]
                )
                packed = packer.pack([example], answer=False)
                Rows.kept.clear()
                last, _, _ = run(model, packed, hidden=False)
                word = packer.tokenizer.decode([int(model.lm_head(last[0, -1]).argmax())]).strip()
                name = "video" if video else "image"
                answers.setdefault(f"{name}_{kind}", []).append(word == utterance.word)
                if kind == "absent":
                    continue
                attention = {k: v for k, v in Rows.kept.items()}
                maps = {"rollout": rollout_row(attention, packed.visual)}
                maps["late"] = torch.stack(
                    [a[0, :, -1, packed.visual].mean(0) for a in attention.values()]
                ).mean(0)
                for layer, a in attention.items():
                    for head in range(a.shape[1]):
                        maps[f"head{layer}.{head}"] = a[0, head, -1, packed.visual]
                example.questions = [Question(BACKGROUND[0].format(obj_name=word.lower()), "", None)]
                Rows.kept.clear()
                run(model, packer.pack([example], answer=False), hidden=False)
                other = rollout_row(dict(Rows.kept), packed.visual)
                kernel = 3 if video else 7
                contrast = smooth(maps["rollout"].reshape(grid), kernel) - smooth(other.reshape(grid), kernel)
                maps["contrast"] = contrast.clamp(0, 1).flatten()
                for key, values in maps.items():
                    t, y, x = np.unravel_index(int(values.argmax()), grid)
                    pixel = (int((y + 0.5) * 192 / grid[1]), int((x + 0.5) * 256 / grid[2]))
                    span = mask[2 * t : 2 * t + 2] if video else mask
                    hit = bool(span[:, pixel[0], pixel[1]].any())
                    points.setdefault(
                        f"{name}_{key}" if kind == "appearance" else f"motion_{key}", []
                    ).append(hit)
    Rows.full = False
    Rows.kept.clear()
    model.train()
    out = {f"say_{k}": float(np.mean(v)) for k, v in answers.items()}
    for name in ("image", "video", "motion"):
        for key in ("late", "rollout", "contrast"):
            out[f"{name}_{key}"] = float(np.mean(points.get(f"{name}_{key}", [0.0])))
        out[f"{name}_head"] = max(
            (float(np.mean(v)) for k, v in points.items() if k.startswith(f"{name}_head")), default=0.0
        )
    return out


COLUMNS = [
    "lr",
    "loss",
    "answer",
    "right",
    "dense",
    "texture",
    "motion",
    "place",
    "match",
    "attention",
    "choice",
    *[f"say_image_{k}" for k in ("appearance", "absent")],
    *[f"say_video_{k}" for k in ("appearance", "motion", "absent")],
    *[f"{n}_{k}" for n in ("image", "video", "motion") for k in ("late", "rollout", "contrast", "head")],
]


# ── training ─────────────────────────────────────────────────────────────────


def corpus(scenes: int = 160) -> list[str]:
    """Texts the tokenizer's merges are learned from: expressions of scenes that nothing else uses."""
    lines: list[str] = []
    for seed in range(500_000, 500_000 + scenes):
        scene = sample_scene(seed)
        lines += [u.text + "." for u in describe(scene, render(scene))]
    return lines


def train_vision(
    model: Qwen2VLForConditionalGeneration, heads: Heads, watch: Watch, args: argparse.Namespace
) -> None:
    """The vision tower alone, on pairs of frames and the dense loss; its steps are logged up to zero."""
    tower = model.model.visual
    parameters = [*tower.parameters(), *heads.dense.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05)
    sums: dict[str, list[float]] = {}
    for step in range(args.vision_steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args.vision_steps, args.lr, 40)
        seeds = range(VISION_PAIRS * step, VISION_PAIRS * (step + 1))
        first = train_seeds(args.seed) + SEEDS_PER_RUN // 2
        batch = [look(np.random.default_rng([first + s, 98]), first + s, "pair")[2] for s in seeds]
        pixels = torch.cat([patches(one.frames, True) for one in batch])
        grids = torch.tensor([[1, one.grid[1] * MERGE, one.grid[2] * MERGE] for one in batch])
        labels = torch.from_numpy(np.concatenate([one.labels_CV for one in batch], 1))
        with torch.autocast("cpu", torch.bfloat16):
            dense, told = heads.dense_loss(tower(pixels, grid_thw=grids).pooler_output, labels)
        optimiser.zero_grad()
        dense.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        for key, value in {"dense": dense.item(), **told}.items():
            sums.setdefault(key, []).append(value)
        if (step + 1) % 50 == 0:
            watch.log(step + 1 - args.vision_steps, **{k: float(np.nanmean(v)) for k, v in sums.items()})
            sums = {}


def train(work: Path, args: argparse.Namespace) -> None:
    """The loop. Settings that change the data are arguments; the rest stands here."""
    tokenizer = make_tokenizer(corpus(args.corpus_scenes))
    torch.manual_seed(args.seed)
    model = make_model(tokenizer)
    heads = Heads(model.config.text_config.hidden_size)
    model.set_attn_implementation({"text_config": "plain", "vision_config": "plain"})
    both = nn.ModuleList([model, heads])
    decayed = [p for p in both.parameters() if p.ndim > 1]
    rest = [p for p in both.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    average = {k: v.clone() for k, v in model.state_dict().items()}
    watch, packer = Watch(work, COLUMNS), Packer(tokenizer)
    start = 0
    if state := watch.resume():
        start = state["step"]
        both.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average = state["average"]
    note_command(work, start)
    if not state:
        train_vision(model, heads, watch, args)
        average = {k: v.clone() for k, v in model.state_dict().items()}
        kept = {"model": both.state_dict(), "optimiser": optimiser.state_dict(), "average": average}
        watch.save(0, **kept, args=vars(args))
    sums: dict[str, list[float]] = {}
    model.train()
    for step in range(start, args.steps):
        lr = learning_rate(step, args.steps, args.lr, 100)
        for group in optimiser.param_groups:
            group["lr"] = lr
        progress = step / args.steps
        forms = next(mix for until, mix in STAGES if progress < until)
        attention = args.attention_weight * max(0.0, 1 - progress / args.attention_until)
        optimiser.zero_grad()
        asked: list[Question] = []
        seed = train_seeds(args.seed) + step * 32
        for form, count in forms.items():
            batch = []
            for _ in range(count):
                one, choice = example(seed, form)
                seed += 1
                batch.append(one)
                asked.append(choice)
            loss, parts = losses(model, heads, packer.pack(batch), attention)
            (loss * count / sum(forms.values())).backward()
            for key, value in {"loss": loss.item(), **parts}.items():
                sums.setdefault(key, []).append(value)
        if step % 2 == 0 and progress > 0.1:
            loss, parts = losses(model, heads, packer.pack_text(asked[::2]), 0.0)
            (0.5 * loss).backward()
            sums.setdefault("choice", []).append(parts["right"])
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimiser.step()
        decay = min(0.995, (step + 1) / (step + 10))
        for k, v in model.state_dict().items():
            average[k].lerp_(v, 1 - decay)
        last = step == args.steps - 1
        if (step + 1) % args.check_every == 0 or last:
            now = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(average)
            figures = check(model, packer, args.check_scenes)
            model.load_state_dict(now)
            watch.log(step + 1, lr=lr, **{k: float(np.nanmean(v)) for k, v in sums.items()}, **figures)
            watch.save(
                step + 1,
                model=both.state_dict(),
                optimiser=optimiser.state_dict(),
                average=average,
                args=vars(args),
            )
            sums = {}
        elif (step + 1) % 20 == 0:
            watch.log(step + 1, lr=lr, **{k: float(np.nanmean(v)) for k, v in sums.items()})
            sums = {}


def export(work: Path, out: Path) -> None:
    """Write the averaged weights as an ordinary model folder, fp16."""
    state = torch.load(work / "last.pt", weights_only=False)
    tokenizer = make_tokenizer(corpus(state["args"].get("corpus_scenes", 160)))
    model = make_model(tokenizer)
    model.load_state_dict(state["average"])
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    make_processor(tokenizer).save_pretrained(out)
    facts = {
        "script": "tools/train/train_mllm.py",
        "arguments": {k: v for k, v in state["args"].items() if k not in ("work", "out")},
        "steps": state["step"],
        "wall_s": round(state["clock"][0]),
        "cpu_s": round(state["clock"][1]),
        "data": f"shapes world, scene seeds {train_seeds(state['args']['seed'])} onwards",
        "log": "docs/training/tiny_mllm.csv",
        "licence": "Apache-2.0",
    }
    (out / "provenance.json").write_text(provenance(work, **facts))


def main() -> None:
    """Train what is left to train, then export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for log and checkpoints")
    parser.add_argument("--out", type=Path, help="folder of the finished model")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--vision-steps", type=int, default=1500, help="of the vision tower, beforehand")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--check-every", type=int, default=200)
    parser.add_argument("--check-scenes", type=int, default=16)
    parser.add_argument("--corpus-scenes", type=int, default=160)
    parser.add_argument(
        "--attention-weight", type=float, default=0.6, help="of the loss on attention, at the start"
    )
    parser.add_argument(
        "--attention-until", type=float, default=1.0, help="share of the steps at which it has faded out"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and scenes, 0 to 5")
    args = parser.parse_args()
    setup(args.seed)
    AttentionInterface.register("plain", plain_attention)
    train(args.work, args)
    if args.out:
        export(args.work, args.out)


if __name__ == "__main__":
    main()
