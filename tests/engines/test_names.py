"""Names: hostile, ambiguous and unknown ones; targets that change during the lookup; third-party engines."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from cntr import engines
from cntr.attach.target import Target
from cntr.engines import asking, containers_storage, evidence, listing, lxc, registry, runc, unixhttp
from cntr.errors import AmbiguousTarget, CntrError, TargetNotFound
from cntr.images import targets
from cntr.linux import procfs
from testkit.waiting import wait_until

HOSTILE = [
    *("", "\0", "a\0b", "\n", "a\nb", "../../etc/passwd", "..", ".", "/", "/etc", "./x", "a/../../b"),
    *(
        "-h",
        "--help",
        "--root=/",
        "-v/:/host",
        "x" * 10_000,
        "\udcff\udcfe",
        "\x1b]0;owned\x07",
        "\x1b[31mred",
        "é\u202e",
    ),
    *(
        "%2e%2e",
        "%00",
        "a b",
        "a;id",
        "$(id)",
        "`id`",
        "*",
        "?",
        "[a]",
        "{}",
        ":",
        "::",
        "docker:",
        "docker:..",
        "podman:/",
    ),
    *("pid:", "pid:-1", "pid:0", "pid:99999999999", "pid:1e3", "pid: 1", "pid:١", "unit:", "unit:../x", "unit:/"),
    *("command:", "k8s:../../x", "lxc:../x", "nspawn:../x", "runc:../x", "crun:..", "rkt:..", "containerd:../../x"),
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:24])
def test_a_hostile_name_is_not_found_and_never_raw(name):
    begun = time.monotonic()
    with pytest.raises(CntrError) as caught:
        engines.resolve(name)
    shown = caught.value.message + caught.value.hint
    assert shown.isprintable(), ascii(shown)
    assert len(shown) < 3000
    shown.encode()  # no lone surrogates
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("name", ["../../etc", "..", "a/b", "", "x" * 300, "a\0b"])
def test_no_name_leaves_its_directory(tmp_path, monkeypatch, name):
    root = tmp_path / "runc"
    (tmp_path / "etc").mkdir()
    root.mkdir()
    opened = []
    monkeypatch.setattr(runc.store, "load", lambda path, **_: opened.append(path) or {})
    assert runc.search([(str(root), 0)], name, lambda where, id, owner: opened.append(id)) == []
    assert opened == []


def test_a_name_in_a_url_is_one_component():
    assert unixhttp.quote("a/../b?c#d\n\udcff%") == "a%2F..%2Fb%3Fc%23d%0A%FF%25"


def test_every_engine_survives_every_name():
    """For any name, modules raise nothing but Refused."""
    for name in HOSTILE[1:]:
        for method in ("find", "find_by_process"):
            for answer in asking.ask(list(registry.REGISTRY), name, time.monotonic() + 5, method):
                assert "unreadable state" not in answer.refused, (answer.entry.name, ascii(name), answer.refused)


def test_an_unknown_name_answers_within_a_second_and_says_who_was_asked(runc, monkeypatch):
    runc.settings and monkeypatch.setenv(*next(iter(runc.settings.items())))
    begun = time.monotonic()
    with pytest.raises(
        TargetNotFound, match=r"no running container of that name \(asked: .*runc.*not on this machine"
    ) as caught:
        engines.resolve("no-such-container")
    assert time.monotonic() - begun < 1
    assert "cntr ps" in caught.value.hint


def test_a_daemon_that_does_not_answer_is_late_on_each_python(tmp_path):
    """Before 3.10 a socket's timeout was no TimeoutError, and a hanging daemon hid other engines' containers."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        stream = unixhttp.connect(path, time.monotonic() + 5)
        with pytest.raises(TimeoutError, match=r"^timed out$"):
            unixhttp.get(stream, "/", time.monotonic() + 0.01)
        stream.close()


def test_a_hanging_engine_is_not_waited_for(tmp_path, monkeypatch, runc):
    """A daemon accepts and never answers. The other engines' containers are found nevertheless."""
    import socket

    with socket.socket(socket.AF_UNIX) as listener, runc.container() as container:
        listener.bind(f"{tmp_path}/d.sock")
        listener.listen()
        container.use(monkeypatch)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/d.sock")
        begun = time.monotonic()
        assert engines.resolve(container.name).pid == container.pid
        with pytest.raises(TargetNotFound, match=r"docker \(") as caught:
            engines.resolve("no-such-container")
        assert "named: docker:no-such-container" in caught.value.hint
        assert time.monotonic() - begun < 6, "0.8 s, and 2 more for a name that nobody else knows; on a loaded machine"


def test_a_name_found_twice_lists_both(monkeypatch, runc, crun):
    with runc.container(name="twice") as first, crun.container(name="twice") as second:
        first.use(monkeypatch)
        second.use(monkeypatch)
        with pytest.raises(AmbiguousTarget) as caught:
            engines.resolve("twice")
        assert f"runc:twice (pid {first.pid}" in caught.value.message
        assert f"crun:twice (pid {second.pid}" in caught.value.message
        assert engines.resolve("crun:twice").pid == second.pid


