"""A2: the container's passwd, group and host name, where tools of ours read names, homes and shells.

Names hold what a prompt would run, what a terminal would obey; homes hold start-up files; shells are programs.
"""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import re
import socket
import subprocess

import pytest

from cntr.linux import syscalls
from testkit.waiting import wait_until
from tests.attacks import kit
from tests.nest.busybox import run
from tests.nest.tty import CNTR, Terminal

MARK = "/var/lib/cntr/loot"
# What bash would run when it expands \u in Debian's prompt; no colon may be in a name.
NAMES = {
    "substitution": f"$(echo canary name >>{MARK})",
    "backticks": f"`echo canary name >>{MARK}`",
    "arithmetic": f"$((x[$(echo canary name >>{MARK})]))",
    "brace": f"${{x[$(echo canary name >>{MARK})]}}",
    "nested": f"$(eval $(echo echo canary name) >>{MARK})",
    "separator": f"x;echo canary name >>{MARK};",
    "option": "--help",
    "dashes": "-rf",
}
ESCAPES = {
    "title": "\x1b]0;owned\x07",
    "c1": "\u009b31mowned",
    "answerback": "\x1b[c\x1b[5n",
    "carriage": "innocent\rowned",
    "backspace": "root\b\b\b\bevil",
    "bidi": "ro\u202eto",
    "clipboard": "\x1b]52;c;b3duZWQ=\x07",
    "delete": "a\x7fb",
}
EVIL = f"echo canary $0 >>{MARK}\n"
STARTUP = (".bashrc .bash_profile .bash_login .profile .bash_logout .inputrc .vimrc .exrc .gdbinit .gitconfig .config/git/config "
           ".config/gdb/gdbinit .tmux.conf .screenrc .nanorc .lesskey .netrc .wgetrc .curlrc .psqlrc .ssh/config .ssh/rc .npmrc .perldb "
           ".pythonrc.py .local/lib/python3.11/site-packages/usercustomize.py .local/lib/python3.11/site-packages/x.pth").split()  # fmt: skip


def users(
    name: str = "root", uid: str = "0", gid: str = "0", home: str = "/root", shell: str = "/bin/sh"
) -> dict[str, str]:
    return {"/etc/passwd": f"{name}:x:{uid}:{gid}:{name}:{home}:{shell}\n", "/etc/group": f"{name}:x:{gid}:\n"}


def start_files(container: kit.Hostile, home: pathlib.Path) -> None:
    """In HOME, everything that tools read at their start."""
    for name in STARTUP:
        file = home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(EVIL)
        if name.endswith("gdbinit"):
            file.write_text(f"shell {EVIL}")
        elif name.endswith((".vimrc", ".exrc")):
            file.write_text(f"call system('{EVIL.strip()}')\n")
        elif name.endswith((".pth", ".py")):
            file.write_text(f"import os; os.system('{EVIL.strip()}')\n")
        elif name.endswith(".tmux.conf"):
            file.write_text(f"run-shell '{EVIL.strip()}'\n")
        elif name.endswith("config") and "git" in name:
            file.write_text(f"[alias]\n  st = !{EVIL}[core]\n  pager = {EVIL}\n")
        elif name == ".ssh/config":
            file.write_text(f'Match exec "{EVIL.strip()}"\n')


@pytest.mark.parametrize(("transport", "name"), kit.each(list(NAMES)), indirect=["transport"])
def test_a_name_in_a_prompt(accomplice, canary, place, transport, name):
    """An interactive shell with the prompt that Debian gives it, and with others that show the user."""
    with kit.hostile(place, accomplice, files=users(NAMES[name])) as container:
        prompts = "PS1='\\u@\\h:\\w\\$ '\n:\nPS1='\\u \\H \\j'\n:\necho \"${PS1@P}\"\nexit\n"
        done = kit.attach(container, transport, command=["/bin/bash", "-i"], input=prompts, env={"SHELL": "/bin/bash"})
        assert done.returncode == 0, done
        assert container.proofs(canary.secret) == []
        with Terminal(*CNTR, "attach", str(container.pid), "--transport", transport) as terminal:
            terminal.type("echo rea''dy\n")
            terminal.wait_for("ready")
            terminal.type("exit\n")
            terminal.process.wait(20)
        assert container.proofs(canary.secret) == []


