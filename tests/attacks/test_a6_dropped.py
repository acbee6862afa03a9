"""A6: tools that drop capabilities must not let the container in, or it must find nothing.

The accomplice has Docker's default capabilities, and attacks with every uid that a tool could change to.
"""

from __future__ import annotations

import pytest

from tests.attacks import kit

CAPSET = (
    "import ctypes,time;l=ctypes.CDLL(None);h=(ctypes.c_uint32*2)(0x20080522,0);d=(ctypes.c_uint32*6)(0x{:x},0x{:x},0,0,0,0);"
    "l.syscall(126,h,d);time.sleep(0.3)"
)
TOOLS = {
    "setpriv inh": "setpriv --inh-caps=-all --ambient-caps=-all --bounding-set=-all sleep 0.3",
    "setpriv bounding": "setpriv --bounding-set=-sys_ptrace --inh-caps=-sys_ptrace sleep 0.3",
    "setpriv user": "setpriv --reuid 1000 --regid 1000 --clear-groups sleep 0.3",
    "setpriv user keeps": "setpriv --reuid 1000 --init-groups --regid 1000 --inh-caps=-all sh -c 'sleep 0.3'",
    "setpriv no_new_privs": "setpriv --no-new-privs --bounding-set=-all bash -c 'sleep 0.3; true'",
    "capsh drop": "capsh --drop=cap_sys_ptrace -- -c 'sleep 0.3'",
    "capsh drop all": "capsh --drop=all -- -c 'sleep 0.3'",
    "capsh user": "capsh --user=nobody -- -c 'sleep 0.3'",
    "capsh secbits": "capsh --secbits=0x2f -- -c 'sleep 0.3'",
    "capsh mode": "capsh --mode=NOPRIV -- -c 'sleep 0.3'",
    "su": "su -s /bin/sh nobody -c 'sleep 0.3'",
    "su slim": "su -s /bin/sh slim -c 'sleep 0.3' || su -s /bin/sh daemon -c 'sleep 0.3'",
    "python capset none": f'python3 -c "{CAPSET.format(0, 0)}"',
    "python capset docker": f'python3 -c "{CAPSET.format(0xA80425FB, 0xA80425FB)}"',
    "python effective": f'python3 -c "{CAPSET.format(0, 0xA80425FB)}"',
    "python seteuid": "python3 -c 'import os,time; os.seteuid(1000); time.sleep(0.3)'",
    "python setresuid": "python3 -c 'import os,time; os.setgroups([]); os.setresgid(1000,1000,1000); os.setresuid(1000,1000,1000); time.sleep(0.3)'",
    "python dumpable": "python3 -c 'import ctypes,os,time; os.setresuid(1000,1000,1000); ctypes.CDLL(None).prctl(4,1,0,0,0); time.sleep(0.3)'",
    "python ptracer": "python3 -c 'import ctypes,time; ctypes.CDLL(None).prctl(0x59616d61,-1,0,0,0); time.sleep(0.3)'",
    "perl uid": "perl -e '$>=1000; $<=1000; select undef,undef,undef,0.3'",
    "unshare user": "unshare -U sleep 0.3; unshare -Ur sleep 0.3",
    "unshare map": "unshare -r --map-root-user sh -c 'sleep 0.3'",
    "chroot": "chroot --userspec=1000:1000 / sleep 0.3",
    "ssh-agent": "ssh-agent sleep 0.3",
    "traceme": "python3 -c 'import ctypes,time; ctypes.CDLL(None).ptrace(0,0,0,0); time.sleep(0.3)'",
    "strace": "strace -o /dev/null sleep 0.3",
    "gdb": "gdb -q -batch -ex run --args sleep 0.3",
    "busybox": "busybox setuidgid nobody sleep 0.3; busybox su -s /bin/sh nobody -c 'sleep 0.3'",
}


@pytest.fixture
def hunted(accomplice, canary, place):
    """A container whose first process attacks with the uids that a tool could change to."""
    argv = ("hunt", "lt", canary.path, canary.secret, "same", "1000", "1000+", "65534", "65534+")
    with kit.hostile(place, accomplice, *argv) as container:
        kit.await_ready(container)
        yield container


GROUPS = [list(TOOLS)[start : start + 4] for start in range(0, len(TOOLS), 4)]


@pytest.mark.parametrize("names", GROUPS, ids=["-".join(name.replace(" ", "_") for name in names) for names in GROUPS])
def test_tools_that_give_up(hunted, canary, names):
    """A few at once, each long enough to be inspected."""
    script = " & ".join(f"({TOOLS[name]}) </dev/null" for name in names)
    kit.attach(hunted, "mount", command=["/bin/bash", "-c", f"{script}; wait"], timeout=40)
    assert hunted.proofs(canary.secret) == []


def test_all_of_them_by_fuse(hunted, canary):
    script = " & ".join(f"({line}) </dev/null" for line in TOOLS.values())
    kit.attach(hunted, "fuse", command=["/bin/bash", "-c", f"{script}; wait"], timeout=60)
    assert hunted.proofs(canary.secret) == []


@pytest.mark.parametrize("user", ["1000", "65534", "4711"])
def test_a_session_of_another_user(hunted, canary, transport, user):
    script = " & ".join(
        f"({TOOLS[name]}) </dev/null"
        for name in ("setpriv inh", "python capset none", "python ptracer", "unshare user")
    )
    for flags in (["--user", user], ["--user", f"{user}:{user}"]):
        kit.attach(hunted, transport, *flags, command=["/bin/bash", "-c", f"{script}; sleep 0.3; wait"], timeout=30)
    assert hunted.proofs(canary.secret) == []


def test_a_set_id_program_of_the_tools(accomplice, canary, place, transport):
    """A set-id program also changes capabilities; in a session these bits have no effect."""
    with kit.hostile(place, accomplice, uid=1000) as container:
        shown = kit.in_session(
            container,
            transport,
            "su -c 'id -u' </dev/null 2>&1; mount 2>&1 | head -1; passwd --help >/dev/null 2>&1; find /usr/bin/su -perm -4000",
        )
        assert "\n0\n" not in f"\n{shown}"