def test_one_process_known_to_two_engines_is_one_container(monkeypatch, podman_rootless, podman):
    """Podman's containers are also crun's or runc's."""
    with podman.container() as container:
        container.use(monkeypatch)
        monkeypatch.setenv("CNTR_RUNC_ROOT", f"{podman.workspace.path}/oci")
        assert engines.resolve(container.id).engine == "podman"
        assert [found.pid for found in listing.running()[0]].count(container.pid) == 1


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *(
            ("docker://3f2a", "docker:3f2a"),
            ("cri-o://3f2a", "cri-o:3f2a"),
            ("docker:/web", "docker:web"),
            ("/web", "web"),
        ),
        *((word, word) for word in ("web", "docker:web", "dir:/srv", "podman:/x", "/a/b", "/", "", "://x", "a/b://c")),
    ],
)
def test_a_name_as_other_tools_write_it(written, meant):
    assert engines.plain(written) == meant


def test_ids_and_names_as_kubectl_and_docker_print_them(docker, k8s, monkeypatch):
    with k8s.container() as pod, docker.container() as container:
        pod.use(monkeypatch)
        container.use(monkeypatch)
        name = pod.name.split("/")[1]
        for target in (f"containerd://{pod.id}", f"cri-o:{pod.id[:12]}", f"pod/{name}", f"k8s:pods/{name}"):
            assert engines.resolve(target).pid == pod.pid, target
        for target in (f"docker://{container.id}", f"/{container.name}", f"docker:/{container.name}"):
            assert engines.resolve(target).pid == container.pid, target
        container.rig.command("kill", container.name)
        wait_until(lambda: not os.path.exists(f"/proc/{container.pid}"), "the end of the container")
        held, stand_in = targets.resolve(f"docker://{container.id}")
        assert stand_in
        stand_in.close()
        assert held.name == container.name


def test_the_hint_says_how_to_name_an_image():
    with pytest.raises(TargetNotFound) as caught:
        engines.resolve("registry.example/no-such:1")
    assert caught.value.hint.startswith("an image is image:registry.example/no-such:1;")
    for name in ("runc:no-such", "lxd:no-such"):
        with pytest.raises(TargetNotFound) as caught:
            engines.resolve(name)
        assert "image:" not in caught.value.hint


def test_the_error_recognises_a_path(tmp_path):
    with pytest.raises(TargetNotFound) as caught:
        engines.resolve(str(tmp_path))
    assert caught.value.hint == f"a root directory is dir:{tmp_path}, an archive of an image archive:{tmp_path}"


def test_an_id_prefix_must_be_unique_and_an_exact_name_wins(docker, monkeypatch):
    with docker.container() as container:
        container.use(monkeypatch)
        assert (
            engines.resolve(container.id[:12]).pid == engines.resolve(f"docker:{container.id[:6]}").pid == container.pid
        )
        with docker.container(name=container.id[:5]) as other:
            assert engines.resolve(f"docker:{container.id[:5]}").pid == other.pid


def test_the_error_recognises_a_stopped_container(docker, podman, monkeypatch):
    for rig in (docker, podman):
        with rig.container() as container:
            container.use(monkeypatch)
            rig.command("kill", container.name)
            if rig is podman:
                rig.command("wait", container.name)
            with pytest.raises(TargetNotFound, match=f"{rig.engine} has {container.name}, but it is") as caught:
                engines.resolve(container.target)
            assert " start " in caught.value.hint


def test_a_name_that_is_nearly_one_is_answered_with_that(runc, monkeypatch):
    """In other letters, a part of it (a service of compose's, a pod), or misspelled."""
    service = f"db{os.getpid()}"
    with runc.container(name=f"Shop_{service}_1") as container, runc.container() as other:
        other.use(monkeypatch)
        for word in (container.name.lower(), service, service.upper(), f"Shpo_{service}_1", f"runc:{service}"):
            with pytest.raises(TargetNotFound) as caught:
                engines.resolve(word)
            assert caught.value.hint.startswith(f"did you mean runc:{container.name}? `cntr ps --all`"), word
        with pytest.raises(TargetNotFound) as caught:
            engines.resolve(f"{'x' * 40}{os.getpid()}")
        assert caught.value.hint.startswith("`cntr ps --all`")


@pytest.mark.parametrize("length", [5, 12])
def test_a_stopped_containers_name_goes_before_the_beginning_of_anothers_id(
    docker, podman, tmp_path, monkeypatch, length
):
    """Else `exec` would run in that other container, without a word."""
    for running, stopped in ((docker, podman), (podman, docker)):
        with running.container() as container:
            container.use(monkeypatch)
            for name, value in stopped.settings.items():
                monkeypatch.setenv(name, value)
            prefix = container.id[:length]
            assert engines.resolve(prefix).pid == container.pid
            stopped.command("create", "--name", prefix, "slim:1", "true")
            try:
                with pytest.raises(TargetNotFound, match=f"{stopped.engine} has {prefix}, but it is "):
                    engines.resolve(prefix)
                assert targets.find(prefix).label() == f"{stopped.engine}:{prefix}"
                assert engines.resolve(f"{running.engine}:{prefix}").pid == container.pid
            finally:
                stopped.command("rm", prefix)
            assert engines.resolve(prefix).pid == container.pid
            (tmp_path / prefix).mkdir()
            (tmp_path / prefix / "config").touch()
            monkeypatch.setenv("CNTR_LXC_ROOT", str(tmp_path))
            with pytest.raises(TargetNotFound, match=f"lxc has {prefix}, but it is not running"):
                engines.resolve(prefix)
            monkeypatch.delenv("CNTR_LXC_ROOT")


