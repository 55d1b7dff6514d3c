"""A chat model with vision: words and images in, words out. Every reply is kept, and replayed.

A conversation is told apart by all that made it: the model, its options, every message and every pixel.
So a run that was killed goes on inside a conversation, later stages can be changed without a call, and a
sampled conversation is the same each time. Attention can't pass through a server: methods that read it
have backbones of their own (``mllm``, ``dit``). What a method makes of replies lives with the method.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import os
import re
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refseg_bench import env
from refseg_bench.backbones.base import Backbone
from refseg_bench.backbones.lazy_torch import torch
from refseg_bench.backbones.weights import (
    Weights,
    choose_device,
    content,
    fetch,
    identity,
    load_module,
    load_processor,
)
from refseg_bench.cache import Cache, digest
from refseg_bench.config.schema import option
from refseg_bench.errors import ConfigError, RefsegError, require
from refseg_bench.files.images import encoded

T = TypeVar("T")
E = TypeVar("E", bound=Exception)
Uint8HWC = NDArray[np.uint8]
#: Bump when what is sent for the same message changes.
_VERSION = 1
#: Longest side of what the report shows of a picture that was sent.
_SHOWN = 480
#: Most characters of a reply: no model says so much, a broken server may.
_LONGEST = 1 << 20
#: How servers say that a reply was cut at ``max_tokens``, and that they broke it off or held it back.
_CUT = ("length", "max_tokens", "model_length")
_BROKEN = ("abort", "error", "content_filter", "insufficient_system_resource")


@dataclass(frozen=True, eq=False)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]  #: who speaks
    parts: tuple[str | Uint8HWC, ...]  #: texts and images (uint8 RGB ``(H, W, 3)``), in order

    def told(self) -> dict[str, Any]:
        """The message as JSON values; an image is told by its size and the digest of its pixels."""
        return {"role": self.role, "parts": [p if isinstance(p, str) else _told(p) for p in self.parts]}


@dataclass(frozen=True)
class Reply:
    """What the model said."""

    text: str  #: its words
    finish: str  #: why it stopped: ``stop``, ``length`` (cut at ``max_tokens``), or the server's own word
    #: prompt_tokens, answer_tokens: as the model counts them; ``None`` where it doesn't say.
    prompt_tokens: int | None
    answer_tokens: int | None
    seconds: float  #: until the reply was there, when it was asked


class ChatError(RefsegError):
    """A conversation that led nowhere. Its transcript is kept with the sample's failure."""


