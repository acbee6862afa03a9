"""A4: the container's variables, which our tools would obey.

Each row is a tool that really obeys its variable: shown first outside, where the trap springs. In a session beside a container that has the
variable it must not. No list of names is behind this: ``test_no_variable_of_the_containers_comes_in`` asks for names that nobody knows.
"""

from __future__ import annotations

import os
import pathlib
import secrets
import shutil
import subprocess

import pytest

from tests.attacks import kit
from tests.nest.busybox import run

# tool → (variable, value, command). {trap}: a script that leaves its mark; {so}: a library that does; {dir}: a directory with the trap under
# many names. In a session they mean the container's, below the base directory.
ROWS: dict[str, tuple[str, str, str]] = {
    "bash startup": ("BASH_ENV", "{trap}", "bash -c true"),
    "sh startup": ("ENV", "{trap}", "dash -i </dev/null"),
    "bash function": ("BASH_FUNC_ls%%", "() {{ {trap}; }}", "bash -c ls"),
    "bash prompt command": ("PROMPT_COMMAND", "{trap}", "bash --norc -i </dev/null"),
    "git editor": ("GIT_EDITOR", "{trap}", "cd $(mktemp -d) && git init -q . && git config -e"),
    "groff macros": ("GROFF_TMAC_PATH", "{dir}/tmac", "groff -U -mtrap /dev/null"),
    "bash path": ("PATH", "{dir}", "/bin/bash -c git"),
    "loader preload": ("LD_PRELOAD", "{so}", "/bin/true"),
    "loader audit": ("LD_AUDIT", "{so}", "/bin/true"),
    "iconv modules": ("GCONV_PATH", "{dir}/gconv", "iconv -f TRAP -t UTF-8 /dev/null"),
    "python path": ("PYTHONPATH", "{dir}/py", "python3 -c 'import trapmodule'"),
    "python breakpoint": ("PYTHONBREAKPOINT", "os.system", "python3 -c 'breakpoint(\"{trap}\")'"),
    "perl options": ("PERL5OPT", "-Mtrap", "PERL5LIB={dir}/perl perl -e 1"),
    "perl library": ("PERL5LIB", "{dir}/perl", "perl -e 'use trap'"),
    "node options": ("NODE_OPTIONS", "--require {dir}/trap.js", "node -e 0"),
    "node path": ("NODE_PATH", "{dir}", "node -e 'require(\"trap.js\")'"),
    "git config file": ("GIT_CONFIG_GLOBAL", "{dir}/gitconfig", "git trap"),
    "git config count": ("GIT_CONFIG_PARAMETERS", "'alias.trap'='!{trap}'", "git trap"),
    "git ssh": ("GIT_SSH_COMMAND", "{trap}", "git ls-remote ssh://nowhere/x"),
    "git askpass": ("GIT_ASKPASS", "{trap}", "git credential fill <<<$'protocol=http\\nhost=x\\n'"),
    "git diff": (
        "GIT_EXTERNAL_DIFF",
        "{trap}",
        "cd $(mktemp -d) && git init -q . && echo a>f && git add f && echo b>f && git diff",
    ),
    "home": ("HOME", "{dir}/home", "bash -i -c true </dev/null; git trap"),
    "less open": (
        "LESSOPEN",
        "|{trap} %s",
        "less -F /etc/hostname | cat; script -qec 'less -FX /etc/hostname' /dev/null",
    ),
    "vim runtime": ("VIMRUNTIME", "{dir}/vim", "vim -e -c 'runtime trap.vim' -c q </dev/null"),
    "tar checkpoint": ("TAR_OPTIONS", "--checkpoint=1 --checkpoint-action=exec={trap}", "tar cf /dev/null /etc"),
    "rsync shell": ("RSYNC_RSH", "{trap}", "rsync nowhere:x /tmp/"),
    "gcc compiler path": ("COMPILER_PATH", "{dir}", "gcc -x c -c /dev/null -o /tmp/x.o"),
    "openssl config": (
        "OPENSSL_CONF",
        "{dir}/openssl.cnf",
        "openssl version -a; openssl engine; openssl list -providers",
    ),
    "docker plugins": ("DOCKER_CONFIG", "{dir}/docker", "docker trap"),
    "cmake": (
        "CMAKE_TOOLCHAIN_FILE",
        "{dir}/toolchain.cmake",
        "cd $(mktemp -d) && echo 'project(x NONE)' >CMakeLists.txt && cmake .",
    ),
    "valgrind library": ("VALGRIND_LIB", "{dir}/valgrind", "valgrind true"),
    "tmux shell": ("SHELL", "{trap}", "tmux -L q -f /dev/null new-session -d; sleep 0.2"),
}


