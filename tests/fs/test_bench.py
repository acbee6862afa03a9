"""The benchmark's own parts: the workloads modelled on the paper's run, the chart is an SVG of all
rows, the page holds both.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import fs_paper
from bench.crossing import Share
from bench.fs import picture
from bench.plot import chart
from testkit.servers import open_to_others
from tests.suites import document
from tests.suites.document import performance

WORKLOADS = {workload.name: workload for workload in fs_paper.workloads()}
RESULTS = {
    "read a <tree>": {"native": [1.0, 1.1, 1.2], "devfuse": [2.2, 2.3, 2.4], "pyfuse3": [9.0, 9.9, 11.0]},
    "fio": {"native": [1.0, 1.0, 1.0], "devfuse": [0.5, 0.4, 0.6], "pyfuse3": [3.0, 3.1, 3.2]},
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload_runs(name: str, tmp_path: Path) -> None:
    workload = WORKLOADS[name]
    if os.geteuid() != 0:
        pytest.skip("root is missing: the database runs as another user")
    if workload.tool and not shutil.which(workload.tool):
        pytest.skip(f"{workload.tool} is missing (Debian: {workload.package})")
    open_to_others(tmp_path)
    workload.prepare(tmp_path)
    first, second = workload.run(tmp_path), workload.run(tmp_path)
    assert first > 0
    assert second > 0


def test_chart_shows_every_ratio() -> None:
    root = ElementTree.fromstring(picture(RESULTS))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for expected in ("read a <tree>", "fio", "devfuse", "pyfuse3", "2.09", "9.00", "0.50", "3.10", "1×"):
        assert expected in texts
    bars = [element for element in root.iter("{http://www.w3.org/2000/svg}rect") if element.get("height") == "8"]
    assert len(bars) == 4
    assert float(bars[1].get("width", 0)) > float(bars[0].get("width", 0))


def test_waking_another_processor_is_counted() -> None:
    processors = sorted(before := os.sched_getaffinity(0))
    if len(processors) < 2:
        pytest.skip("there is one processor")
    (asked, ask), (answered, answer) = os.pipe(), os.pipe()
    server = os.fork()
    if not server:
        os.sched_setaffinity(0, {processors[1]})
        os.close(ask)
        while os.read(asked, 1):
            os.write(answer, b"x")
        os._exit(0)
    share = Share()
    assert share.crossed == 0
    os.sched_setaffinity(0, {processors[0]})
    try:
        with share.watched(server):
            for _ in range(2000):
                os.write(ask, b"x")
                os.read(answered, 1)
    finally:
        os.sched_setaffinity(0, before)
        for fd in (asked, ask, answered, answer):
            os.close(fd)
        os.waitpid(server, 0)
    assert share.crossed > 0.3


def test_a_chart_of_nothing_is_valid() -> None:
    ElementTree.fromstring(chart({}, [], "nothing"))


def test_page_shows_the_chart_and_what_was_not_measured(tmp_path: Path) -> None:
    report = {
        "date": "2026-01-01", "kernel": "6.18", "rounds": 3, "load": [0.1, 0, 0],
        "command": "python -m bench.fs --peer passthrough_hp=/x/hp --rounds 3 --dir /x",
        "seconds": RESULTS, "absent": {"pgbench": "postgresql"},
    }  # fmt: skip
    (tmp_path / "bench-fs.json").write_text(json.dumps(report))
    page = performance(tmp_path / "bench-fs.json")
    assert "Each option" not in page
    assert "On one processor" not in page
    report |= {"processors": 1, "us_per_call": {"devfuse": {"GETATTR": [7.5, 12.25]}}}
    report["us_per_file"] = {"devfuse": {"open, read, close": [1.5, 2.25], "remove": [3, 4]}}
    (tmp_path / "bench-one.json").write_text(json.dumps(report))
    page = performance(tmp_path / "bench-fs.json")
    assert "`taskset -c 0 python -m bench.fs" in page
    assert "| devfuse | 7.5 (12.2) |" in page
    assert "| devfuse | 1.5 (2.2) | – | 3.0 (4.0) |" in page
    walked = {"files": 7.0, "peak_mb": 1.5, "fds": 3.0, "seconds": 0.1}
    (tmp_path / "bench-million.json").write_text(json.dumps(report | {"memory": {"devfuse": walked}}))
    assert "| devfuse | 7 | 1.5 | 3 | 0.1 |" in performance(tmp_path / "bench-fs.json")
    report["seconds"] = {"find": {"native": [1.0], "pyfuse3:writeback": [4.0]}}
    (tmp_path / "bench-options.json").write_text(json.dumps(report))
    page = performance(tmp_path / "bench-fs.json")
    assert "| find | 1000.0 ms | 4.00 (4.00) |" in page.partition("Each option")[2]
    assert "(performance.svg)" in page
    assert "`python -m bench.fs --peer passthrough_hp=PATH --rounds 3`" in page
    assert "| pgbench | not measured: postgresql is not installed | | |" in page
    assert "/x" not in page
    docs = tmp_path / "docs"
    document.main(["--performance", "--bench", str(tmp_path / "bench-fs.json"), "--docs", str(docs)])
    assert (docs / "performance.md").read_text() == page
    assert sorted(path.name for path in docs.iterdir()) == ["performance.md", "performance.svg"]
