"""The report as one self-contained HTML file (except for links to artefacts)."""

from __future__ import annotations

from html import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .results import Cell, Run

WORDS = {"pass": "PASS", "fail": "FAIL", "skip": "SKIP", "expected": "XFAIL", "unexpected": "XPASS", "lost": "LOST"}

STYLE = """
:root { color-scheme: light; --line: #d9dde3; --ink: #1c2733; --soft: #66717f; }
body { font: 14px/1.45 system-ui, "DejaVu Sans", sans-serif; color: var(--ink); }
body { margin: 2rem 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.soft { color: var(--soft); }
.counts span { display: inline-block; padding: .2rem .7rem; margin: .6rem .4rem 0 0; border-radius: 1rem; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { border: 1px solid var(--line); padding: .28rem .55rem; text-align: left; vertical-align: top; }
th { background: #f4f6f8; font-weight: 600; } th.column { text-align: center; }
td.cell { text-align: center; font-weight: 600; white-space: nowrap; }
td.cell small { display: block; font-weight: 400; color: inherit; opacity: .75; } td.cell a { color: inherit; }
tr.file th { background: #e9edf2; } td.about { min-width: 19rem; max-width: 34rem; position: sticky; left: 0; background: #fff; }
.pass { background: #dff3e3; color: #14602b; } .fail, .unexpected { background: #fbdcdc; color: #8f1414; }
.skip { background: #f1f2f4; color: #6b7480; } .expected { background: #fdf1cf; color: #725400; }
.lost { background: #e8ddf7; color: #4c1d86; }
.none { color: #b6bdc6; }
pre { background: #f6f8fa; border: 1px solid var(--line); border-radius: 4px; padding: .6rem .8rem; }
p, pre, article { max-width: 80rem; } pre { overflow-x: auto; margin: .4rem 0; white-space: pre-wrap; }
figure { display: inline-block; margin: 0 1rem 1rem 0; } figure img { width: 20rem; border: 1px solid var(--line); }
article { margin: 0 0 1.4rem; } article h3 { font-size: 1rem; margin: 0 0 .2rem; }
"""


def page(run: Run) -> str:
    """The whole report."""
    counts = run.counts()
    bad = [c for c in run.cells if c.outcome in ("fail", "unexpected", "lost")]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>cntr lab: {'failed' if bad else 'passed'}</title><style>{STYLE}</style>",
        "<h1>cntr in the lab</h1>",
        f"<div class=soft>{escape(run.started)} · {run.seconds:.0f} s · host kernel {escape(run.host.get('kernel', '?'))},"
        f" {escape(run.host.get('cores', '?'))} cores</div>",
        "<div class=counts>",
        *(f"<span class={outcome}>{number} {WORDS[outcome]}</span>" for outcome, number in counts.items() if number),
        "</div>",
    ]
    if bad:
        parts += ["<h2>What failed</h2>", *(_details(cell) for cell in bad)]
    parts += ["<h2>Scenarios</h2>", _matrix(run)]
    pictures = [
        (cell, path) for cell in run.cells if cell.outcome == "pass" for path in cell.artefacts if path.endswith(".png")
    ]
    if pictures:
        parts += ["<h2>What was on the display</h2><div>", *(_picture(cell, path) for cell, path in pictures), "</div>"]
    reasons = _reasons(run)
    if reasons:
        parts += ["<h2>Expected failures and skips, with their reasons</h2>", reasons]
    if run.peers:
        parts += ["<h2>The same tasks with other tools, in the same machines</h2>", _peers(run)]
    parts += ["<h2>Machines</h2>", _machines(run)]
    return "\n".join(parts) + "</html>\n"


def _columns(run: Run) -> list[tuple[str, str]]:
    """(machine, transport) pairs, machine by machine (parallel ones arrive mixed), otherwise in the order in which they
    ran.
    """
    pairs = dict.fromkeys((c.machine, c.transport) for c in run.cells)
    machines = list(dict.fromkeys(machine for machine, _ in pairs))
    return sorted(pairs, key=lambda pair: machines.index(pair[0]))