# --- a target that stops, restarts or is replaced between lookup and attach ------------------------------------------


def test_replaced_between_lookup_and_attach(runc, monkeypatch):
    with runc.container() as container, runc.container() as other:
        container.use(monkeypatch)
        found = engines.resolve(container.target)
        impostor = engines.Container("runc", found.name, other.pid, start_time=found.start_time)
        for check in (engines.verify, Target):
            with pytest.raises(TargetNotFound, match=r"another process|gone"):
                check(impostor)


def test_gone_between_lookup_and_attach(runc, monkeypatch):
    with runc.container() as container:
        found = engines.resolve(container.use(monkeypatch).target)
    for check in (engines.verify, Target):
        with pytest.raises(TargetNotFound, match="gone"):
            check(found)


def test_a_restarted_container_is_found_again(docker, monkeypatch):
    with docker.container() as container:
        container.use(monkeypatch)
        before = engines.resolve(container.target)
        docker.command("restart", "-t", "0", container.name)
        after = engines.resolve(container.target)
        assert (before.pid, before.start_time) != (after.pid, after.start_time)
        with pytest.raises(TargetNotFound):
            engines.verify(before)


def test_a_stale_state_file_is_no_container(tmp_path, monkeypatch):
    """The pid in it is another process now."""
    me = os.getpid()
    record = {"init_process_pid": me, "init_process_start": procfs.start_time(procfs.read(f"/proc/{me}/stat")) - 1}
    (tmp_path / "old").mkdir()
    (tmp_path / "old/state.json").write_text(json.dumps(record))
    monkeypatch.setenv("CNTR_RUNC_ROOT", str(tmp_path))
    with pytest.raises(TargetNotFound):
        engines.resolve("runc:old")
    record["init_process_start"] += 1
    (tmp_path / "old/state.json").write_text(json.dumps(record))
    assert engines.resolve("runc:old").pid == me


def test_a_users_files_count_only_for_the_users_own_processes():
    """A rootless user may write root's pid into a pid file, and root would attach to the wrong process."""
    assert evidence.belongs_to(os.getpid(), os.geteuid())
    assert not evidence.belongs_to(os.getpid(), 4242)
    assert not evidence.belongs_to(1, 4242)
    assert containers_storage.checked("podman", "web", os.getpid(), "ab" * 32, "", 4242) is None


def test_anybody_can_listen_on_an_lxc_socket(tmp_path):
    """A user's process that listens on the abstract name of a missing container may answer with any pid."""
    code = (
        "import os, socket, struct, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind('\\0/var/lib/lxc/forged/command'); s.listen(); print('up', flush=True)\n"
        "while True:\n c = s.accept()[0]; c.recv(64); c.send(struct.pack('=iiq', 0, 0, int(sys.argv[1]))); c.close()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(os.getpid())], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"up\n"
            assert ("/var/lib/lxc", "forged") in lxc.sockets()
            assert lxc.find("forged", time.monotonic() + 5) == []
        finally:
            process.kill()


# --- third parties ----------------------------------------------------------------------------------------------------

MODULE = '''
"""The example of docs/engines.md: an engine that keeps a pid file per container."""

import os

from cntr.engines import Container, Refused, evidence, store

TRACES = ("$PODS_DIR",)


def find(name, deadline):
    return [found for found in containers(deadline) if found.name == name]


def containers(deadline):
    root = os.environ["PODS_DIR"]
    pids = {name: int(store.read(f"{root}/{name}")) for name in store.listdir(root)}
    return [
        Container("pods", name, pid, start_time=start) for name, pid in pids.items() if (start := evidence.start_time(pid))
    ]
'''


def test_an_entry_point_adds_an_engine(tmp_path, runc):
    site, pods = tmp_path / "site", tmp_path / "pods"
    info = site / "pods_cntr-1.0.dist-info"
    info.mkdir(parents=True)
    pods.mkdir()
    (site / "pods_cntr.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pods-cntr\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[console_scripts]\nx = y:z\n\n[cntr.engines]\npods = pods_cntr\n")
    with runc.container() as container:
        (pods / "web").write_text(str(container.pid))
        env = {**os.environ, "PYTHONPATH": str(site), "PODS_DIR": str(pods)}
        for target in ("pods:web", "web"):
            done = subprocess.run(
                [sys.executable, "-m", "cntr", "attach", target, "--", "cat", "/var/lib/cntr/etc/motto"],
                **{"cwd": pathlib.Path(__file__).parents[2], "env": env, "capture_output": True, "text": True},
            )
            assert (done.returncode, done.stdout) == (0, "slim\n"), done.stderr