def test_control_a_name_in_a_prompt_runs(place):
    """bash does run what a name holds."""
    kit.need("unshare")
    passwd = place / "passwd"
    proof = place / "proof"
    passwd.write_text(f"$(touch$IFS{proof}):x:0:0::/:/bin/sh\n".replace("$IFS", "${IFS}"))
    line = f"mount --bind {passwd} /etc/passwd; exec bash --norc -i"
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "bash", "-c", line],
        input="PS1='\\u> '\n:\nexit\n",
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert proof.exists(), done


@pytest.mark.parametrize("name", ["substitution", "backticks", "separator"])
def test_a_host_name_in_a_prompt(accomplice, canary, place, transport, name):
    """The host name is any 64 bytes for whoever holds CAP_SYS_ADMIN in its user namespace, and /etc/hostname always is."""
    evil = {
        "substitution": f"$(>>{MARK};echo canary>{MARK})",
        "backticks": f"`echo canary>{MARK}`",
        "separator": f";echo canary>{MARK};",
    }[name]
    with kit.hostile(
        place, accomplice, files={"/etc/hostname": f"{evil}\n", **users()}, as_root=lambda: socket.sethostname(evil)
    ) as container:
        done = kit.attach(
            container,
            transport,
            command=["/bin/bash", "-i"],
            input="PS1='\\u@\\h:\\w\\$ '\n:\nPS1='\\H '\n:\nexit\n",
            env={"SHELL": "/bin/bash"},
        )
        assert done.returncode == 0, done
        assert container.proofs(canary.secret) == []


@pytest.mark.parametrize(("transport", "name"), kit.each(list(ESCAPES)), indirect=["transport"])
def test_escapes_in_names_reach_no_terminal(accomplice, canary, place, transport, name):
    """ls, id, stat, find, ps print names raw."""
    evil = ESCAPES[name]
    files = {
        "/etc/passwd": f"root:x:0:0::/:/bin/sh\n{evil}:x:4242:4242:{evil}:/{evil}:/{evil}\n",
        "/etc/group": f"root:x:0:\n{evil}:x:4242:root,{evil}\n{evil}2:x:0:{evil}\n",
        "/etc/hostname": evil,
        "/etc/hosts": f"127.0.0.1 localhost {evil}\n",
    }
    with kit.hostile(place, accomplice, files=files) as container:
        os.chown(container.root / "loot", 4242, 4242)
        script = (
            f"id 4242; id; groups; ls -l {MARK}; stat {MARK}; find {MARK} -ls; getent passwd; getent group; "
            "ls -ln /etc/passwd >/dev/null; ps -eo user,group,args | head -5; cat /etc/passwd /etc/group /etc/hostname"
        )
        shown = kit.in_session(container, transport, script)
        assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown) == []
        assert evil not in shown


def homes(container: kit.Hostile) -> dict[str, str]:
    """Homes that lead to start-up files of the container's."""
    return {
        "as the host sees it": f"{container.root}/home",
        "base": "/var/lib/cntr/home",
        "dots": f"/usr/../{container.root}/home",
        "proc": "/proc/1/root/home",
        "cwd": "/proc/1/cwd/home",
        "fd": "/proc/self/root/var/lib/cntr/home",
        "slashes": f"//{container.root}//home/",
        "host process": f"/proc/{container.pid}/root/home",
        "dev": "/dev/home",
        "sys": "/sys/../var/lib/cntr/home",
    }


HOMES = ("as the host sees it", "base", "dots", "proc", "cwd", "fd", "slashes", "host process", "dev", "sys")


