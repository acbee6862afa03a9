"""Ports and sockets: a container's port while it restarts, this machine's port in the container, and a window on a
display.
"""

import base64
import struct
import zlib
from pathlib import Path

import pytest

GREETING = "hello from the slim container"
ASK = (
    "python3 -c 'import socket; print(socket.create_connection((\"127.0.0.1\", 18080), 60).recv(99).decode().strip())'"
)
# Each of four clients runs until a certain file exists; it records refused or empty answers.
LOAD = """
import os, socket, sys, threading
answers, wrong = [], []
def ask():
    while not os.path.exists(sys.argv[1]):
        try:
            with socket.create_connection(("127.0.0.1", 18080), 60) as connection:
                answers.append(connection.recv(99))
        except ConnectionResetError:
            answers.append(b"reset")  # it was under way when the container ended
        except OSError as error:
            wrong.append(str(error))
threads = [threading.Thread(target=ask) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(answers), sum(b"hello" in answer for answer in answers), len(wrong), *wrong[:3])
"""


@pytest.mark.no_transport
def test_a_port_stays_while_the_container_restarts(cntr, engine, machine):
    """Under load, no connection to a forwarded port is refused while the container restarts."""
    if "hello" not in machine.run(f"nsenter -n -t {engine.pid('slim')} {ASK.replace('18080', '8080')}").stdout:
        pytest.skip("slim does not answer at port 8080 on this machine: it shares a network")
    with machine.background("cntr forward slim 18080:8080"):
        assert machine.wait_until_succeeds(ASK) == GREETING
        with machine.background(f"python3 -c {quoted(LOAD)} /tmp/lab-over") as load:
            for _ in range(2):
                engine.reset("slim")
            machine.succeed(f"{ASK}; touch /tmp/lab-over", timeout=60)
            load.wait(90 * machine.slowness)
            said = load.output().split()
        assert machine.succeed(f"rm /tmp/lab-over; {ASK}", timeout=60) == GREETING
    assert said[2] == "0", said
    assert int(said[1]) >= 4, said


@pytest.mark.no_transport
def test_a_command_with_the_port_up(cntr, machine):
    """`cntr forward … -- CMD`, and stdin and stdout joined to a port; the container's unpublished 127.0.0.1."""
    assert machine.succeed(f"cntr forward slim 18080:8080 -- {ASK} 2>/dev/null") == GREETING
    assert machine.succeed("cntr forward slim - 8080 </dev/null") == GREETING


@pytest.mark.no_transport
def test_a_port_of_this_machine_in_the_container(cntr, machine):
    """`-R`: a session's tool reaches a server on the machine at the container's 127.0.0.1."""
    serve = 'import socket; s = socket.create_server(("127.0.0.1", 18099)); s.accept()[0].sendall(b"from the machine")'
    with machine.background(f"python3 -c {quoted(serve)}"):
        machine.wait_until_succeeds("ss -ltn | grep -q 18099")
        ask = f"cntr attach slim -- {ASK.replace('18080', '18098')}"
        assert machine.succeed(f"cntr forward slim -R 18098:18099 -- {ask} 2>/dev/null") == "from the machine"


@pytest.mark.tool("Xvfb")
@pytest.mark.tool("xclock")
def test_a_window_on_the_display(cntr, machine, request):
    """xclock in a session (-X) is on the machine's display; the picture is beside the report."""
    display = "DISPLAY=:71 XAUTHORITY=/tmp/lab-authority"
    with machine.background(
        "xauth -f /tmp/lab-authority add :71 . $(mcookie) 2>/dev/null; exec Xvfb :71 -noreset -auth /tmp/lab-authority"
    ):
        machine.wait_until_succeeds(f"{display} xwd -root -silent >/tmp/lab-before")
        with machine.background(f"{display} {cntr.line('slim', 'xclock', '-geometry', '300x300', options='-X')}"):
            machine.wait_until_succeeds(
                f"{display} xwd -root -silent >/tmp/lab-after; ! cmp -s /tmp/lab-before /tmp/lab-after"
            )
            dump = machine.succeed(
                f"sleep 0.5; {display} xwd -root -silent | gzip -1 | base64 -w0; rm -f /tmp/lab-before /tmp/lab-after"
            )
        machine.run("rm -f /tmp/lab-authority")
    name = f"{machine.spec.name}-{cntr.transport}-xclock.png"
    place = Path(request.config.getoption("--lab-report"), "artefacts", name)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(png(zlib.decompress(base64.b64decode(dump), 31)))
    request.node.user_properties.append(("artefacts", [f"artefacts/{name}"]))


def quoted(code):
    """Python for `python3 -c` in a shell."""
    return "'" + code.replace("'", "'\\''") + "'"


def png(dump):
    """Convert a window dump (XWDFile.h) with 32 bits per pixel to PNG."""
    head = struct.unpack_from(">25I", dump)
    size, width, height, line, colours = head[0], head[4], head[5], head[12], head[19]
    pixels = dump[size + 12 * colours :]
    rows = bytearray()
    for y in range(height):
        row = pixels[y * line : y * line + 4 * width]
        rows += b"\0"
        colour = bytearray(3 * width)
        colour[0::3], colour[1::3], colour[2::3] = row[2::4], row[1::4], row[0::4]
        rows += colour

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    shape = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", shape) + chunk(b"IDAT", zlib.compress(bytes(rows))) + chunk(b"IEND", b"")
    )
