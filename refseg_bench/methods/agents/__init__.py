"""What methods that converse with a chat model share: conversations side by side, and reading replies.

No idea of a method lives here, and nothing of how a model is asked (that is ``backbones.chat``).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
import threading
from abc import abstractmethod
from bisect import bisect
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from refseg_bench.backbones.chat import ChatModel, Conversation, Message, Uint8HWC
from refseg_bench.config.schema import refuse_outside
from refseg_bench.errors import ConfigError, StoreError
from refseg_bench.files.store_io import parse_json, read_yaml
from refseg_bench.methods.base import Method, track_prompts
from refseg_bench.segmenters.base import Instance, Prompt, Segmenter, SegmenterSession
from refseg_bench.types import BoolHW, Clip, Expression, Grounding, MaskTrack

T = TypeVar("T")
Box = tuple[float, float, float, float]
#: Most things that a reply may list, each of which brings calls of its own: some models repeat themselves.
MOST_LISTED = 100
#: A position further outside of the picture, as a share of its side, is one in another unit.
_BEYOND = 0.1
#: Errors that no other conversation will escape.
_OF_ALL = (ConfigError, StoreError, ImportError)


@dataclass
class ChatMethod(Method):
    """A method that grounds each expression by a conversation.

    Up to ``backbone.batch_size`` conversations of a clip go on at a time: while one waits for the chat
    model, another segments. One that fails takes no other with it.
    """

    #: Options that count something, of which there must be one at least.
    counts: ClassVar[tuple[str, ...]] = ("tries",)

    backbone: ChatModel
    segmenter: Segmenter
    tries: int = 3  #: most calls where a reply can't be read
    _found: dict[str, list[Instance]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _clip: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        refuse_outside(self, 1, math.inf, *self.counts)

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        """One grounding per expression, each as soon as its conversation has ended."""
        failure: Exception | None = None
        with self.segmenter.open(clip) as session, _event_loop() as run:
            tasks = run(self._start(session, expressions))
            try:
                waiting = list(tasks)
                while waiting:
                    done, _ = run(_first(waiting))
                    for task in [task for task in waiting if task in done]:
                        waiting.remove(task)
                        error = task.exception()
                        if error is None:
                            yield task.result()
                        elif isinstance(error, Exception) and not isinstance(error, _OF_ALL):
                            failure = failure or error
                        else:
                            raise error
            finally:
                run(self._end(tasks))
        if failure is not None:
            raise failure

    async def _start(
        self, session: SegmenterSession, expressions: Sequence[Expression]
    ) -> list[asyncio.Task[Grounding]]:
        at_once = asyncio.Semaphore(self.backbone.batch_size)

        async def one(expression: Expression) -> Grounding:
            async with at_once:
                talk = Conversation(self.backbone, self.tries)
                try:
                    found = await self.ground(talk, session, expression)
                except Exception as error:
                    talk.failed(error)
                    raise
                details = {**found.details, **talk.details()}
                return replace(found, details=details, pictures=talk.pictures)

        return [asyncio.ensure_future(one(expression)) for expression in expressions]

    def find(self, session: SegmenterSession, phrase: str) -> list[Instance]:
        """A phrase's instances; expressions of one clip often look for the same."""
        if self._clip != session.clip.id:
            self._clip, self._found = session.clip.id, {}
        if phrase not in self._found:
            self._found[phrase] = session.find(phrase)
        return self._found[phrase]

    def shown(self, clip: Clip, frames: Sequence[int]) -> list[Uint8HWC]:
        """Frames of a clip as large as they are sent, each decoded alone."""
        return [self.backbone.fit(clip.load([frame])[0]) for frame in frames]

    async def _end(self, tasks: Sequence[asyncio.Task[Grounding]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.backbone.close()

    @abstractmethod
    async def ground(
        self, talk: Conversation, session: SegmenterSession, expression: Expression
    ) -> Grounding:
        """Answer one expression.

        Args:
            talk: asks the chat model, and keeps the account of it.
            session: the clip, opened by the segmenter.
            expression: what is meant.

        Raises:
            ChatError: the conversation led nowhere.
        """


@contextmanager
def _event_loop() -> Iterator[Callable[[Coroutine[Any, Any, T]], T]]:
    """What runs a coroutine to its end, also where this thread has an event loop at work (a notebook's)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with asyncio.Runner() as runner:
            yield runner.run
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="conversations", daemon=True)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _first(tasks: Sequence[asyncio.Task[Grounding]]) -> tuple[set[Any], set[Any]]:
    return await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def texts(module: str) -> dict[str, str]:
    """What a method sends, by name: the YAML beside its module."""
    return read_yaml(Path(module).with_suffix(".yaml"))


def user(*parts: str | Uint8HWC) -> Message:
    """One turn of ours: texts and pictures."""
    return Message("user", parts)


def track_mask(session: SegmenterSession, frame: int, mask_HW: BoolHW | None) -> MaskTrack:
    """A mask of one frame tracked both ways; an image's is its track. ``None`` = nothing."""
    clip = session.clip
    if mask_HW is None:
        return MaskTrack.empty(clip.size, len(clip))
    if len(clip) == 1:
        return MaskTrack.from_masks([mask_HW], clip.size)
    return track_prompts(session, frame, [Prompt(mask=mask_HW)])


# ── reading replies ──────────────────────────────────────────────────────────

# Each raises a ``ValueError`` where a reply isn't so: it tells the model what is wrong, which is asked again.


def read_object(words: str) -> dict[str, Any]:
    """The JSON object in a reply."""
    value = read_json(words)
    if not isinstance(value, dict):
        raise ValueError("the JSON is no object")
    return value


def read_text(said: Mapping[str, Any], name: str) -> str:
    """A text of a reply's object, stripped."""
    value = said.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'"{name}" must be a text')
    return value.strip()


def read_texts(said: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts of a reply's object, each stripped."""
    value = said.get(name)
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        raise ValueError(f'"{name}" must be a list of texts')
    if len(value) > MOST_LISTED:
        raise ValueError(f'"{name}" lists {len(value)} texts, more than {MOST_LISTED}')
    return [one.strip() for one in value]


def read_flag(said: Mapping[str, Any], name: str) -> bool:
    """A yes or no of a reply's object."""
    value = said.get(name)
    if not isinstance(value, bool):
        raise ValueError(f'"{name}" must be true or false')
    return value


def read_json(words: str) -> Any:
    r"""The JSON in a reply: in a fence or a tag, or the first value that stands alone in the words.

    >>> read_json("Sure: ```json\n[1, 2]\n``` as asked"), read_json("It is {'a': 1}, or {\"a\": 2}.")
    ([1, 2], {'a': 2})
    """
    fenced = words.split("```")[1:-1:2]
    for text in (*reversed([*fenced, *_tagged(words)]), words):
        found = _first_json(text)
        if found is not None:
            return found
    raise ValueError("there is no JSON in it")


def _tagged(words: str) -> list[str]:
    """What stands in ``<tag>…</tag>`` and begins like JSON; in one pass, however long and odd the words."""
    ends: dict[str, list[int]] = {}
    for end in re.finditer(r"</(\w+)>", words):
        ends.setdefault(end[1], []).append(end.start())
    out, after = list[str](), 0
    for begin in re.finditer(r"<(\w+)>\s*(?=[\[{])", words):
        places = ends.get(begin[1], [])
        row = bisect(places, begin.end())
        if begin.start() >= after and row < len(places):
            after = places[row]
            out.append(words[begin.end() : after])
    return out


#: Values tried in one reply: a text of brackets alone must not take long.
_MOST_STARTS = 200


def _first_json(text: str) -> Any:
    for match in itertools.islice(re.finditer(r"[\[{]", text), _MOST_STARTS):
        with suppress(ValueError, RecursionError):
            _, end = json.JSONDecoder().raw_decode(text, match.start())
            return parse_json(text[match.start() : end])
    return None


def read_number(said: Mapping[str, Any], name: str, low: float, high: float) -> float:
    """A number of a reply's object, from ``low`` to ``high``."""
    value = said.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f'"{name}" must be a number from {low} to {high}')
    return float(value)


def read_choice(said: Mapping[str, Any], name: str, allowed: Sequence[str]) -> str:
    """One of some words of a reply's object, in any case."""
    value = str(said.get(name)).strip().lower()
    for one in allowed:
        if value == one.lower():
            return one
    raise ValueError(f'"{name}" must be one of {list(allowed)}')


def read_boxes(words: str, model: ChatModel, size: tuple[int, int], *, shares: bool = False) -> list[Box]:
    """Boxes of a reply as shares of the picture, in the reply's order.

    JSON with ``bbox_2d`` (or ``bbox``, ``box``), lists of four numbers, and ``<box>[[…]]</box>`` are read.

    Args:
        words: the reply.
        model: says in which unit it writes (``boxes``).
        size: (height, width) of the picture that it was sent.
        shares: numbers up to 1 are shares of the picture already; a 1 beside larger numbers is none.

    Returns:
        (x0, y0, x1, y1) in [0, 1], cut at the picture's border where they pass it a little. None at all where
        the reply is an empty list, or says ``none``.

    Raises:
        ValueError: there is no box and no word that there is none, or one that isn't a box.

    >>> from refseg_bench.backbones.chat import ChatEndpoint
    >>> read_boxes('[{"bbox_2d": [100, 200, 300, 400], "label": "dog"}]', ChatEndpoint(), (10, 10))
    [(0.1, 0.2, 0.3, 0.4)]
    >>> read_boxes("<box>[[7, 0, 14, 28]]</box>", ChatEndpoint(boxes="pixels"), (28, 28))
    [(0.25, 0.0, 0.5, 1.0)]
    """
    found: list[list[float]] = []
    try:
        value = read_json(words)
    except ValueError:
        value = [] if re.fullmatch(r"\W*(none|nothing|no (object|box|target)s?)\W*", words, re.I) else None
    _gather(value, ("bbox_2d", "bbox", "box"), 4, found)
    if not found and value not in ([], [[]]):
        raise ValueError("there is no box in it; the form is [[x1, y1, x2, y2]], or [] if there is none")
    boxes: list[Box] = []
    for numbers in found:
        x0, y0, x1, y1 = _as_shares(numbers, model, size, shares)
        if not (x0 < x1 and y0 < y1):
            raise ValueError(f"{numbers} is no box x1 < x2, y1 < y2 inside the picture")
        boxes.append((x0, y0, x1, y1))
    return boxes


def read_point(
    words: str, model: ChatModel, size: tuple[int, int], *, shares: bool = False
) -> tuple[float, float]:
    """The last point (x, y) of a reply as shares of the picture; see :func:`read_boxes`.

    Raises:
        ValueError: there is none.

    >>> from refseg_bench.backbones.chat import ChatEndpoint
    >>> read_point('{"point": [250, 1050]}', ChatEndpoint(), (10, 10))
    (0.25, 1.0)
    """
    found: list[list[float]] = []
    _gather(read_json(words), ("point_2d", "point"), 2, found)
    if not found:
        raise ValueError("there is no point [x, y] in it")
    x, y = _as_shares(found[-1], model, size, shares)
    return x, y


def _as_shares(
    numbers: Sequence[float], model: ChatModel, size: tuple[int, int], shares: bool
) -> list[float]:
    sides = (size[1], size[0]) if model.boxes == "pixels" else (1000, 1000)
    # 0 to 1, or below 1: the 1 of [1, 40, 500, 600] is not the picture's whole side.
    small = max(numbers) <= 1
    if small and not shares and any(value > 0 for value in numbers):
        raise ValueError(f"{numbers} are shares of the picture, not {model.boxes}")
    most = (1 if small else math.nextafter(1, 0)) if shares else -math.inf
    found = [value if value <= most else value / sides[place % 2] for place, value in enumerate(numbers)]
    if not -_BEYOND <= min(found) <= max(found) <= 1 + _BEYOND:
        raise ValueError(f"{numbers} lie outside of the picture, in {model.boxes}")
    return [min(1.0, max(0.0, value)) for value in found]


def _gather(value: Any, names: Sequence[str], length: int, found: list[list[float]], depth: int = 0) -> None:
    """All lists of so many numbers in a JSON value; an object's own are under one of the names."""
    if depth > 8:
        raise ValueError("it is nested too deep")
    if isinstance(value, dict):
        inner = [value[name] for name in names if name in value] or list(value.values())
        for item in inner:
            _gather(item, names, length, found, depth + 1)
    elif isinstance(value, list):
        if len(value) == length and all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in value
        ):
            if not all(abs(v) < 1e9 for v in value):
                raise ValueError(f"{value} is no box or point")
            found.append(value)
        else:
            for item in value:
                _gather(item, names, length, found, depth + 1)


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1).

    >>> box_iou((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    sides = [max(0.0, min(one[k + 2], other[k + 2]) - max(one[k], other[k])) for k in (0, 1)]
    both = sides[0] * sides[1]
    either = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - both
    return float(both / either) if either else 0.0
