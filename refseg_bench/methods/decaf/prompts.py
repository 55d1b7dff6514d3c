"""The prompts of DecAF, to the letter, and how their blanks are filled (official code; Tables 10–12).

All families use one wording for video and for frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from refseg_bench.errors import ConfigError
from refseg_bench.files.store_io import read_yaml

Version = Literal["default", "v1", "v2", "v3"]

_BLANKS = {"object": ("sent",), "background": ("obj_name", "sent"), "choice": ("ref_query", "obj_cls_list")}
PromptKind = Literal["object", "background", "choice"]
#: Kind of prompt → version → text.
TEXTS: Mapping[str, Mapping[str, str]] = read_yaml(Path(__file__).with_suffix(".yaml"))


def template(kind: PromptKind, version: str, custom: str | None = None) -> str:
    """The text of a prompt version, or ``custom`` in its place.

    Raises:
        ConfigError: no such version, or a custom text with a blank this prompt can't fill.
    """
    if custom is not None:
        try:
            custom.format(**dict.fromkeys(_BLANKS[kind], ""))
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                f"The custom {kind} prompt can't be filled ({error!r}).",
                allowed=[f"{{{blank}}}" for blank in _BLANKS[kind]],
                hint="Write literal braces twice: {{ }}.",
            ) from error
        return custom
    texts = TEXTS[kind]
    if version not in texts:
        raise ConfigError(f"There is no {kind} prompt '{version}'.", allowed=texts)
    return texts[version]


def sentence(text: str) -> str:
    """The expression as the prompts quote it: with a full stop unless it ends in ``?`` or ``.``.

    >>> sentence("the dog on the left")
    'the dog on the left.'
    """
    return text if text.endswith(("?", ".")) else text + "."


def object_prompt(form: str, text: str) -> str:
    """The object prompt of an expression (lower case)."""
    return form.format(sent=sentence(text).lower())


def background_prompt(form: str, text: str, obj_name: str) -> str:
    """The background prompt, less the object named (v3: less what the expression says)."""
    return form.format(obj_name=obj_name, sent=sentence(text).lower())


def choice_prompt(form: str, text: str, answers: Sequence[str]) -> str:
    """The text-only question which object is meant, over the answers to the object prompts.

    The answer on the video comes first, then those on the frames in time order.
    """
    listed = ",".join(answer.strip().lower() for answer in answers)
    return form.format(ref_query=sentence(text).lower(), obj_cls_list=listed)


def object_name(answer: str) -> str:
    """The chosen object as the background prompt names it. Never shortened or parsed."""
    return answer.strip().lower()