def lay(directory: pathlib.Path, mark: str, seen: str, library: str) -> dict[str, str]:
    """The trap under every name, in DIRECTORY, which the tools will know as SEEN; it appends to MARK."""
    words = {"trap": f"{seen}/tool", "dir": seen, "so": f"{seen}/lib/libc.so.6"}
    script = f"#!/bin/sh\necho canary $0 >>{mark}\n"
    python = f"import os\nos.system('echo canary python >>{mark}')\n"
    files = {
        **dict.fromkeys(
            (
                "tool",
                "git",
                "sub/tool",
                "git-trap",
                "git-remote-trap",
                "cc1",
                "as",
                "gcc/cc1",
                "gcc/as",
                "docker/cli-plugins/docker-trap",
            ),
            script,
        ),
        "py/trapmodule.py": python,
        "py/sitecustomize.py": python,
        "py/startup.py": python,
        "home/.pdbrc.py": python,
        "pybase/lib/python3.11/site-packages/userbasetrap.py": python,
        "pybase/lib/python3.11/site-packages/x.pth": f"import os; os.system('echo canary pth >>{mark}')\n",
        "perl/trap.pm": f"system('{words['trap']}'); 1;\n",
        "trap.js": f"require('child_process').execSync('{words['trap']}')\n",
        "gitconfig": f"[alias]\n  trap = !{words['trap']}\n",
        "xdg/git/config": f"[alias]\n  trap = !{words['trap']}\n",
        "home/.gitconfig": f"[alias]\n  trap = !{words['trap']}\n",
        "home/.bashrc": f"{words['trap']}\n",
        "home/.pdbrc": f"import os; os.system('{words['trap']}')\n",
        "makefile": f"x := $(shell {words['trap']})\nall:\n",
        "openssl.cnf": f"openssl_conf = a\n[a]\nengines = b\n[b]\nc = d\n[d]\nengine_id = trap\ndynamic_path = {words['so']}\ninit = 1\n",
        "apt.conf": f'APT::Update::Pre-Invoke {{ "{words["trap"]}"; }};\nDir::State "/tmp/aptstate"; Dir::Cache "/tmp/aptcache";\n',
        "toolchain.cmake": f"execute_process(COMMAND {words['trap']})\n",
        "tcl/pkgIndex.tcl": f"exec {words['trap']}\npackage ifneeded trap 1 {{}}\n",
        "gconv/gconv-modules": "module TRAP// INTERNAL trap 1\nmodule INTERNAL TRAP// trap 1\n",
        "template/hooks/pre-commit": script,
        "tmac/trap.tmac": f".sy {words['trap']}\n",
        "vim/trap.vim": f"call system('{words['trap']}')\n",
        "ipython/profile_default/startup/x.py": python,
        "valgrind/memcheck-amd64-linux": script,
        "psqlrc": f"\\! {words['trap']}\n",
    }
    for name, text in files.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    for name in ("lib/libc.so.6", "gconv/trap.so"):
        (directory / name).parent.mkdir(exist_ok=True)
        shutil.copy(library, directory / name)
    return words


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> str:
    """A shared library that leaves the mark whose path is compiled into it when it is loaded, as anything."""
    kit.need("gcc")
    directory = tmp_path_factory.mktemp("library")
    source = directory / "trap.c"
    source.write_text(
        "#include <fcntl.h>\n#include <unistd.h>\n"
        "__attribute__((constructor)) static void sprung(void) {\n"
        '  const char *marks[] = {"/var/lib/cntr/loot", MARK};\n'
        "  for (int i = 0; i < 2; i++) { int fd = open(marks[i], O_WRONLY | O_APPEND);\n"
        '    if (fd >= 0) { if (write(fd, "canary library\\n", 15) < 0) _exit(9); close(fd); } }\n'
        "}\nunsigned int la_version(unsigned int v) { return v; }\n"
    )
    built = str(directory / "trap.so")
    mark = directory / "mark"
    mark.touch()
    subprocess.run(["gcc", "-shared", "-fPIC", f'-DMARK="{mark}"', "-o", built, str(source)], check=True)
    return built


