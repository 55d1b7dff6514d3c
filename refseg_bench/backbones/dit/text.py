"""What a diffusion transformer is told: the tokens of an expression and its magnets, and their encoders.

A *string* is what the text encoder sees at once. With ``separate`` encoding the expression and
each magnet are strings of their own, each with its end token; with ``joined`` all are one string.
String 0 is always the expression, and a token of a joined string still says whose word it is.
"""

from __future__ import annotations

import string
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from refseg_bench.backbones.lazy_torch import Tensor, torch
from refseg_bench.backbones.weights import load_module, load_tokenizer
from refseg_bench.errors import ConfigError, DataError

TokenKind = Literal["word", "space", "punctuation", "end"]
MagnetEncoding = Literal["separate", "joined"]
Residence = Literal["keep", "cpu", "free"]
_T5 = ("T5EncoderModel", "UMT5EncoderModel")
_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
_REMEMBERED = 4096

#: SentencePiece's mark of a word's beginning.
MARK = "▁"


class Tokenizer(Protocol):
    """What is used of a tokenizer of transformers."""

    def __call__(self, text: str) -> Any:
        """Encode; the result has ``input_ids``, end token included."""

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The pieces of ids."""


@dataclass(frozen=True, slots=True)
class TextToken:
    """One extraction token."""

    id: int  #: in the text encoder's vocabulary
    piece: str  #: as the tokenizer spells it
    string: int  #: 0 = expression, 1 … = the magnets in order
    word: int  #: index of the whitespace-separated word within that string; −1 for the end token
    kind: TokenKind  #: ``space`` is a lone word mark, ``punctuation`` a piece without letters or digits


@dataclass(frozen=True)
class TokenSet:
    """The extraction tokens of one expression: its own, then its magnets'."""

    strings: tuple[tuple[int, ...], ...]  #: what the text encoder is given, in order
    tokens: tuple[TextToken, ...]  #: all tokens in order, end tokens included, no padding
    expression: str  #: the expression as encoded (lower-cased if asked for)
    magnets: tuple[str, ...] = ()  #: the magnets in order
    truncated: int = 0  #: tokens cut from an overlong expression
    first_only: bool = False  #: True if each string's first token alone stands for it

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def pieces(self) -> list[str]:
        """All pieces in order."""
        return [token.piece for token in self.tokens]

    @property
    def expression_tokens(self) -> tuple[int, ...]:
        """Indices of the expression's tokens, its end token included."""
        return tuple(i for i, token in enumerate(self.tokens) if token.string == 0)

    @property
    def words(self) -> list[str]:
        """The expression's whitespace-separated words."""
        return self.expression.split()

    def alone(self, string: int) -> TokenSet:
        """One string as a set of its own (separate encoding only); string 0 is the expression."""
        own = tuple(replace(t, string=0) for t in self.tokens if t.string == string)
        text = self.expression if string == 0 else self.magnets[string - 1]
        return TokenSet((self.strings[string],), own, text, first_only=self.first_only)

    def firsts(self) -> TokenSet:
        """Each string by its first token alone; the strings are encoded whole all the same."""
        starts = dict((t.string, t) for t in reversed(self.tokens))
        return replace(self, tokens=tuple(starts[s] for s in sorted(starts)), first_only=True)

    @property
    def separable(self) -> bool:
        """True if every string was encoded by itself."""
        return len(self.strings) == 1 + len(self.magnets)


