"""The prompts of DecAF, to the letter, and how their blanks are filled (official code; Tables 10–12).

Spaces before line ends, trailing blanks, typographic quotes and the arrow are part of the data: they
change tokens. All families use one wording for video and for frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from refseg_bench.errors import ConfigError

Version = Literal["default", "v1", "v2", "v3"]

OBJECT: Mapping[str, str] = {
    "default": (
        "{sent} \nWhat is the main object (or objects) referred to in the given expression or question? \n"
        "Focus on the **primary subject or agent** involved in the described action or behavior. Respond "
        "with a single word (e.g., 'cat', 'person', 'dog') that best describes the target object(s). "
    ),
    "v1": (
        "{sent} \nIdentify the primary object referred to in the expression and answer with a single word. \n"
    ),
    "v2": (
        "{sent} \nIdentify the primary object referred to in the expression. \nFocus on the **primary "
        "subject or agent** involved in the described action or behavior. Respond with a single word "
        "(e.g., 'cat', 'person', 'dog') that best describes the target object(s). "
    ),
    "v3": (
        "{sent} \nDetermine the primary subject or agent mentioned in the expression or question, and "
        "provide the object's label within a single word or phrase. "
    ),
}

BACKGROUND: Mapping[str, str] = {
    "default": (
        "Describe the background scene of the video, excluding any {obj_name}. Answer the question using a "
        "single word or phrase."
    ),
    "v1": ("Describe the background scene of the video. Answer the question using a single word or phrase."),
    "v2": (
        "Describe the background of the video while excluding any {obj_name}, using a single word or short "
        "phrase."
    ),
    "v3": (
        "Describe the background scene of the video, excluding the objects referred to in the given "
        "expression or question '{sent}'. Answer the question using a single word or phrase."
    ),
}

CHOICE: Mapping[str, str] = {
    "default": (
        "Given:\n- Expression: '{ref_query}'\n- Candidate object class list: {obj_cls_list}\nGoal: Identify "
        "the object class referred to by the expression. Instructions:\n1. If the expression is **clear**, "
        "rely on it directly (e.g., 'a person driving a car' → 'person').\n2. If the expression is "
        "**vague**, use the object class list to support your decision (e.g., check frequency and "
        "plausibility).\n3. Avoid defaulting to the most frequent class unless the expression lacks clarity."
        "\nOutput the most likely referred object class - just the label.\n"
    ),
    "v1": (
        "Given the expression ‘{ref_query}’ and the candidate object classes {obj_cls_list}, select "
        "the single class label that best matches the object referred to in the expression.\n"
    ),
    "v2": (
        "Using the expression ‘{ref_query}’ and the candidate object classes {obj_cls_list}, "
        "determine which object class the expression refers to.\nIf the reference is explicit, rely on the "
        "expression; if ambiguous, use the class list as support.\n"
        "Output only the most likely object class.\n"
    ),
    "v3": (
        "Given:\n- Expression: '{ref_query}'\nGoal: Identify the object class referred to by the expression. "
        "(e.g., 'a person driving a car' → 'person').\nOutput the most likely referred object class - "
        "just the label.\n"
    ),
}

_BLANKS = {"object": ("sent",), "background": ("obj_name", "sent"), "choice": ("ref_query", "obj_cls_list")}
_TEXTS = {"object": OBJECT, "background": BACKGROUND, "choice": CHOICE}
PromptKind = Literal["object", "background", "choice"]


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
    texts = _TEXTS[kind]
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

    Args:
        form: its template.
        text: the expression.
        answers: video answer first, then frames in time order.
    """
    listed = ",".join(answer.strip().lower() for answer in answers)
    return form.format(ref_query=sentence(text).lower(), obj_cls_list=listed)


def object_name(answer: str) -> str:
    """The chosen object as the background prompt names it. Never shortened or parsed."""
    return answer.strip().lower()
