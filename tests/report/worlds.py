"""A data set whose words try to break out of every place they are shown in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from refseg_bench.types import Clip, Expression, Grounding, HeatPoint, MaskTrack
from tests.fakes import FakeDataset

HOSTILE = [
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>",
    "\"quotes' & &amp; `ticks` </script> </table> {{ 7*7 }} ${7*7} $& \\u0041 | *bold* [red]rich[/red] %s",
    "الشيء الأحمر الذي يتحرك إلى اليمين",
    "the 🦆👩‍🚀 on the 🛶 é",
    "long " * 1000,
]


@dataclass
class HostileDataset(FakeDataset):
    """Expressions that are markup, quotes, right to left, emoji, and 5,000 characters."""

    n_expressions: int = 5
    n_clips: int = 2
    name: str = "hostile <b>name</b>"

    def expressions(self, clip: Clip) -> list[Expression]:
        return [
            Expression(str(e), text, {"type": f"<i>{e % 2}</i>"})
            for e, text in enumerate(HOSTILE[: self.n_expressions])
        ]


@dataclass
class StagesMethod:
    """Says all that a method may say: maps of several stages, clicks, tracklets, NaN."""

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        rising = np.linspace(0, 1, 2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
        for expression in expressions:
            yield Grounding(
                expression,
                MaskTrack.empty(clip.size, len(clip)),
                point=HeatPoint(1, 0.5, 0.25, 1.0),
                maps={"object": rising, "object (video)": rising[:1], "fused <i>": rising[:1]},
                map_frames={"object": (0, 1), "object (video)": (0,), "fused <i>": (1,)},
                details={
                    "clicks": [[0, 0.1, 0.2], [1, 0.3, 0.4]],
                    "tracklets": [
                        {"frame": 1, "s_obj": 0.9, "s_trk": 0.8, "kept": True},
                        {"frame": 0, "s_obj": 0.5, "s_trk": 0.1, "kept": False},
                    ],
                    "prompts": ["What is <b>it</b>?", "And without it?"],
                    "answers": ["a duck", "a dog", "a duck"],
                    "scores": [0.1, 0.9],
                    "chosen": [1],
                    "odd": float("nan"),
                },
            )


@dataclass
class ForgedMethod:
    """Details as a record from elsewhere may hold them."""

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        names = ["../../secret", "a" * 32, "b" * 32, "c" * 32, "d" * 32]
        pictures = [{"image": name, "size": [64, 64]} for name in names]
        odd = [None, 7, {"image": 3}, {"size": "x"}, ["a"]]
        turns = [
            {
                "step": "<b>bold</b>",
                "messages": [{"role": "user", "parts": pictures + ["part"] * 300}, *[{"parts": []}] * 203],
                "reply": "x" * 50_000,
            },
            *({"step": f"<b>{i}</b>", "messages": [], "reply": "so"} for i in range(1, 300)),
            {"step": 7, "messages": "none", "reply": None},
            {"messages": [{"parts": "none"}, None, {"role": ["a"], "parts": []}], "error": "<i>broken</i>"},
            None,
            [odd],
        ]
        for expression in expressions:
            details = {
                "conversation": turns,
                "cost": "much",
                "points": [[10**400, 0.5, 0.5], [1, 0.5, 10**400], [1, 0.5, float("nan")], [1, 0.5, 0.25]],
                "boxes": {
                    "1": [[0.25, 0.25, 0.75, 1], [0, 0, 2, 1], [0, 0, "1", 1], [0.5], 7, [0, 0, True, 1]],
                    "-1": [[0, 0, 1, 1]],
                    "99": 3,
                },
                "verdict": {"1": {"a": 1}, "__proto__": "x", "2": "true", "3": {"toString": 1}},
                "candidates": [0.5, "x"],
                "concept": 3,
            }
            yield Grounding(expression, MaskTrack.empty(clip.size, len(clip)), details=details)
