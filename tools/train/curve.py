"""Draw a training log as SVG: ``python tools/train/curve.py docs/training/tiny_mllm.csv COLUMN …``."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#555555")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 300, 46, 14, 34


def series(path: Path, column: str) -> list[tuple[float, float]]:
    """(step, value) wherever the log has the column."""
    with path.open() as file:
        return [(float(row["step"]), float(row[column])) for row in csv.DictReader(file) if row.get(column)]


def draw(path: Path, columns: list[str]) -> str:
    """The SVG text: one line per column, values from 0 to the largest, at least 1."""
    lines = {c: series(path, c) for c in columns}
    right = WIDTH - 150
    steps = [x for points in lines.values() for x, _ in points]
    first, last = min(0.0, *steps), max(steps)
    top = max(1.0, *(y for points in lines.values() for _, y in points))

    def place(x: float, y: float) -> str:
        across = LEFT + (x - first) / max(last - first, 1.0) * (right - LEFT)
        down = HEIGHT - BOTTOM - y / top * (HEIGHT - BOTTOM - TOP)
        return f"{across:.1f},{down:.1f}"

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"']
    out.append('font-family="sans-serif" font-size="11">')
    out.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>')
    for k in range(5):
        y = top * k / 4
        x0, y0 = place(0, y).split(",")
        out.append(f'<line x1="{x0}" y1="{y0}" x2="{right}" y2="{y0}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{float(y0) + 4}" text-anchor="end">{y:.2f}</text>')
    out.append(
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"step ({first:.0f} to {last:.0f})</text>"
    )
    for k, (name, points) in enumerate(lines.items()):
        colour = COLOURS[k % len(COLOURS)]
        path_points = " ".join(place(x, y) for x, y in points)
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{path_points}"/>')
        out.append(f'<text x="{right + 10}" y="{TOP + 14 + 16 * k}" fill="{colour}">{name}</text>')
    return "\n".join([*out, "</svg>", ""])


def main() -> None:
    """Write the picture beside the log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("columns", nargs="+")
    args = parser.parse_args()
    args.log.with_suffix(".svg").write_text(draw(args.log, args.columns), encoding="utf-8")


if __name__ == "__main__":
    main()