@pytest.mark.parametrize(("transport", "kind"), kit.each(HOMES), indirect=["transport"])
def test_a_home_of_the_containers(accomplice, canary, place, transport, kind):
    """No shell, debugger or editor starts with files from there: by $HOME, and by what passwd says for those who ask it."""
    root = place / "root"
    root.mkdir()
    home = homes(kit.Hostile(root=root))[kind]
    with kit.hostile(place, accomplice, root=root, files=users(home=home)) as container:
        start_files(container, container.root / "home")
        (container.inside("/dev") / "home").mkdir()
        (container.inside("/dev/home") / ".bashrc").write_text(EVIL)
        script = (
            "bash -i -c true; bash -l -c true; env -u HOME bash -l -c true; sh -l -c true; "
            "gdb -batch -ex quit 2>/dev/null; env -u HOME gdb -batch -ex quit; python3 -c pass; env -u HOME python3 -c pass; "
            "vim -es -c q </dev/null; env -u HOME vim -es -c q </dev/null; cd /tmp; git st; env -u HOME git st; "
            "ssh -G nowhere >/dev/null; bash -c '. ~root/.bashrc'; bash -c '. ~/.profile'; tmux -L y new-session -d true; "
            'env -u HOME tmux -L z new-session -d true; sleep 0.1; echo "home $HOME"; getent passwd 0'
        )
        shown = kit.in_session(container, transport, f"({script}) </dev/null", timeout=60)
        assert container.proofs(canary.secret) == [], shown
        assert f":{home}:" not in shown


@pytest.mark.parametrize("shell", ["/var/lib/cntr/accomplice", "/proc/1/root/proof", "as the host sees it"])
def test_a_shell_of_the_containers(accomplice, canary, place, transport, shell):
    """su, script, tmux, vim, git run the shell that passwd names."""
    root = place / "root"
    root.mkdir()
    shell = f"{root}/proof" if shell == "as the host sees it" else shell.replace("accomplice", "proof")
    with kit.hostile(
        place, accomplice, root=root, files=users(shell=shell), programs={"/proof": accomplice}
    ) as container:
        script = (
            "su -c true; su - -c true; env -u SHELL script -qc true /dev/null; env -u SHELL tmux -L w new-session -d; sleep 0.1; "
            "env -u SHELL vim -es -c '!true' -c q; env -u SHELL bash -c '$SHELL -c true'; "
            "python3 -c 'import os,pwd; os.system(pwd.getpwuid(0).pw_shell + \" x\")' </dev/null; getent passwd root"
        )
        shown = kit.in_session(container, transport, f"({script}) </dev/null", "-e", "TERM=dumb", timeout=60)
        assert kit.PROOF not in shown
        assert container.proofs(canary.secret) == []


COLLISIONS = {
    "second root": "root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/var/lib/cntr:/proof\n",
    "root is another": "root:x:1000:1000::/:/bin/sh\nslim:x:0:0::/:/bin/sh\n",
    "duplicate": "root:x:0:0::/a:/a\nroot:x:0:0::/b:/b\nroot:x:1000:0::/c:/c\n",
    "no newline": "root:x:0:0::/:/bin/sh",
    "nul": "root:x:0:0::/:/bin/sh\nb\0d:x:1001:0::/\0:/\0\n",
    "too few fields": "root:x:0\nroot\n:::::\n::0:0:::\n",
    "signs": "root:x:-1:-1::/:/x\nbig:x:4294967296:4294967296::/:/x\nhuge:x:99999999999999999999:0::/:/x\nx: 0:0:0::/:\n",
    "compat": "+::::::\n-root\n+@net:x:0:0:::\n",
    "empty": "",
    "binary": "\x7fELF\udcff\udcfe\udc80:x:0:0\n",
    "one long line": "r" * (1 << 20) + ":x:0:0::/:/bin/sh\n",
    "carriage returns": "root:x:0:0::/:/bin/sh\r\nslim:x:1000:1000::/:/bin/sh\r\n",
}