def tokenise(
    tokenizer: Tokenizer,
    expression: str,
    magnets: Sequence[str] = (),
    *,
    encoding: MagnetEncoding = "separate",
    lowercase: bool = True,
    limit: int | None = None,
    overlong: Literal["truncate", "error"] = "truncate",
) -> TokenSet:
    """The extraction tokens of an expression.

    Args:
        tokenizer: of the text encoder.
        expression: the words.
        magnets: auxiliary words, in order.
        encoding: each magnet by itself with its own end token, or all in one string.
        lowercase: lower-case the expression first.
        limit: most tokens the model takes for all strings together.
        overlong: cut the expression to fit (its end token stays), or refuse.

    Raises:
        DataError: it is too long.
    """
    text = " ".join((expression.lower() if lowercase else expression).split())
    if encoding == "joined":
        joined = " ".join([text, *magnets])
        ids = _ids(tokenizer, joined)
        owners = [0] * len(text.split())
        for index, magnet in enumerate(magnets, 1):
            owners += [index] * len(magnet.split())
        strings = [ids]
        parts = [_joined(tokenizer, ids, owners)]
    else:
        strings = [_ids(tokenizer, text), *(_ids(tokenizer, magnet) for magnet in magnets)]
        parts = [_tokens(tokenizer, ids, index) for index, ids in enumerate(strings)]
    cut = 0 if limit is None else sum(map(len, strings)) - limit
    if cut > 0:
        if overlong == "error" or len(strings[0]) - cut < 2 or encoding == "joined":
            raise DataError(
                f"Expression and magnets are {sum(map(len, strings))} tokens, the model takes {limit}.",
                where=f"{text[:60]}…",
                hint="Shorten it, or use method.overlong=truncate with magnet_encoding=separate.",
            )
        strings[0] = [*strings[0][: -cut - 1], strings[0][-1]]
        parts[0] = [*parts[0][: -cut - 1], parts[0][-1]]
    return TokenSet(
        tuple(tuple(ids) for ids in strings),
        tuple(token for part in parts for token in part),
        text,
        tuple(magnets),
        max(cut, 0),
    )


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text).input_ids]


def _tokens(tokenizer: Tokenizer, ids: Sequence[int], string: int) -> list[TextToken]:
    """Tokens of a string of its own; the last id is the end token."""
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    marked = any(piece.startswith(MARK) for piece in pieces)
    out: list[TextToken] = []
    word = -1
    for position, (id_, piece) in enumerate(zip(ids, pieces, strict=True)):
        if position == len(ids) - 1:
            out.append(TextToken(id_, piece, string, -1, "end"))
            continue
        # A tokenizer without word marks (a tiny model's word list) has one token per word.
        if not marked or piece.startswith(MARK) or word < 0:
            word += 1
        out.append(TextToken(id_, piece, string, word, kind_of(piece)))
    return out


def _joined(tokenizer: Tokenizer, ids: Sequence[int], owners: Sequence[int]) -> list[TextToken]:
    """Tokens of one string shared by the expression and its magnets; the end token is the last owner's."""
    out: list[TextToken] = []
    for token in _tokens(tokenizer, ids, 0):
        owner = owners[-1] if token.kind == "end" else owners[min(token.word, len(owners) - 1)]
        word = token.word if token.word < 0 else token.word - owners.index(owner)
        out.append(TextToken(token.id, token.piece, owner, word, token.kind))
    return out


def kind_of(piece: str) -> TokenKind:
    """Whether a piece is (part of) a word, a lone word mark or punctuation."""
    body = piece.replace(MARK, "")
    if not body:
        return "space"
    if all(c in string.punctuation or unicodedata.category(c)[0] in "PSZ" for c in body):
        return "punctuation"
    return "word"


