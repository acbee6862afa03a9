"""Real debugging: the tools people come for, on a program in a container that has none of them."""

import pytest
from conftest import BASE

CAP_NET_RAW = 13
# In the session the container's program is pid 1, unless the engine puts its own init before it.
FIND = "pid=$(pgrep -x slim-app | head -n 1)"
# Without a sysroot gdb enters the target's mount namespace to read its files, which needs CAP_SYS_ADMIN.
GDB = f"gdb -q -nx -batch -iex 'set sysroot {BASE}' -p $pid"


@pytest.mark.tool("gdb")
def test_gdb_resolves_symbols(cntr):
    """gdb -p finds functions, source lines and variables of the container's program."""
    said = cntr.attach("slim", f"{FIND}; {GDB} -ex bt -ex 'print lab_greeting' -ex detach 2>&1", timeout=60)
    assert "serve_forever" in said
    assert "hello from the slim container" in said


@pytest.mark.tool("strace")
def test_strace(cntr):
    """strace -p shows the system calls of the container's program."""
    said = cntr.attach("slim", f"{FIND}; timeout 3 strace -qq -e trace=poll -p $pid 2>&1 | head -n 4", timeout=40)
    assert "poll(" in said


@pytest.mark.tool("tcpdump")
def test_tcpdump(cntr, engine, machine):
    """tcpdump sees a connection on an unpublished port in the container's own network."""
    bounding = machine.succeed(f"awk '/CapBnd/ {{ print $2 }}' /proc/{engine.pid('slim')}/status")
    options = "" if int(bounding, 16) >> CAP_NET_RAW & 1 else "--privileged"  # Podman's containers do not have it
    script = (
        "timeout 25 tcpdump -l -n -i lo -c 3 tcp port 8080 >/tmp/lab-dump 2>&1 & d=$!; "
        "for i in 1 2 3 4 5 6 7 8; do sleep 0.6; "
        "python3 -c 'import socket; s = socket.create_connection((\"127.0.0.1\", 8080)); print(s.recv(99).decode().strip())'; "
        "kill -0 $d 2>/dev/null || break; done | head -n 1; wait $d; cat /tmp/lab-dump; rm -f /tmp/lab-dump"
    )
    said = cntr.attach("slim", script, options=options, timeout=60)
    assert "hello from the slim container" in said
    assert "127.0.0.1.8080" in said


@pytest.mark.tool("perf")
@pytest.mark.vm
def test_perf(cntr):
    """perf records the container's program, by its pid there (software clock: an emulated CPU has no counters).

    With --force: nspawn gives its containers CAP_SYS_PTRACE, and beside such a container the host's capabilities are
    refused.
    """
    script = (
        # -N, -B, --no-bpf-event: do not copy every library into the tools' ~/.debug, or the list of kernel symbols
        f"{FIND}; perf record -q -N -B --no-bpf-event -e cpu-clock -o /tmp/lab-perf -p $pid -- sleep 0.5; "
        "perf script -i /tmp/lab-perf --header-only | grep -c cpu-clock; rm -f /tmp/lab-perf"
    )
    assert int(cntr.attach("slim", script, options="--privileged --force", timeout=60).split()[-1]) >= 1


def test_the_binary_itself(cntr):
    """The host's tools read the container's binary, like readelf."""
    assert "serve_forever" in cntr.attach("slim", f"nm {BASE}/slim-app")
