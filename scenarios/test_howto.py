"""The recipes of docs/howto.md, unchanged, on a container with an /etc/passwd (lab/provision: box)."""

import pytest

from testkit import howto

CAP_NET_RAW, CAP_SYS_PTRACE = 13, 19
SLOW = (
    "perf",
    "tcpdump",
)  # an emulated machine has no performance counters, and tcpdump would buffer its output


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(
            recipe,
            marks=[pytest.mark.tool(recipe.tool), *([pytest.mark.not_gate] if recipe.tool in SLOW else [])],
            id=f"{recipe.tool}-{number}",
        )
        for number, recipe in enumerate(howto.RECIPES)
    ],
)
def test_recipe(cntr, engine, machine, recipe):
    """The recipe shows what it promises."""
    options = cntr.options
    bounding = int(machine.succeed(f"awk '/CapBnd/ {{ print $2 }}' /proc/{engine.pid('box')}/status"), 16)
    if recipe.tool == "tcpdump":
        options += "" if bounding >> CAP_NET_RAW & 1 else " --privileged"
    if recipe.tool == "perf" and int(machine.succeed("cat /proc/sys/kernel/perf_event_paranoid")) > 2:
        options += " --privileged --force"  # Debian's kernels; nspawn's containers hold CAP_SYS_PTRACE
    elif recipe.tool == "perf" and bounding >> CAP_SYS_PTRACE & 1:
        options += " --force"  # nspawn's: their filters, which apply to the tools then, refuse perf_event_open(2)
    script = recipe.script("box", options.strip())
    if recipe.tool == "perf" and "--privileged" in options:
        script = script.replace("--symfs /var/lib/cntr ", "")
    assert machine.succeed(script, timeout=90)


def test_files_in_and_out(cli, machine):
    """`cntr cp` copies a file in and out, also through a pipe."""
    directory = machine.succeed("mktemp -d").strip()
    try:
        machine.succeed(f"echo 'a = 1' > {directory}/config.toml")
        into = howto.line("cntr cp config.toml", "box").replace("/app/", "/scratch/")
        machine.succeed(f"cd {directory} && {into}")
        out = howto.line("cntr cp web:/app/dump.bin /dev/stdout", "box").replace("app/dump.bin", "scratch/config.toml")
        assert "a = 1" in machine.succeed(f"cd {directory} && {out}")
    finally:
        machine.succeed(f"rm -r {directory}; cntr exec box rm -f /scratch/config.toml")