@dataclass
class ChatModel(Backbone):
    """Options of every chat model."""

    model: str = ""  #: the model's id
    revision: str = ""  #: of its weights; part of what a reply is kept under
    system: str = ""  #: words put before every conversation; empty = none
    temperature: float = 0.0  #: 0 = the likeliest word each time. Above, draws go by the run's ``seed``.
    max_tokens: int = 1024  #: longest reply
    #: How it writes positions: ``pixels`` of the image it was sent, or ``thousandths`` of its sides.
    boxes: Literal["pixels", "thousandths"] = "thousandths"
    #: Images are sent with sides that are multiples of this, so that the model resizes them no more and its
    #: pixels are ours.
    side_multiple: int = 1
    max_pixels: int = 1280 * 28 * 28  #: larger images are sent smaller
    #: Take kept replies only; a conversation that isn't kept is an error.
    offline: bool = option(False, transient=True)
    batch_size: int = option(8, transient=True)  #: most conversations at a time
    label: str = option("", transient=True)  #: what published tables call the model, to find its rows

    #: Options that a reply depends on.
    asks_with: ClassVar[tuple[str, ...]] = ("model", "revision", "system", "temperature", "max_tokens")
    calls: int = field(default=0, init=False, repr=False, compare=False)
    replayed: int = field(default=0, init=False, repr=False, compare=False)
    _asked: dict[str, asyncio.Task[Reply]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def identity(self) -> dict[str, Any]:
        """Everything that a reply depends on but the messages."""
        drawn = {"seed": env.run_seed()} if self.temperature > 0 else {}
        return {name: getattr(self, name) for name in self.asks_with} | drawn

    async def reply(self, messages: Sequence[Message], again: int = 0) -> tuple[Reply, bool]:
        """The reply to a conversation, and whether it was replayed.

        Args:
            messages: all turns, in order.
            again: how often these very messages were sent before in this conversation.

        Raises:
            ChatError: the model refuses the request, or ``offline`` and the reply isn't kept.
            ConfigError: no request can work (no server, no such model, no right to it).
        """
        if self.system:
            messages = [Message("system", (self.system,)), *messages]
        key = {
            "stage": "chat",
            "version": _VERSION,
            "model": self.identity(),
            "messages": [message.told() for message in messages],
            "again": again,
        }
        name = digest(key)
        if name in self._asked:  # another conversation says the same at this moment
            self.replayed += 1
            return await asyncio.shield(self._asked[name]), True
        kept = self._cache.get(key)
        if kept is not None:
            self.replayed += 1
            return Reply(**json.loads(str(kept["reply"]))), True
        if self.offline:
            raise ChatError(
                "The reply to this conversation is not kept here.",
                where=self.model,
                hint="backbone.offline=false asks the model; or bring the cache that the run was made with.",
            )
        task = self._asked[name] = asyncio.ensure_future(self._ask(key, messages))
        try:
            return await asyncio.shield(task), False
        finally:
            self._asked.pop(name, None)

    async def _ask(self, key: Mapping[str, Any], messages: Sequence[Message]) -> Reply:
        self.calls += 1
        began = time.perf_counter()
        found = await self.complete(messages)
        if len(found.text) > _LONGEST:
            raise ChatError(f"The reply has {len(found.text)} characters.", allowed=[f"up to {_LONGEST}"])
        if found.finish in _BROKEN:
            raise ChatError(f"The server broke its reply off ({found.finish}).", where=self.model)
        reply = Reply(found.text, found.finish, found.prompt_tokens, found.answer_tokens,
                      round(time.perf_counter() - began, 3))  # fmt: skip
        self._cache.put(key, {"reply": json.dumps(asdict(reply))})
        return reply

    @abstractmethod
    async def complete(self, messages: Sequence[Message]) -> Reply:
        """Ask the model itself."""

    async def close(self) -> None:
        """End the connections of the present event loop."""

    def fit(self, image_HWC: Uint8HWC) -> Uint8HWC:
        """An image as large as it is sent: see ``side_multiple`` and ``max_pixels``.

        >>> import numpy as np
        >>> model = ChatEndpoint(side_multiple=28, max_pixels=28 * 28 * 6)
        >>> model.fit(np.zeros((100, 150, 3), np.uint8)).shape
        (56, 84, 3)
        """
        height, width = image_HWC.shape[:2]
        step = self.side_multiple
        sides = [max(step, round(side / step) * step) for side in (height, width)]
        if sides[0] * sides[1] > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            sides = [max(step, math.floor(side / shrink / step) * step) for side in (height, width)]
        if sides == [height, width]:
            return image_HWC
        small = Image.fromarray(image_HWC).resize((sides[1], sides[0]), Image.Resampling.BICUBIC)
        return np.asarray(small)

    def report(self) -> dict[str, Any]:
        """For the run record: what was asked, how often."""
        return {**self.identity(), "calls": self.calls, "replayed": self.replayed}

    @property
    def _cache(self) -> Cache:
        return Cache(None if self.cache_root is None else self.cache_root / "chat")


@dataclass
class ChatEndpoint(ChatModel):
    """A model behind a server that speaks OpenAI's protocol (vLLM, SGLang, transformers, a vendor)."""

    #: The server's address up to ``/v1``; by default what ``OPENAI_BASE_URL`` says.
    url: str = option("", transient=True)
    #: Environment variable that holds the secret key; it may be unset for one's own server.
    key_variable: str = option("OPENAI_API_KEY", transient=True)
    timeout: float = option(600.0, transient=True)  #: seconds to wait for a reply
    #: How often a request is repeated, with growing pauses, after 429, 5xx, or no answer in time.
    retries: int = option(5, transient=True)
    #: More fields of the request (``top_p``, ``chat_template_kwargs`` …).
    extra: dict[str, Any] = field(default_factory=dict)

    asks_with: ClassVar[tuple[str, ...]] = (*ChatModel.asks_with, "extra")
    _client: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if "@" in self.url:
            raise ConfigError(
                "The server's address holds a name or password, which would be written into the run folder.",
                where="backbone.url",
                hint="Put it into the environment, as OPENAI_BASE_URL.",
            )

    async def complete(self, messages: Sequence[Message]) -> Reply:
        """One request. Secrets never enter what it raises."""
        import openai

        if self._client is None:
            self._client = self._connect()
        words: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        if self.temperature > 0:
            words["seed"] = env.run_seed()
        try:
            done = await self._client.chat.completions.create(
                model=self.model,
                messages=[_wire(m) for m in messages],
                extra_body=self.extra or None,
                **words,
            )
            if wrong := getattr(done, "error", None):  # under 200, as of a server behind the server
                status = wrong.get("code") if isinstance(wrong, dict) else None
                raise await self._refused(status if isinstance(status, int) else 200, str(wrong))
            choice = done.choices[0]
            text = choice.message.content or getattr(choice.message, "refusal", None) or ""
            if isinstance(text, list):  # in parts; those of another type are thoughts
                text = "".join(part["text"] for part in text if part.get("type") == "text")
            # What no encoding can write (half a surrogate pair) can't be sent again, either.
            text = text.encode("utf-8", "replace").decode("utf-8")
        except openai.APIStatusError as error:
            said, wait = error.response.text or str(error.message), error.response.headers.get("retry-after")
            before = int(error.request.headers.get("x-stainless-retry-count", 0))
            raise await self._refused(error.status_code, said, before, wait) from None
        except openai.APIConnectionError as error:
            raise ConfigError(
                f"No answer from the chat model's server ({type(error.__cause__ or error).__name__}).",
                where=self._where(),
                hint="Start it, or set backbone.url (OPENAI_BASE_URL); backbone.timeout and backbone.retries "
                "wait longer. What was answered is kept.",
            ) from None
        except (openai.OpenAIError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise ChatError(
                f"The server's reply is none ({type(error).__name__}).", where=self._where()
            ) from None
        used = (getattr(done.usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
        asked, answered = (count if isinstance(count, int) else None for count in used)
        return Reply(text, str(choice.finish_reason), asked, answered, 0.0)

    def _connect(self) -> Any:
        require("openai", "A chat model behind a server")
        import openai

        url = self.url or os.environ.get("OPENAI_BASE_URL", "")
        if not url.startswith(("http://", "https://")) or not self.model:
            raise ConfigError(
                "The chat model has no server." if self.model else "The chat model has no name.",
                where="backbone.url" if self.model else "backbone.model",
                hint="backbone.url=http://HOST:PORT/v1 or OPENAI_BASE_URL names the server, backbone.model "
                "the model on it.",
            )
        key = os.environ.get(self.key_variable) or "none"
        try:
            return openai.AsyncOpenAI(
                base_url=url, api_key=key, timeout=self.timeout, max_retries=self.retries
            )
        except Exception as error:  # of httpx, or of what takes its place
            if type(error).__name__ != "InvalidURL":
                raise
            raise ConfigError(
                f"The chat model's server has no such address: {error}.", where="backbone.url"
            ) from None

    def _where(self) -> str:
        """The server's address without a name, password or key that it may hold."""
        return str(self._client.base_url.copy_with(userinfo=b"", query=None))

    async def _refused(self, status: int, said: str, before: int = 0, wait: str | None = None) -> RefsegError:
        import openai

        secret = os.environ.get(self.key_variable)
        said = (said.replace(secret, "…") if secret else said)[:500]
        what = f"The chat model's server says {status}: {said}"
        where = f"{self._where()}, model {self.model}"
        if status in (401, 403):
            return ConfigError(
                what, where=where, hint=f"Put the key into the environment: {self.key_variable}."
            )
        if status in (400, 404, 422):
            with suppress(openai.OpenAIError, ValueError, TypeError):
                known = [str(model.id) for model in (await self._client.models.list()).data]
                if known and self.model not in known:
                    return ConfigError(what, where="backbone.model", allowed=known)
        if status in (402, 429) or status >= 500:
            hint = f"It said so {before + 1} times{f' (Retry-After: {wait})' if wait else ''}."
            return ConfigError(what, where=where, hint=f"{hint} What was answered is kept: run again later.")
        return ChatError(what, where=where)

    async def close(self) -> None:
        """End the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()


@dataclass
class ChatLocal(ChatModel):
    """A chat model of transformers in this process; ``model`` is a hub id or local folder."""

    #: Of the weights; ``auto`` = the checkpoint's own.
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    attention: Literal["sdpa", "flash_attention_2", "flash_attention_3", "eager"] = "sdpa"  #: kernel
    device: str = option("auto", transient=True)  #: ``auto`` = the first GPU, else the CPU

    asks_with: ClassVar[tuple[str, ...]] = (*ChatModel.asks_with, "dtype", "attention")
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    def weights(self) -> tuple[Weights, ...]:
        """What ``refseg models`` lists and fetches."""
        if not self.model:
            raise ConfigError(
                "The chat model has no name.", where="backbone.model", hint="backbone.model=HUB_ID"
            )
        patterns = ("*.json", "*.safetensors", "*.txt", "*.jinja")
        return (Weights(self.model, self.revision or None, patterns=patterns, component="backbone"),)

    def identity(self) -> dict[str, Any]:
        """See the base: a model is what its files hold, not where they lie or what a branch is called."""
        needed = self._pinned
        told = {} if needed.local else {"revision": needed.revision or ""}
        if needed.local or self._content not in (None, needed.revision):
            told["weights"] = self._content or ""
        return super().identity() | told

    async def reply(self, messages: Sequence[Message], again: int = 0) -> tuple[Reply, bool]:
        """See the base; the first one fetches what isn't here, for only then its commit is known."""
        commit = re.fullmatch("[0-9a-f]{40}", self._pinned.revision or "")
        if commit is None and not self._pinned.local and not self.offline:
            fetch(self._pinned)
            del self._pinned
        return await super().reply(messages, again)

    @cached_property
    def _content(self) -> str | None:
        return content(self.weights()[0], self.cache_root)

    @cached_property
    def _pinned(self) -> Weights:
        """The weights at the commit that replies are kept under: a branch may move meanwhile.

        Where they are not here, at the commit that was asked last: kept replies need no model.
        """
        needed = self.weights()[0]
        if needed.local:
            return needed
        key = {"stage": "chat model", "model": self.model, "revision": self.revision}
        commit = identity(needed, self.cache_root).get("commit")
        if commit is not None:
            self._cache.put(key, {"commit": commit})
        elif (kept := self._cache.get(key)) is not None:
            commit = str(kept["commit"])
        return needed if commit is None else replace(needed, revision=commit)

    async def complete(self, messages: Sequence[Message]) -> Reply:
        """One generation; nothing else of the process goes on meanwhile.

        Raises:
            ChatError: the words hold a control token, the conversation is longer than the model's context, or
                a word's scores are NaN.
        """
        from transformers import LogitsProcessor, LogitsProcessorList

        class Finite(LogitsProcessor):  # type: ignore[misc]
            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                # The likeliest of words whose scores are NaN is the first: a reply of one word over and over.
                if not bool(torch.isfinite(scores.amax(-1)).all()):
                    raise ChatError(
                        "The scores of the next word are NaN or infinite.",
                        where=where,
                        hint="Half precision overflows in some models: backbone.dtype=bfloat16 or float32.",
                    )
                return scores

        where = self.model
        processor, model = self._model
        added = getattr(processor, "tokenizer", processor).added_tokens_decoder.values()
        words = "\n".join(p for m in messages if m.role == "user" for p in m.parts if isinstance(p, str))
        if control := next((token for token in added if token.special and token.content in words), None):
            raise ChatError(
                f"The words hold '{control.content}', which is a control token of the model.",
                where=where,
                hint="Correct the expression, or leave the sample out.",
            )
        talk = [{"role": m.role, "content": [_local(part) for part in m.parts]} for m in messages]
        inputs = processor.apply_chat_template(
            talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        drawn: dict[str, Any] = {"do_sample": self.temperature > 0}
        if self.temperature > 0:
            drawn["temperature"] = self.temperature
        given = int(inputs["input_ids"].shape[1])
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and given > int(context):
            raise ChatError(
                f"The conversation takes {given} tokens; the model's context is {context}.",
                where=self.model,
                hint="Show fewer frames, or smaller ones (backbone.max_pixels).",
            )
        drawn["logits_processor"] = LogitsProcessorList([Finite()])
        torch.manual_seed(env.run_seed())
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=self.max_tokens, **drawn)[0, given:]
        text = processor.decode(ids, skip_special_tokens=True)
        ends = torch.tensor([model.generation_config.eos_token_id or 0], device=ids.device)
        whole = len(ids) < self.max_tokens or bool((ids[-1] == ends).any())
        return Reply(text.strip(), "stop" if whole else "length", given, len(ids), 0.0)

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        place = fetch(self._pinned, offline=self.offline)
        dtype = self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        kind, device = AutoModelForImageTextToText, choose_device(self.device)
        model = load_module(kind, place, dtype, device, attn_implementation=self.attention)
        return load_processor(AutoProcessor, place), model.eval()


def _told(image_HWC: Uint8HWC) -> dict[str, Any]:
    pixels = hashlib.blake2b(image_HWC.tobytes(), digest_size=16).hexdigest()
    return {"size": list(image_HWC.shape[:2]), "image": pixels}


def _small(image_HWC: Uint8HWC) -> bytes:
    """A picture as the report shows it."""
    picture = Image.fromarray(image_HWC)
    picture.thumbnail((_SHOWN, _SHOWN))
    return encoded(picture, "JPEG", quality=80)


def _wire(message: Message) -> dict[str, Any]:
    """A message as OpenAI's protocol has it; images travel inline as PNG."""
    content: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
            continue
        png = encoded(Image.fromarray(part), "PNG", compress_level=1)
        data = base64.b64encode(png).decode("ascii")
        content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    plain = len(content) == 1 and content[0]["type"] == "text"
    return {"role": message.role, "content": content[0]["text"] if plain else content}


def _local(part: str | Uint8HWC) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "image": Image.fromarray(part)}


# ── one sample's conversations ───────────────────────────────────────────────


@dataclass
class Cost:
    """What a sample's conversations took. Replayed calls count as they did when they were made."""

    calls: int = 0  #: requests, of which ``replayed`` needed no model
    replayed: int = 0
    #: prompt_tokens, answer_tokens: ``None`` where the model doesn't count them.
    prompt_tokens: int | None = 0
    answer_tokens: int | None = 0
    images: int = 0  #: sent
    seconds: float = 0.0  #: waited for replies


@dataclass(eq=False)
class Conversation:
    """All that is said for one sample, its transcript and its cost."""

    model: ChatModel  #: who answers
    tries: int = 3  #: most calls where a reply can't be read
    cost: Cost = field(default_factory=Cost, init=False)
    transcript: list[dict[str, Any]] = field(default_factory=list, init=False)
    #: What it was shown, small, by the digests that the transcript names.
    pictures: dict[str, bytes] = field(default_factory=dict, init=False)
    _sent: Counter[str] = field(default_factory=Counter, init=False)
    _before: list[dict[str, Any]] = field(default_factory=list, init=False)

    async def ask(self, messages: Sequence[Message], step: str) -> str:
        """The model's answer: its words less what it thought aloud, which the transcript keeps.

        Args:
            messages: all turns so far.
            step: what the method is at, for the reader of the transcript.

        Raises:
            ChatError: with the transcript so far.
        """
        said = [message.told() for message in messages]
        for message, told in zip(messages, said, strict=True):
            for part, plain in zip(message.parts, told["parts"], strict=True):
                if not isinstance(part, str) and plain["image"] not in self.pictures:
                    self.pictures[plain["image"]] = _small(part)
        name = digest({"messages": said})
        # A transcript tells each turn once.
        same = [a == b for a, b in zip(said, self._before, strict=False)]
        old = same.index(False) if False in same else len(same)
        turn: dict[str, Any] = {"step": step, "after": old, "messages": said[old:]}
        self.transcript.append(turn)
        self._before = said
        try:
            reply, replayed = await self.model.reply(messages, self._sent[name])
        except ChatError as error:
            turn["error"] = error.what
            raise self.failed(error) from error
        self._sent[name] += 1
        turn |= {"reply": reply.text, "finish": reply.finish}
        cost = self.cost
        cost.calls += 1
        cost.replayed += replayed
        cost.seconds += reply.seconds
        cost.images += sum(not isinstance(part, str) for message in messages for part in message.parts)
        cost.prompt_tokens = _sum(cost.prompt_tokens, reply.prompt_tokens)
        cost.answer_tokens = _sum(cost.answer_tokens, reply.answer_tokens)
        return answer(reply.text)

    async def ask_for(
        self,
        messages: Message | Sequence[Message],
        step: str,
        read: Callable[[str], T],
        *,
        closed: bool = False,
    ) -> T:
        """What ``read`` makes of the model's words; where it can't, the model is told why and asked again.

        Args:
            messages: all turns so far, or the one there is.
            step: what the method is at.
            read: takes the words; raises ``ValueError`` with what is wrong with them.
            closed: it finds the end of what it reads, so that a reply may be cut behind it. Else a reply that
                was cut can't be read: the first half of a list reads like a list.

        Raises:
            ChatError: no reply could be read.
        """
        messages = [messages] if isinstance(messages, Message) else messages
        told = list(messages)
        for _ in range(self.tries):
            words = await self.ask(told, step)
            cut = self.transcript[-1]["finish"] in _CUT
            wrong = f"your reply was cut after {self.model.max_tokens} tokens: be brief"
            if closed or not cut:
                try:
                    return read(words)
                except ValueError as error:
                    wrong = str(error)[:500] + (f" ({wrong})" if cut else "")  # it may quote the reply
            told = [
                *messages,
                Message("assistant", (words if words.strip() else "…",)),
                Message("user", (f"That can't be used: {wrong}. Answer again, in the form asked for.",)),
            ]
        raise self.failed(
            ChatError(f"{self.tries} replies at '{step}' could not be read: {wrong}.", where=self.model.model)
        )

    def details(self) -> dict[str, Any]:
        """JSON for the record: ``conversation`` and, last, where the store looks for it, ``cost``."""
        return {"conversation": self.transcript, "cost": asdict(self.cost)}

    def failed(self, error: E) -> E:
        """The error with what was said so far."""
        error.details, error.pictures = self.details(), self.pictures  # type: ignore[attr-defined]
        return error


#: Around what models think aloud: most, Mistral's, and Kimi's.
_THOUGHTS = r"<{0}(?:think|thinking|thought|reasoning)>|\[{0}THINK\]|◁{0}think▷"
_BEGIN, _END = (re.compile(_THOUGHTS.format(slash)) for slash in ("", "/"))


def answer(words: str) -> str:
    """A reply without what stands in ``<think>``; empty where it was cut while the model still thought.

    >>> answer("<think>[1] or [2]?</think> [2]"), answer("well</think>yes"), answer("<think>[1] or")
    (' [2]', 'yes', '')
    >>> answer("[THINK][1] or [2]?[/THINK][2]"), answer("<thinking>[1]</thinking>")
    ('[2]', '')
    """
    # A template may open the tag in the prompt: the reply then only closes it.
    return _BEGIN.split(_END.split(words)[-1])[0]


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
