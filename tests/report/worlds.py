"""A data set whose words try to break out of every place they are shown in."""

from __future__ import annotations

from dataclasses import dataclass

from refseg_bench.types import Clip, Expression
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