@dataclass(eq=False)
class TextSide:
    """Text encoders and tokenizers of a model folder in diffusers' layout: T5's states, CLIP's vectors.

    A T5-XXL weighs as much as half the transformer it serves, so it may stay on the device, wait on the CPU
    between uses, or be freed after use and loaded again when a new text comes. What it returned is
    remembered per process: the magnets of a whole run are encoded once.
    """

    folder: Path  #: the model folder
    index: dict[str, Any]  #: its ``model_index.json``
    #: dtype, device: of the encoders while they work.
    dtype: torch.dtype
    device: torch.device
    #: ``keep`` on the device, wait on the ``cpu``, or ``free`` after each clip's texts.
    residence: Residence = "keep"
    encodings: int = field(default=0, init=False)  #: encoder passes so far
    _modules: dict[str, Any] = field(default_factory=dict, init=False)
    _tokenizers: dict[str, Any] = field(default_factory=dict, init=False)
    _memory: OrderedDict[Any, Tensor] = field(default_factory=OrderedDict, init=False)

    def __post_init__(self) -> None:
        self._classes = parts = {
            name: entry[1]
            for name, entry in self.index.items()
            if name.startswith("text_encoder") and isinstance(entry, list) and entry[1]
        }
        self.t5_part = next((name for name, cls in parts.items() if cls in _T5), None)
        self.clip_parts = [name for name, cls in sorted(parts.items()) if cls in _CLIP]
        if self.t5_part is None:
            raise ConfigError(
                "The model has no T5 text encoder.", where=self.folder / "model_index.json", allowed=_T5
            )

    @property
    def tokenizer(self) -> Tokenizer:
        """T5's tokenizer."""
        assert self.t5_part is not None
        found: Tokenizer = self._tokenizer(self.t5_part)
        return found

    def states(self, ids: tuple[int, ...], pad_to: int | None = None) -> Tensor:
        """T5's last hidden states of one string: ``(len(ids) or pad_to, channels)`` on the CPU.

        Args:
            ids: token ids, end token included.
            pad_to: encode behind padding *without* a mask, as the FLUX and SD3 pipelines do; all
                ``pad_to`` states are returned.
        """
        part = self.t5_part
        assert part is not None
        padded = ids
        if pad_to is not None:
            padded = (*ids, *[self._tokenizer(part).pad_token_id or 0] * (pad_to - len(ids)))[:pad_to]

        def compute() -> Tensor:
            batch = torch.tensor([padded], device=self.device)
            mask = torch.ones_like(batch)
            return self._module(part)(input_ids=batch, attention_mask=mask).last_hidden_state[0]  # type: ignore[no-any-return]

        return self._remember((part, padded), compute)

    def pooled(self, text: str, output: str) -> Tensor:
        """The CLIP encoders' pooled vectors of a text, concatenated: ``(channels,)`` on the CPU."""
        if not self.clip_parts:
            raise ConfigError(
                "The model has no CLIP text encoder for a pooled vector.",
                where=self.folder,
                hint="Use backbone.pooled=zeros.",
            )

        def compute() -> Tensor:
            vectors = []
            for part in self.clip_parts:
                batch = self._tokenizer(part)(
                    text, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
                ).input_ids
                vectors.append(getattr(self._module(part)(batch.to(self.device)), output)[0])
            return torch.cat(vectors)

        return self._remember(("pooled", output, text), compute)

    def rest(self) -> None:
        """Take the encoders off the device, as ``residence`` says; called when a clip's texts are done."""
        if self.residence == "keep":
            return
        for module in self._modules.values():
            module.to("cpu")
        if self.residence == "free":
            self._modules.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _remember(self, key: Any, compute: Callable[[], Tensor]) -> Tensor:
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        with torch.inference_mode():
            value = compute().detach().cpu()
        self.encodings += 1
        self._memory[key] = value
        if len(self._memory) > _REMEMBERED:
            self._memory.popitem(last=False)
        return value

    def _tokenizer(self, part: str) -> Any:
        if part not in self._tokenizers:
            place = self.folder / part.replace("text_encoder", "tokenizer")
            self._tokenizers[part] = load_tokenizer(place, "tiny_dit/tokenizer")
        return self._tokenizers[part]

    def _module(self, part: str) -> Any:
        if part not in self._modules:
            cls = getattr(import_module("transformers"), self._classes[part])
            module = load_module(cls, self.folder / part, self.dtype, self.device)
            self._modules[part] = module.eval().requires_grad_(False)
        return self._modules[part].to(self.device)