@pytest.mark.parametrize(("transport", "kind"), kit.each(list(COLLISIONS)), indirect=["transport"])
def test_an_odd_passwd_stops_nothing(accomplice, canary, place, transport, kind):
    """The session comes, uid 0 has a name that is one, and every line is one that getpwent(3) can read."""
    with kit.hostile(place, accomplice) as container:
        text = COLLISIONS[kind].encode(errors="surrogateescape")
        for name in ("passwd", "group"):
            container.write(f"/etc/{name}", text, 0o644)
        shown = kit.in_session(
            container,
            transport,
            "id -un; id -u; getent passwd | grep -c .; grep -vE '^([^:]*:){6}[^:]*$' /etc/passwd; getent passwd 0",
        )
        name, uid, count, *entries = shown.splitlines()
        assert re.fullmatch("[a-z_][a-z0-9_-]{0,31}", name), shown
        assert uid == "0"
        assert int(count) > 0
        assert len(entries) == 1, shown
        assert not any(word in shown for word in ("/var/lib/cntr", "/proof", "\0"))


@pytest.mark.parametrize("lines", [10**6])
def test_a_million_users(accomplice, canary, place, transport, lines):
    with kit.hostile(place, accomplice) as container:
        container.write("/etc/passwd", "".join(f"u{n}:x:{n}:{n}::/:/x\n" for n in range(lines)), 0o644)
        container.write("/etc/group", "".join(f"u{n}:x:{n}:root,u{n}\n" for n in range(lines)), 0o644)
        assert kit.in_session(container, transport, "id -un", timeout=kit.LIMIT_SECONDS) in ("root\n", "u0\n")


def test_the_tools_service_users_stay(accomplice, canary, place, transport):
    """A tool that gives its rights up to a user of its package finds it (tcpdump, sshd): where the container's names and ids leave room."""
    with kit.hostile(place, accomplice, files=users()) as container:
        assert "nobody" in kit.in_session(container, transport, "getent passwd nobody")


@pytest.mark.parametrize("later", [False, True])
def test_a_host_name_that_a_terminal_obeys(accomplice, canary, place, transport, later):
    """Prompts print it raw. A process in a user namespace of its making gives its UTS namespace any name, before the session or in it."""
    name = "\x1b]0;t\x07$(id)`id`"

    def worker() -> None:
        if os.fork():
            return
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWUTS)
        pathlib.Path("/proc/self/uid_map").write_text("0 0 1")
        if not later:
            socket.sethostname(name)
        os.execv("/bin/sleep", ["sleep", "600"])

    with kit.hostile(place, accomplice, as_root=worker) as container:
        (child,) = pathlib.Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
        changed = [
            "nsenter",
            "--preserve-credentials",
            f"--user=/proc/{child}/ns/user",
            f"--uts=/proc/{child}/ns/uts",
            "--",
            "python3",
            "-c",
            "import socket, sys; socket.sethostname(sys.argv[1])",
            name,
        ]
        wait_until(lambda: pathlib.Path(f"/proc/{child}/comm").read_text() == "sleep\n", "the worker")
        begun = container.root / "begun"
        command = [
            "sh",
            "-c",
            "touch /var/lib/cntr/begun; while [ -e /var/lib/cntr/begun ]; do sleep 0.1; done; uname -n; bash -c 'x=\\h; echo ${x@P}'",
        ]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            done = pool.submit(run, "attach", child, "--transport", transport, "--", *command)
            wait_until(begun.exists, "the session")
            if later:
                subprocess.run(changed, check=True)
                assert (
                    subprocess.run([*changed[:5], "uname", "-n"], capture_output=True, text=True, check=True).stdout
                    == f"{name}\n"
                )
            begun.unlink()
        shown = done.result()
        assert (shown.returncode, set(shown.stdout.replace("\n", "")) & set(name) - set("0tid")) == (0, set()), shown