def obeyed_outside(name: str, directory: pathlib.Path, library: str) -> bool:
    """Whether the tool runs the trap without protection."""
    variable, value, command = ROWS[name]
    mark = directory / "mark"
    mark.touch()
    beside = pathlib.Path(library).with_name("mark")
    before = beside.stat().st_size
    words = lay(directory, str(mark), str(directory), library)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory / "nohome"),
        "TERM": "dumb",
        "TMPDIR": str(directory),
    }
    subprocess.run(
        ["/bin/bash", "-c", f"exec 2>&1; {command.format(**words)}" if variable != "BASH_ENV" else command],
        env={**environment, variable: value.format(**words)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=directory,
        timeout=30,
        check=False,
        start_new_session=True,
    )
    return mark.stat().st_size > 0 or beside.stat().st_size > before


@pytest.mark.parametrize("name", ROWS)
def test_a_variable_that_a_tool_obeys(accomplice, canary, place, library, name):
    variable, value, command = ROWS[name]
    outside = place / "outside"
    outside.mkdir()
    if not obeyed_outside(name, outside, library):
        pytest.skip(f"{name}: not installed, or the tool no longer obeys {variable}")
    root = place / "root"
    root.mkdir()
    words = lay(root / "trap", "/var/lib/cntr/loot", "/var/lib/cntr/trap", library)
    environment = {"HOME": "/", variable: value.format(**words)}
    with kit.hostile(place, accomplice, root=root, environment=environment) as container:
        line = command.format(**words)
        done = kit.attach(container, "mount", command=["/bin/bash", "-c", line], timeout=60, env={"TERM": "dumb"})
        assert done.returncode != 125, done
        assert container.proofs(canary.secret) == [], done


def test_all_of_them_at_once(accomplice, canary, place, transport, library):
    """One container that has every variable of the table, and every tool of it run in one session."""
    root = place / "root"
    root.mkdir()
    words = lay(root / "trap", "/var/lib/cntr/loot", "/var/lib/cntr/trap", library)
    environment = {variable: value.format(**words) for variable, value, _ in ROWS.values()}
    with kit.hostile(place, accomplice, root=root, environment=environment) as container:
        done = kit.attach(container, transport, command=["/usr/bin/env", "-0"])
        assert done.returncode == 0, done
        assert "/var/lib/cntr/trap" not in done.stdout
        script = "bash -c true; python3 -c pass; perl -e 1; git trap; make -f /dev/null; dash -i; man ls; vim -es -c q; tar cf /dev/null /etc/hostname"
        kit.attach(container, transport, command=["/bin/bash", "-ic", script], timeout=60)
        assert container.proofs(canary.secret) == []


def test_no_variable_of_the_containers_comes_in(accomplice, canary, place, transport):
    """Whatever the name: unknown ones, lower case, locale and terminal, proxy, cntr's own."""
    token = secrets.token_hex(8)
    names = [f"X{secrets.token_hex(4).upper()}" for _ in range(20)]
    names += "http_proxy HTTPS_PROXY LC_ALL LANG LANGUAGE LC_MESSAGES TZ DISPLAY COLUMNS LINES TMOUT HISTSIZE COLORTERM EDITOR USER MAIL".split()
    names += "CNTR_SERVICE CNTR_TARGET CNTR_BASE_DIR CNTR_DEBUG TERMINFO_DIRS PATH HOME SHELL LOGNAME PWD OLDPWD TMPDIR TERM debian_chroot".split()
    with kit.hostile(place, accomplice, environment=dict.fromkeys(names, f"/{token}")) as container:
        for flags in ([], ["--user", "1000"], ["--privileged"]):
            done = kit.attach(container, transport, *flags, command=["/usr/bin/env"])
            assert done.returncode == 0, done
            assert token not in done.stdout, [line for line in done.stdout.splitlines() if token in line]


def test_the_containers_variables_are_to_be_had_by_name(accomplice, canary, place, transport):
    """What an application has is what one debugs: it can be seen, and `-e NAME=` says what one wants."""
    with kit.hostile(place, accomplice, environment={"DATABASE_URL": "postgres://db/x"}) as container:
        assert (
            kit.in_session(container, transport, "tr '\\0' '\\n' </proc/1/environ | grep DATABASE_URL").strip()
            == "DATABASE_URL=postgres://db/x"
        )


HUGE = {
    "200 KB": {"BIG": "x" * 130_000},
    "many": {f"V{n}": "y" * 100 for n in range(9000)},
    "long names": {f"N{'n' * 1000}{n}": "1" for n in range(300)},
    "odd names": {"with space": "1", "line\nbreak": "1", "\x1b[31m": "1", "a-b": "1", "1": "1", "\udcff": "\udcfe"},
}


@pytest.mark.parametrize("kind", HUGE)
def test_an_environment_that_would_stop_every_attach(accomplice, canary, place, transport, kind):
    """E2BIG is the kernel's answer to a variable of 128 KiB, or to more than a quarter of the stack."""
    with kit.hostile(place, accomplice, environment=HUGE[kind]) as container:
        assert kit.in_session(container, transport, "echo here", "-e", "MINE=1").startswith("here\n")
        shown = run("inspect", str(container.pid))
        assert shown.returncode == 0
        assert "\x1b" not in shown.stdout


def test_an_environment_overwritten_by_its_process(accomplice, canary, place, transport):
    """/proc/PID/environ is the process's own memory: it may hold anything by now (setproctitle)."""
    text = "\0".join(["LD_PRELOAD=/x", "=", "novalue", "PATH=/evil", "A" * 4000, "\x1b]0;t\x07=1"])
    with kit.hostile(place, accomplice, environment={"FILLER": text.replace("\0", "\n")}) as container:
        assert kit.in_session(container, transport, "echo here").startswith("here\n")


@pytest.mark.parametrize("path", [".:{}", ":{}", "bin:{}", "{}:", "../bin:./:{}"])
def test_the_callers_path_leads_to_no_program_of_the_containers(accomplice, canary, place, transport, path):
    """A PATH with "." or an empty word in it means the directory that one is in: below the base directory, the container's."""
    with kit.hostile(place, accomplice) as container:
        for name in ("/id", "/bin/id", "/cntr-trap"):
            (container.root / name[1:]).unlink(missing_ok=True)
            shutil.copy(accomplice, container.write(name, ""))
        script = "cd /var/lib/cntr; id -u; cntr-trap run; cd bin; id -u; cd ../etc; id -u; true"
        shown = kit.in_session(container, transport, script, env={"PATH": path.format("/usr/bin:/bin")})
        assert [line for line in shown.splitlines() if "trap" not in line] == ["0"] * 3, shown


def test_a_directory_of_the_containers_that_one_works_in(accomplice, canary, place, transport):
    """Where the user has gone, tools look for what they run: modules of Python, hooks and programs of a repository's configuration."""
    kit.need("git", "gdb")
    loud = f"echo {kit.PROOF}"
    with kit.hostile(place, accomplice) as container:
        for name in ("json.py", "sitecustomize.py", "readline.py", "encodings/__init__.py", "gdb.py"):
            container.write(f"/evil/{name}", f"print({kit.PROOF!r})\n", 0o644)
        container.write("/evil/.gdbinit", f"shell {loud}\n", 0o644)
        for name in (".vimrc", ".exrc", ".bashrc", ".profile", ".inputrc", ".lessfilter"):
            container.write(f"/evil/{name}", f"{loud}\n")
        keys = "".join(f"{key} = {loud}; false\n" for key in ("fsmonitor", "pager", "editor", "sshCommand", "askPass"))
        container.write(
            "/evil/.git/config", f"[core]\nrepositoryformatversion = 0\nhooksPath = /var/lib/cntr/evil\n{keys}", 0o644
        )
        container.write("/evil/.git/HEAD", "ref: refs/heads/m\n", 0o644)
        for name in ("objects", "refs"):
            container.write(f"/evil/.git/{name}/x", "")
        container.write("/evil/post-index-change", f"#!/bin/sh\n{loud} >&2\n")
        lines = (
            "git status; git diff; git log; git ls-files; git fetch; python3 -c 'import json, readline'; echo 1 | python3 -i; "
            "echo 'import json' | python3 -; gdb -batch -ex 'python import json'; bash -ic true; ls; true"
        )
        shown = kit.in_session(container, transport, f"cd /var/lib/cntr/evil; ( {lines} ) </dev/null", timeout=60)
        assert kit.PROOF not in shown, shown
        assert "dubious ownership" in shown, "git names the directory that it does not trust, and the remedy"
        undone = kit.in_session(
            container, transport, "cd /var/lib/cntr/evil; unset GIT_TEST_ASSUME_DIFFERENT_OWNER; git status"
        )
        assert kit.PROOF in undone or "Untracked" in undone, "without the variable the attack works"
        shared = place / "shared"
        subprocess.run(["git", "init", "-q", shared], check=True)
        assert "No commits yet" in kit.in_session(
            container, transport, f"cd {shared}; git status", "--share", str(shared)
        )
