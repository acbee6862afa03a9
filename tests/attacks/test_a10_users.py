"""A10: --user. A number is a number (CVE-2016-3697), and groups in the container's file give no rights on the tools'
tree.
"""

from __future__ import annotations

import pytest

from tests.attacks import kit
from tests.nest.busybox import run

NUMBERS = {
    "name is the number": ("1000", "1000:x:0:0::/:/bin/sh\n"),
    "after others": ("1000", "root:x:0:0::/:/x\nslim:x:1000:1000::/:/x\n1000:x:0:0::/:/bin/sh\n"),
    "shadow": ("1000", "1000:x:1000:42::/:/bin/sh\n"),
    "leading zero": ("01000", "01000:x:0:0::/:/bin/sh\n"),
}
REFUSED = {
    "plus": ("+0", "+0:x:1000:1000::/:/x\n"),
    "minus": ("-1", "root:x:0:0::/:/x\n"),
    "hexadecimal": ("0x0", "root:x:0:0::/:/x\n"),
    "underscore": ("1_000", "root:x:0:0::/:/x\n"),
    "full width": ("０", "root:x:0:0::/:/x\n"),
    "arabic": ("٠", "root:x:0:0::/:/x\n"),
    "empty": ("", ":x:0:0::/:/x\n"),
    "empty group": ("1000:", "root:x:0:0::/:/x\n"),
    "too large": ("4294967295", "root:x:0:0::/:/x\n"),
    "overflow": ("4294967296", "root:x:0:0::/:/x\n"),
    "group overflow": ("1000:4294967296", "root:x:0:0::/:/x\n"),
    "uid of a name overflows": ("evil", "evil:x:4294967296:4294967296::/:/x\n"),
    "uid of a name is none": ("evil", "evil:x:4294967295:0::/:/x\n"),
    "uid of a name is negative": ("evil", "evil:x:-1:-1::/:/x\n"),
    "uid of a name is empty": ("evil", "evil:x:::::\n"),
    "uid of a name is spaced": ("evil", "evil:x: 0: 0::/:/x\n"),
    "uid of a name is signed": ("evil", "evil:x:+0:+0::/:/x\n"),
    "newline": ("evil\nroot", "root:x:0:0::/:/x\n"),
}
GROUPS = "shadow:x:42:app,1000\ndisk:x:6:app,1000\nroot:x:0:app,1000\ndocker:x:999:app\nkvm:x:104:app\nadm:x:4:app\n"


@pytest.mark.parametrize("verb", ["attach", "exec"])
@pytest.mark.parametrize("kind", NUMBERS)
def test_a_number_is_a_number(accomplice, canary, place, verb, kind):
    wanted, passwd = NUMBERS[kind]
    with kit.hostile(place, accomplice, files={"/etc/passwd": passwd, "/etc/group": GROUPS}) as container:
        done = run(verb, str(container.pid), "--user", wanted, "--", "sh", "-c", "id -u; cat /proc/self/status")
        if done.returncode == 125:
            assert kind == "leading zero"
            return
        assert done.returncode == 0, done
        assert done.stdout.splitlines()[0] == "1000"


@pytest.mark.parametrize("kind", REFUSED)
def test_no_other_spelling_is_a_number(accomplice, canary, place, kind):
    verb = "attach" if len(kind) % 2 else "exec"
    wanted, passwd = REFUSED[kind]
    with kit.hostile(place, accomplice, files={"/etc/passwd": passwd}) as container:
        done = run(verb, str(container.pid), f"--user={wanted}", "--", "sh", "-c", "id -u")
        if done.returncode == 0:  # a name may be one in the file, but must not lead to root
            assert done.stdout.strip() == "1000", done
            return
        assert done.returncode == 125, done
        assert done.stderr.startswith("cntr: "), done
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["group", "path", "user"])
def test_groups_of_the_container_open_no_file_of_the_host(accomplice, canary, place, transport, kind):
    """--user NAME, and the container's process itself, with the host's shadow, disk or root among their groups."""
    path = canary.path if kind == "path" else canary.file(kind)
    passwd = "app:x:1234:42::/:/bin/sh\nslim:x:1000:1000::/:/x\n"
    with kit.hostile(
        place, accomplice, files={"/etc/passwd": passwd, "/etc/group": GROUPS}, groups=(42, 6, 0)
    ) as container:
        for flags in (
            [],
            ["--user", "app"],
            ["--user", "1000:42"],
            ["--user", "1000"],
            ["--user", "0:42"],
            ["--user", "app:shadow"],
        ):
            done = kit.attach(
                container,
                transport,
                *flags,
                command=["/bin/bash", "-c", f"cat {path}; cat /etc/shadow; head -c1 /dev/vda /dev/sda"],
            )
            assert canary.secret not in done.stdout + done.stderr, flags
            assert "root:" not in done.stdout, flags


def test_a_user_of_a_container_with_a_user_namespace(accomplice, canary, place, transport):
    with kit.remapped(
        place, accomplice, files={"/etc/passwd": "1000:x:0:0::/:/x\n", "/etc/group": GROUPS}
    ) as container:
        for flags in (["--user", "1000"], ["--user", "0"], ["--user", "65535"]):
            done = kit.attach(
                container,
                transport,
                *flags,
                command=["/bin/bash", "-c", f"id -u; cat {canary.path} {canary.file('group')} {canary.file('user')}"],
            )
            assert done.stdout.split()[0] == flags[1], done
            assert canary.secret not in done.stdout
        refused = run("attach", str(container.pid), "--user", "70000", "--", "true")
        assert refused.returncode == 125
