"""The report as one HTML page without network access: what is kept and left out, by directory and by package. Drawn by
plotly.
"""

from __future__ import annotations

import html as markup

from cntr.errors import CntrError
from cntr.slim.rules import packages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.report import Report
    from cntr.slim.rules import Context

SMALL = 0.0008  # share of the image; smaller directories are drawn together
SMALLER = "… smaller ones"
KEPT, GONE = "#2f7f6b", "#d9d4c7"
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1180px;padding:0 1rem;color:#222;background:#fbfaf7}
h1{font-size:1.7rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .4rem}p.sub{color:#666;margin:.2rem 0 1.2rem}
.figures{display:flex;gap:.8rem;flex-wrap:wrap}
.figures div{flex:1 1 auto;background:#fff;border:1px solid #e5e1d8;border-radius:8px;padding:.6rem .9rem}
.figures b{display:block;font-size:1.3rem;white-space:nowrap}.figures span{color:#666;font-size:.85rem}
table{border-collapse:collapse;background:#fff}td,th{border-bottom:1px solid #eee;padding:.25rem .8rem;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}details{margin:.5rem 0}
code{font-size:.88em}.plot{background:#fff;border:1px solid #e5e1d8;border-radius:8px}
"""


def demand_library() -> None:
    """Raise CntrError if plotly is not installed, before any work is done."""
    try:
        import plotly.graph_objects  # noqa: F401
    except ImportError:
        raise CntrError(
            "--report FILE.html: the Python package plotly is not installed", "pip install 'cntr-attach[slim]'"
        ) from None


def html(report: Report, context: Context) -> str:
    """Return the page."""
    import plotly.io
    from plotly.offline import get_plotlyjs

    charts = []
    for name, kind, rows, depth in (
        ("directory", "Icicle", _directories(context), 5),
        ("package", "Treemap", _packages(context), 2),
    ):
        figure = _chart(kind, rows, depth)
        bare = {"displayModeBar": False, "responsive": True}
        drawn = plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, div_id=f"by-{name}", config=bare)
        charts.append(f"<h2>By {name}</h2><div class=plot>{drawn}</div>")
    return "\n".join(
        [
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(report.name)}</title><style>{_STYLE}</style>",
            f"<script>{get_plotlyjs()}</script>",
            f"<h1>{_text(report.reference)} → {_text(report.name)}</h1>",
            f"<p class=sub>{_text(report.proof())}</p>",
            _figures(report),
            "<p class=sub>Green is kept, grey is left out; a click goes into a directory.</p>",
            *charts,
            _tables(report),
            "</html>",
        ]
    )


def _text(value: object) -> str:
    return markup.escape(str(value).encode("utf-8", "backslashreplace").decode())


def _figures(report: Report) -> str:
    boxes = (
        (f"{report.reduction:.1%}", "smaller"),
        (f"{report.before[0] / 1e6:.1f} → {report.after[0] / 1e6:.1f} MB", "bytes of files"),
        (f"{report.before[1]} → {report.after[1]}", "files"),
        (f"{len(report.packages_gone)}", f"packages gone, {len(report.packages_kept)} kept"),
        (f"{len(report.setid_gone)}", f"set-id files gone, {len(report.setid_kept)} kept"),
        (f"{report.seconds:.1f} s", "from command to proof"),
    )
    return (
        f"<div class=figures>{''.join(f'<div><b>{_text(a)}</b><span>{_text(b)}</span></div>' for a, b in boxes)}</div>"
    )


def _directories(context: Context) -> dict[str, tuple[str, float, float]]:
    """Bytes kept and total bytes of each directory that is large enough to be drawn."""
    sizes: dict[str, list[float]] = {"/": [0, 0]}
    for path, entry in context.tree.entries.items():
        if not entry.is_file:
            continue
        share = entry.size / max(1, len(context.tree.siblings(path)))
        here = path if entry.size else path.rpartition("/")[0] or "/"
        while True:
            row = sizes.setdefault(here, [0, 0])
            row[1] += share
            row[0] += share if path in context.kept else 0
            if here == "/":
                break
            here = here.rpartition("/")[0] or "/"
    limit = sizes["/"][1] * SMALL
    rows = {
        path: ("" if path == "/" else path.rpartition("/")[0] or "/", kept, whole)
        for path, (kept, whole) in sizes.items()
        if whole >= limit or path == "/"
    }
    return rows | _rest(rows, limit)


def _rest(rows: dict[str, tuple[str, float, float]], limit: float) -> dict[str, tuple[str, float, float]]:
    """For each drawn directory, an entry for everything too small, so that the chart has no gaps."""
    drawn: dict[str, list[float]] = {}
    for parent, kept, whole in rows.values():
        if parent:
            row = drawn.setdefault(parent, [0, 0])
            row[0] += kept
            row[1] += whole
    return {
        f"{path.rstrip('/')}/{SMALLER}": (path, max(0.0, rows[path][1] - kept), rows[path][2] - whole)
        for path, (kept, whole) in drawn.items()
        if rows[path][2] - whole >= limit
    }


def _packages(context: Context) -> dict[str, tuple[str, float, float]]:
    """The same by package. Files without a package belong to the application, or were made during package installation."""
    owners = packages.owners(context)
    sizes: dict[str, list[float]] = {}
    for path, entry in context.tree.entries.items():
        if entry.is_file and entry.size:
            row = sizes.setdefault(owners.get(path, "no package"), [0, 0])
            row[1] += entry.size / max(1, len(context.tree.siblings(path)))
            row[0] += entry.size / max(1, len(context.tree.siblings(path))) if path in context.kept else 0
    rows: dict[str, tuple[str, float, float]] = {
        "image": ("", sum(kept for kept, _ in sizes.values()), sum(whole for _, whole in sizes.values()))
    }
    for name, (kept, whole) in sizes.items():
        rows[name] = ("image", kept, whole)
    return rows


def _chart(kind: str, rows: dict[str, tuple[str, float, float]], depth: int) -> object:
    """ROWS (id → parent, bytes kept, total bytes) as a plotly chart, coloured by the share that is kept."""
    import plotly.graph_objects as graph

    ids = list(rows)
    figure = graph.Figure(
        getattr(graph, kind)(
            ids=[_text(name) for name in ids],
            labels=[_text(name.rpartition("/")[2] or name) for name in ids],
            parents=[_text(rows[name][0]) for name in ids],
            values=[rows[name][2] for name in ids],
            branchvalues="total",
            maxdepth=depth,
            **({"tiling": {"orientation": "v"}} if kind == "Icicle" else {}),
            marker={
                "colors": [rows[name][1] / rows[name][2] if rows[name][2] else 0 for name in ids],
                "colorscale": [[0, GONE], [1, KEPT]],
                "cmin": 0,
                "cmax": 1,
                "showscale": True,
                "colorbar": {"title": {"text": "kept"}, "tickformat": ".0%"},
            },
            customdata=[[rows[name][1] / 1e6, rows[name][2] / 1e6] for name in ids],
            hovertemplate="%{id}<br>%{customdata[0]:.2f} of %{customdata[1]:.2f} MB kept<extra></extra>",
        )
    )
    figure.update_layout(margin={"l": 8, "r": 8, "t": 8, "b": 8}, height=520, font={"family": "system-ui, sans-serif"})
    return figure


def _tables(report: Report) -> str:
    parts = ["<h2>The exercise</h2><ul>", *(f"<li><code>{_text(line)}</code>" for line in report.exercise), "</ul>"]
    parts.append("<h2>Rounds on CntrFS</h2><ol>")
    for missed in report.rounds:
        names = "".join(f"<br><code>{_text(path)}</code>" for path in missed[:200])
        parts.append(f"<li>{len(missed)} names missed and added{names}")
    parts.append("</ol><h2>Why it is kept</h2><table><tr><th>rule<th>files<th>MB")
    for rule, (size, count) in sorted(report.rules.items(), key=lambda row: -row[1][0]):
        parts.append(f"<tr><td>{_text(rule)}<td class=n>{count}<td class=n>{size / 1e6:.2f}")
    parts.append("</table>")
    for title, listed in (
        ("Packages gone", report.packages_gone),
        ("Packages kept", report.packages_kept),
        ("Set-id files gone", report.setid_gone),
        ("Set-id files kept", report.setid_kept),
    ):
        lines = "<br>".join(f"<code>{_text(name)}</code>" for name in listed)
        parts.append(f"<details><summary>{title}: {len(listed)}</summary>{lines}</details>")
    rows = "".join(
        f"<tr><td><code>{_text(path)}</code><td>{_text(rule)}<td>{_text(why)}{f' ← <code>{_text(by)}</code>' if by else ''}"
        for path, (rule, why, by) in report.kept.items()
        if not why.startswith("every directory")
    )
    parts.append(f"<details><summary>Every kept file and why</summary><table>{rows}</table></details>")
    parts += [f"<p>{_text(note)}</p>" for note in report.notes]
    return "".join(parts)