def _matrix(run: Run) -> str:
    columns = _columns(run)
    found = {(c.scenario, c.machine, c.transport): c for c in run.cells}
    machines: dict[str, int] = {}
    for machine, _ in columns:
        machines[machine] = machines.get(machine, 0) + 1
    head = "".join(f"<th class=column colspan={number}>{escape(machine)}</th>" for machine, number in machines.items())
    second = "".join(
        f"<th class=column>{escape(transport if transport != '-' else 'no session')}</th>" for _, transport in columns
    )
    rows = [f"<tr><th rowspan=2>scenario</th>{head}</tr><tr>{second}</tr>"]
    for file in dict.fromkeys(c.file for c in run.cells):
        label = file.removeprefix("test_").removesuffix(".py").replace("_", " ")
        rows.append(f"<tr class=file><th colspan={len(columns) + 1}>{escape(label)}</th></tr>")
        for scenario, about in dict.fromkeys((c.scenario, c.about) for c in run.cells if c.file == file):
            cells = "".join(_cell(found.get((scenario, *column))) for column in columns)
            rows.append(
                f"<tr><td class=about>{escape(scenario.replace('_', ' '))}<br><span class=soft>{escape(about)}</span></td>{cells}</tr>"
            )
    return f"<div class=scroll><table>{''.join(rows)}</table></div>"


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "<td class='cell none'>·</td>"
    word = WORDS[cell.outcome]
    if cell.outcome in ("fail", "unexpected", "lost"):
        word = f"<a href='#{_anchor(cell)}'>{word}</a>"
    time = "" if cell.outcome == "skip" else f"<small>{cell.seconds:.1f} s</small>"
    return f"<td class='cell {cell.outcome}' title=\"{escape(cell.reason[:400])}\">{word}{time}</td>"


def _anchor(cell: Cell) -> str:
    return escape(f"{cell.machine}.{cell.transport}.{cell.scenario}")


def _details(cell: Cell) -> str:
    links = " · ".join(f"<a href='{escape(path)}'>{escape(path.rsplit('/', 1)[-1])}</a>" for path in cell.artefacts)
    return (
        f"<article id='{_anchor(cell)}'><h3>{escape(cell.scenario.replace('_', ' '))} "
        f"<span class=soft>on {escape(cell.machine)} by {escape(cell.transport)}</span></h3>"
        f"<div class=soft>{escape(cell.about)}</div><pre>{escape(cell.reason)}</pre><div>{links}</div></article>"
    )


def _picture(cell: Cell, path: str) -> str:
    """A thumbnail; a click shows the whole picture."""
    name = f"{escape(cell.machine)} by {escape(cell.transport)}"
    said = f"{escape(cell.scenario.replace('_', ' '))} <span class=soft>on {name}</span>"
    return f"<figure><a href='{escape(path)}'><img src='{escape(path)}' alt='{name}'></a><figcaption>{said}</figcaption></figure>"


def _reasons(run: Run) -> str:
    places: dict[tuple[str, str, str], list[str]] = {}
    for cell in run.cells:
        if cell.outcome in ("expected", "skip"):
            places.setdefault((cell.outcome, cell.scenario, cell.reason), []).append(f"{cell.machine}/{cell.transport}")
    if not places:
        return ""
    rows = "".join(
        f"<tr><td class='cell {outcome}'>{WORDS[outcome]}</td><td>{escape(scenario.replace('_', ' '))}</td>"
        f"<td>{escape(', '.join(where))}</td><td>{escape(reason)}</td></tr>"
        for (outcome, scenario, reason), where in sorted(places.items())
    )
    return (
        f"<div class=scroll><table><tr><th></th><th>scenario</th><th>where</th><th>reason</th></tr>{rows}</table></div>"
    )


def _peers(run: Run) -> str:
    questions = list(dict.fromkeys((p["machine"], p["question"]) for p in run.peers))
    tools = list(dict.fromkeys(p["tool"] for p in run.peers))
    found = {(p["machine"], p["question"], p["tool"]): p for p in run.peers}
    colour = {"works": "pass", "fails": "fail", "traces": "expected"}
    head = "".join(f"<th class=column>{escape(tool)}</th>" for tool in tools)
    rows = []
    for machine, question in questions:
        cells = ""
        for tool in tools:
            answer = found.get((machine, question, tool))
            if answer is None:
                cells += "<td class='cell none'>·</td>"
            else:
                word = answer["answer"]
                said, seconds = escape(answer["said"]), escape(answer["seconds"])
                cells += f'<td class="cell {colour[word]}" title="{said}">{word}<small>{seconds} s</small></td>'
        rows.append(f"<tr><td>{escape(machine)}</td><td>{escape(question)}</td>{cells}</tr>")
    note = (
        "<p class=soft>A comparison, not part of the gate. “traces”: it works, but leaves something behind. "
        "Hover over a cell to see the tool's output. Times were measured on this machine, emulated or not.</p>"
    )
    return (
        f"{note}<div class=scroll><table><tr><th>machine</th><th>question</th>{head}</tr>{''.join(rows)}</table></div>"
    )


def _machines(run: Run) -> str:
    keys = list(dict.fromkeys(key for facts in run.machines.values() for key in facts))
    head = "".join(f"<th>{escape(key)}</th>" for key in keys)
    rows = ""
    for name, facts in run.machines.items():
        cells = "".join(f"<td>{escape(facts.get(key, ''))}</td>" for key in keys)
        rows += f"<tr><th>{escape(name)}</th>{cells}</tr>"
    return f"<div class=scroll><table><tr><th>machine</th>{head}</tr>{rows}</table></div>"
