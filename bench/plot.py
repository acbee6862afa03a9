"""A chart of ratios as SVG: bars on a logarithmic axis, one group per workload, one colour per place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2")
_BAR, _GAP, _LEFT, _WIDTH, _TOP = 9, 8, 210, 640, 46  # pixels
_STYLE = "text{font:11px sans-serif;fill:#333}.n{fill:#666;font-size:9px}.a{text-anchor:end}.m{text-anchor:middle}"


def chart(ratios: Mapping[str, Mapping[str, float]], places: Sequence[str], title: str) -> str:
    """The SVG text. ratios: workload -> place -> ratio to native; a place may be missing from a workload."""
    values = [value for row in ratios.values() for value in row.values()] or [1.0]
    low = min(0.5, 2.0 ** math.floor(math.log2(min(values))))
    high = max(2.0, 2.0 ** math.ceil(math.log2(max(values))))
    scale = _WIDTH / math.log2(high / low)

    def at(value: float) -> float:
        return _LEFT + math.log2(value / low) * scale

    group = len(places) * _BAR + _GAP
    bottom = _TOP + len(ratios) * group
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 50} {bottom + 24}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for number, place in enumerate(places):
        x = _LEFT + number * 120
        parts.append(f'<rect x="{x}" y="10" width="10" height="10" fill="{_COLOURS[number % len(_COLOURS)]}"/>')
        parts.append(f'<text x="{x + 15}" y="19">{escape(place)}</text>')
    tick = low
    while tick <= high * 1.001:
        colour = "#333" if tick == 1 else "#ddd"
        parts.append(f'<path d="M{at(tick):.1f} {_TOP - 6}V{bottom}" stroke="{colour}"/>')
        parts.append(f'<text class="m" x="{at(tick):.1f}" y="{bottom + 14}">{tick:g}×</text>')
        tick *= 2
    for row, (workload, found) in enumerate(ratios.items()):
        y = _TOP + row * group
        middle = y + len(places) * _BAR / 2 + 4
        parts.append(f'<text class="a" x="{_LEFT - 8}" y="{middle:.1f}">{escape(workload)}</text>')
        for number, place in enumerate(places):
            if place not in found:
                continue
            start, end = sorted((at(1.0), at(max(found[place], low))))
            top = y + number * _BAR
            parts.append(
                f'<rect x="{start:.1f}" y="{top}" width="{max(end - start, 1):.1f}" height="{_BAR - 1}" '
                f'fill="{_COLOURS[number % len(_COLOURS)]}"/>'
            )
            beside = at(max(found[place], 1.0)) + 3
            parts.append(f'<text class="n" x="{beside:.1f}" y="{top + _BAR - 1}">{found[place]:.2f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
