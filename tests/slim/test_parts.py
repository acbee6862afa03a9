"""Parts of ``cntr slim``: the index of a hostile tree, the file of accesses, each rule, the writer."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cntr.errors import CntrError
from cntr.slim import accesses, compare, overlay, rules, writer
from cntr.slim.job import slim_name
from cntr.slim.rules import application, elf, lua, packages, scripts
from cntr.slim.runs.runtime import user_of
from cntr.slim.tree import Tree
from testkit.elf import greedy_program
from tests.slim import trees

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: creates devices and other users' files")


def complete(tree, used=None, settings=None, **choices):
    context = trees.context(tree, used, settings)
    for name, value in choices.items():
        setattr(context.choices, name, value)
    try:
        rules.complete(context)
    finally:
        tree.close()
    return context


# --- the tree ------------------------------------------------------------------------------------------------------------


def test_links_are_resolved_within_the_root(tmp_path):
    tree = trees.make(
        tmp_path,
        {
            "/usr/lib/libx.so": "x",
            "/lib": ("link", "usr/lib"),
            "/up": ("link", "../../../../etc/passwd"),
            "/abs": ("link", "/usr/lib/libx.so"),
            "/loop": ("link", "/loop"),
        },
    )
    try:
        assert tree.resolve("/lib/libx.so") == ("/usr/lib/libx.so", ["/lib"])
        assert tree.resolve("/abs")[0] == "/usr/lib/libx.so"
        assert tree.resolve("/up")[0] == ""  # /etc/passwd of the image, which has none
        assert tree.resolve("/loop")[0] == ""
        assert tree.resolve("/abs", follow=False)[0] == "/abs"
        assert tree.read("/up") == b""
        assert tree.read("/lib/libx.so") == b""  # through a link, so not in the index
    finally:
        tree.close()


def test_a_fifo_and_a_directory_that_became_a_link_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    tree = trees.make(tmp_path, {"/a/file": "inside"})
    os.rename(tmp_path / "a", tmp_path / "b")
    os.symlink("/etc", tmp_path / "a")
    (tmp_path / "b" / "passwd").touch()
    try:
        assert tree.read("/fifo") == b""
        assert tree.read("/a/file") == b""
    finally:
        tree.close()


def test_a_file_of_users_that_is_no_file_is_refused(tmp_path):
    """A runtime opens it, and opening a FIFO waits for the other end."""
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/group")
    tree = trees.make(tmp_path, {"/etc/passwd": ""})
    try:
        with pytest.raises(CntrError, match="/etc/group is no regular file"):
            user_of(tree, "0")
    finally:
        tree.close()


# --- accesses ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.dictionaries(st.binary(min_size=1).filter(lambda name: b"\0" not in name), st.sampled_from(accesses.KINDS)))
def test_what_was_used_is_read_as_it_was_written(tmp_path_factory, uses):
    place = str(tmp_path_factory.mktemp("accesses") / "file")
    found = accesses.Accesses()
    for name, kind in uses.items():
        found.add(kind, "/" + os.fsdecode(name))
    found.write(place)
    assert accesses.read(place).kinds == found.kinds


@pytest.mark.parametrize("line", ["open", "open relative", "opened /x", "/x"])
def test_a_file_that_holds_something_else_is_refused_with_its_line(tmp_path, line):
    (tmp_path / "uses").write_text(f"{accesses.HEADER}\nopen /ok\n{line}\n")
    with pytest.raises(CntrError, match="line 3"):
        accesses.read(str(tmp_path / "uses"))


# --- rules ---------------------------------------------------------------------------------------------------------------


def test_a_scripts_interpreter_and_what_env_finds(tmp_path):
    tree = trees.make(
        tmp_path,
        {"/bin/tool": "#!/usr/bin/env -S lang --fast\n", "/usr/bin/env": "#!", "/usr/bin/lang": "#!", "/bin/no": "#!"},
    )
    context = complete(tree, {"/bin/tool": "exec"})
    assert {"/usr/bin/env", "/usr/bin/lang"} <= context.kept.keys()
    assert "/bin/no" not in context.kept


def test_programs_that_a_start_script_names_in_a_branch_not_taken():
    words = scripts.named(
        'if [ "$1" = x ]; then exec gosu app prog --flag; fi\nA=$(helper 1) other | third # comment\n[ -f x ] && last'
    )
    assert {"gosu", "prog", "helper", "third", "last"} <= set(words)
    assert "comment" not in words


def test_source_and_bytecode_stay_together_and_an_applications_imports_are_found(tmp_path):
    library = "/usr/lib/python3.11"
    tree = trees.make(
        tmp_path,
        {
            "/app/main.py": "import os\n\ndef later():\n    from database import connect\n    import other.thing\n",
            "/app/database.py": "import _native\n",
            f"{library}/other/__init__.py": "x",
            f"{library}/other/thing.py": "x",
            f"{library}/other/__pycache__/thing.cpython-311.pyc": "x",
            f"{library}/unused.py": "x",
            f"{library}/lib-dynload/_native.cpython-311-x86_64-linux-gnu.so": "x",
        },
    )
    context = complete(tree, {"/app/main.py": "open"}, {"WorkingDir": "/app"})
    wanted = {f"{library}/other/thing.py", f"{library}/other/__pycache__/thing.cpython-311.pyc", "/app/database.py"}
    assert wanted <= context.kept.keys()
    assert f"{library}/lib-dynload/_native.cpython-311-x86_64-linux-gnu.so" in context.kept
    assert f"{library}/unused.py" not in context.kept


def test_a_required_package_brings_its_dependencies(tmp_path):
    tree = trees.make(
        tmp_path,
        {
            "/app/server.js": "function late() { return require('one/sub') }\n",
            "/app/package.json": "{}",
            "/app/node_modules/one/package.json": '{"dependencies": {"two": "*"}}',
            "/app/node_modules/one/sub.js": "x",
            "/app/node_modules/two/package.json": "{}",
            "/app/node_modules/two/index.js": "x",
            "/usr/share/nodejs/three/index.js": "x",
        },
    )
    context = complete(tree, {"/app/server.js": "open"}, application=["/app/server.js"])
    wanted = {f"/app/{name}" for name in ("package.json", "node_modules/one/sub.js", "node_modules/two/index.js")}
    assert wanted <= context.kept.keys()
    assert "/usr/share/nodejs/three/index.js" not in context.kept


def test_a_directory_of_etc_stays_whole_if_one_of_its_files_is_used(tmp_path):
    """Such as a proxy's page templates or PAM's services: a later request decides which of them are read."""
    large = "x" * (1 << 20)
    files = {"/etc/proxy/pages/ok": "", "/etc/proxy/pages/error": "", "/etc/proxy/conf": "", "/etc/other": ""}
    tree = trees.make(
        tmp_path, {**files, "/etc/many/a": "", "/etc/many/b": large, "/etc/more": "", "/usr/x/a": "", "/usr/x/b": ""}
    )
    context = complete(
        tree, {"/etc/proxy/pages/ok": "open", "/etc/other": "open", "/etc/many/a": "open", "/usr/x/a": "open"}
    )
    assert "/etc/proxy/pages/error" in context.kept
    assert not {"/etc/proxy/conf", "/etc/many/b", "/etc/more", "/usr/x/b"} & context.kept.keys()


def test_a_servers_own_small_tools_stay(tmp_path):
    files = {f"/usr/local/bin/{name}": b"\x7fELF" for name in ("store-server", "store-cli", "other-tool", "sh")}
    tree = trees.make(tmp_path, {**files, "/usr/local/bin/store-check": b"\x7fELF" + bytes(2 << 20)})
    context = complete(tree, {}, {"Cmd": ["store-server"]})
    assert "/usr/local/bin/store-cli" in context.kept
    assert not {"/usr/local/bin/other-tool", "/usr/local/bin/store-check"} & context.kept.keys()


def test_what_ruby_and_perl_load_later(tmp_path):
    tree = trees.make(
        tmp_path,
        {
            "/app/app.rb": "server.mount('/x') { require 'json'; JSON }\n",
            "/usr/lib/ruby/3.1.0/json.rb": "require 'json/common'\n",
            "/usr/lib/ruby/3.1.0/json/common.rb": "x",
            "/usr/lib/ruby/3.1.0/csv.rb": "x",
            "/usr/lib/ruby/vendor_ruby/tilt.rb": "autoload :ERB, 'tilt/erb'\n",
            "/usr/lib/ruby/vendor_ruby/tilt/erb.rb": "require 'erb'\n",
            "/usr/lib/ruby/vendor_ruby/rubygems.rb": "x",
            "/usr/lib/ruby/vendor_ruby/rubygems/install.rb": "require 'csv'\n",
            "/usr/lib/ruby/3.1.0/erb.rb": "x",
            "/app/app.pl": "if (1) { require Digest::MD5; }\n",
            "/usr/lib/x86_64-linux-gnu/perl/5.36.0/Digest/MD5.pm": "x",
            "/usr/lib/x86_64-linux-gnu/perl/5.36.0/auto/Digest/MD5/MD5.so": "x",
            "/usr/share/perl5/Other.pm": "x",
        },
    )
    perl = "/usr/lib/x86_64-linux-gnu/perl/5.36.0"
    wanted = {"/usr/lib/ruby/3.1.0/json.rb", "/usr/lib/ruby/3.1.0/json/common.rb"}
    wanted |= {"/usr/lib/ruby/vendor_ruby/tilt/erb.rb", "/usr/lib/ruby/3.1.0/erb.rb"}
    wanted |= {f"{perl}/Digest/MD5.pm", f"{perl}/auto/Digest/MD5/MD5.so"}
    vendor = "/usr/lib/ruby/vendor_ruby"
    used = {"/app/app.rb": "open", f"{vendor}/tilt.rb": "open", f"{vendor}/rubygems.rb": "open"}
    context = complete(tree, used, {"WorkingDir": "/app"})
    assert wanted <= context.kept.keys()
    assert not {"/usr/lib/ruby/3.1.0/csv.rb", "/usr/share/perl5/Other.pm"} & context.kept.keys()


def test_what_is_beside_an_empty_file_of_etc_is_not_used(tmp_path):
    """Empty files are kept although unused, so a script beside one need not be a start script."""
    files = {
        "/etc/pam/empty": "",
        "/etc/pam/init": "#!/bin/sh\ncut -f1\n",
        "/bin/cut": b"\x7fELF",
        "/bin/app": "x",
        "/lib/ld-x": "x",
    }
    context = complete(trees.make(tmp_path, files), {"/bin/app": "exec"})
    assert "/etc/pam/empty" in context.kept
    assert not {"/etc/pam/init", "/bin/cut"} & context.kept.keys()
    context = complete(trees.scanned(tmp_path), {"/bin/app": "exec", "/etc/pam/empty": "open"})
    assert "/etc/pam/init" in context.kept
    assert "/bin/cut" not in context.kept


def test_a_tool_of_the_server_comes_with_what_it_starts_and_imports(tmp_path):
    """mosquitto_sub is in another package, rabbitmqctl is a shell script, supervisorctl a Python script."""
    library = "/usr/lib/python3/dist-packages"
    tree = trees.make(
        tmp_path,
        {
            "/usr/bin/server": b"\x7fELF",
            "/usr/bin/server_sub": b"\x7fELF",
            "/usr/bin/server-ctl": '#!/bin/sh\nexec /usr/lib/server/ctl "$@"\n',
            "/usr/lib/server/ctl": "#!/bin/sh\nexec helper\n",
            "/usr/bin/python3": b"\x7fELF",
            "/usr/bin/perl": b"\x7fELF",
            "/usr/bin/server-pl": "#!/usr/bin/perl\n",
            "/usr/bin/server-py": "#!/usr/bin/python3\n# 'server==1','console_scripts','server-py'\nimport entry_point\n",
            f"{library}/server-1.dist-info/entry_points.txt": "[console_scripts]\nserver-py = server.tool:main\n",
            f"{library}/server/__init__.py": "x",
            f"{library}/server/tool.py": "from . import (\n    first,  # one\n    second,\n)\n",
            f"{library}/server/first.py": "x",
            f"{library}/server/second.py": "x",
            f"{library}/server/third.py": "x",
        },
    )
    context = complete(tree, {"/usr/bin/server": "exec", "/usr/bin/python3": "exec"}, {"Cmd": ["server"]})
    wanted = {"/usr/bin/server_sub", "/usr/lib/server/ctl"}
    wanted |= {f"{library}/server/{name}.py" for name in ("tool", "first", "second")}
    assert wanted <= context.kept.keys()
    assert not {f"{library}/server/third.py", "/usr/bin/server-pl", "/usr/bin/perl"} & context.kept.keys()


def test_what_python_names_in_a_string(tmp_path):
    place = "/usr/local/lib/python3.11"
    files = {
        "/app/settings.py": "APPS = ['blog.admin', 'no.such']\nx = '€'.encode('cp1252')\n__import__('plug.%s' % name)\n",
        f"{place}/site-packages/blog/admin/__init__.py": "x",
        f"{place}/site-packages/blog/admin/apps.py": "x",
        f"{place}/site-packages/blog/admin/templates/page.html": "x",
        f"{place}/site-packages/blog/other.py": "x",
        f"{place}/site-packages/plug/__init__.py": "x",
        f"{place}/site-packages/plug/one.py": "import zoned\n",
        f"{place}/site-packages/used.py": "{'thread': 'used.thread', 'db': 'blog.other'}\n",
        f"{place}/zoned.py": "x",
        f"{place}/encodings/cp1252.py": "x",
        f"{place}/encodings/cp037.py": "x",
        f"{place}/site-packages/web/__init__.py": "kinds = {'thread': 'web.thread', 'db': 'blog.other'}\n",
        f"{place}/site-packages/web/thread.py": "x",
    }
    tree = trees.make(tmp_path, files)
    used = {"/app/settings.py": "open", f"{place}/site-packages/web/__init__.py": "open"}
    context = complete(tree, used, {"WorkingDir": "/app"})
    left = {f"{place}/{name}.py" for name in ("site-packages/blog/other", "site-packages/used", "encodings/cp037")}
    assert files.keys() - context.kept.keys() == left


def test_what_the_standard_library_imports_for_its_own_tests_is_left_out(tmp_path):
    place = "/usr/lib/python3.11"
    files = {
        "/app/a.py": "import pickle\n",
        f"{place}/pickle.py": "def _test():\n    import doctest\nimport copyreg\n",
        f"{place}/doctest.py": "x",
        f"{place}/copyreg.py": "x",
        f"{place}/encodings/__init__.py": "mod = __import__('encodings.' + name)\n",
        f"{place}/encodings/euc_jp.py": "x",
    }
    used = {"/app/a.py": "open", f"{place}/encodings/__init__.py": "open"}
    context = complete(trees.make(tmp_path, files), used, {"WorkingDir": "/app"})
    assert files.keys() - context.kept.keys() == {f"{place}/doctest.py", f"{place}/encodings/euc_jp.py"}
    context = complete(trees.make(tmp_path, {"/app/b.py": "import doctest\n"}), used, {"WorkingDir": "/app"})
    assert f"{place}/doctest.py" in context.kept


def test_what_code_starts_and_programs_call(tmp_path):
    program = b"\x7fELF"
    files = {f"/bin/{name}": program for name in ("sh", "convert", "gs", "jq", "awk", "git", "gone")}
    files |= {
        "/app/a.py": "subprocess.run(['convert', x])\nshutil.which('git')\nos.run('127.0.0.1')\n",
        "/app/b.js": "execSync('cat x | jq .a')\n",
        "/app/c.rb": "puts `awk 1`\n",
        "/app/node_modules/x/d.js": "execSync('gone')\n",
        "/app/e.php": '<?php shell_exec("gs -v");',
    }
    context = complete(trees.make(tmp_path, files), {}, {"WorkingDir": "/app"})
    assert files.keys() - context.kept.keys() == {"/bin/gone"}


def test_what_lua_requires(tmp_path):
    files = {
        "/etc/nginx/conf.d/app.conf": 'lua_package_path "/opt/lua/?.lua;;"; content_by_lua_block { require("app.late") }',
        "/opt/lua/app/late.lua": "local json = require 'cjson'\n",
        "/usr/lib/x86_64-linux-gnu/lua/5.1/cjson.so": ("link", "../../libcjson.so.0"),
        "/usr/lib/x86_64-linux-gnu/libcjson.so.0": "x",
        "/usr/share/lua/5.1/other.lua": "x",
    }
    context = complete(trees.make(tmp_path, files), {"/etc/nginx/conf.d/app.conf": "open"})
    assert files.keys() - context.kept.keys() == {"/usr/share/lua/5.1/other.lua"}


def test_what_perl_loads_by_a_name_it_is_given(tmp_path):
    share = "/usr/share/perl/5.36.0"
    files = {
        "/app/app.pl": "use parent -norequire, 'None'; use base qw(One::Two); require charnames; require DBI;\n",
        "/usr/share/perl5/One/Two.pm": "x",
        "/usr/share/perl5/DBI.pm": "x",
        "/usr/share/perl5/DBD/Some.pm": "use Template;\n",
        "/usr/share/perl5/Template.pm": "x",
        "/usr/share/perl5/Template/Plugin.pm": "x",
        f"{share}/charnames.pm": "use _charnames ();\n",
        f"{share}/_charnames.pm": "x",
        f"{share}/unicore/Name.pl": "x",
        f"{share}/Encode/JP.pm": "x",
    }
    context = complete(trees.make(tmp_path, files), {"/app/app.pl": "open"}, {"WorkingDir": "/app"})
    assert files.keys() - context.kept.keys() == {f"{share}/Encode/JP.pm"}


@pytest.mark.parametrize(
    ("configured", "kept"),
    [
        ({"WorkingDir": "/code"}, {"/code/late.txt"}),
        ({"Cmd": ["run", "/code/main"]}, {"/code/late.txt"}),
        ({"Cmd": ["serve", "--dir=/srv"]}, {"/srv/site/page"}),
        ({"Cmd": ["/usr/bin/app"], "WorkingDir": "/usr/bin"}, set()),
        ({"Cmd": ["/usr/bin/app", "/"]}, set()),
    ],
)
def test_what_is_the_application(tmp_path, configured, kept):
    files = {
        "/code/main": "x",
        "/code/late.txt": "x",
        "/srv/site/page": "x",
        "/usr/bin/app": "x",
        "/usr/bin/other": "x",
    }
    context = complete(trees.make(tmp_path, files), {}, configured)
    assert {path for path in context.kept if path in files} - {"/code/main", "/usr/bin/app"} == kept


@pytest.mark.parametrize(
    ("history", "names", "found"),
    [
        (["COPY /bin/app /app", "COPY /etc/ssl /etc/ssl"], [["/app"], ["/etc/ssl/a"]], {"/app", "/etc/ssl/a"}),
        (["/bin/sh -c #(nop) ADD file:1 in / ", "COPY . /x # buildkit"], [["/app"], ["/etc/ssl/a"]], {"/etc/ssl/a"}),
        (
            ["ADD root.tar.gz / # buildkit", "RUN x", "ADD app.tar / "],
            [["/app"], ["/x"], ["/etc/ssl/a"]],
            {"/etc/ssl/a"},
        ),
        (["COPY /rootfs / # buildkit"], [["/app", "/etc/os-release"]], set()),
    ],
    ids=["from scratch", "on a base", "an archive each", "a whole system"],
)
def test_the_layers_that_are_the_application(tmp_path, history, names, found):
    tree = trees.make(tmp_path, {"/app": "", "/x": "", "/etc/ssl/a": "", "/etc/os-release": ""})
    try:
        assert application.of_layers(history, names, tree) == found
    finally:
        tree.close()


def test_of_a_used_site_everything_stays(tmp_path):
    files = {"/var/www/html/index.php": "x", "/var/www/html/late.css": "x", "/var/www/other/page": "x"}
    context = complete(trees.make(tmp_path, files), {"/var/www/html/index.php": "open"})
    assert {path for path in context.kept if path in files} == {"/var/www/html/index.php", "/var/www/html/late.css"}


@as_root
def test_a_hundred_layers_are_merged(tmp_path):
    layers = []
    for number in range(130):
        layer = tmp_path / f"a-layer-with-a-long-name-so-that-mount-options-of-a-page-do-not-hold-them-{number}"
        layer.mkdir()
        (layer / f"file-{number}").touch()
        (layer / "same").write_text(str(number))
        layers.append(str(layer))
    tree = Tree(overlay.merged(layers)).scan()
    try:
        assert len(tree.entries) == 132
        assert tree.read("/same") == b"129"
    finally:
        tree.close()
    assert {path.name for path in tmp_path.iterdir()} == {os.path.basename(layer) for layer in layers}


def test_every_directory_stays_and_links_follow_what_is_kept(tmp_path):
    tree = trees.make(
        tmp_path,
        {
            "/usr/bin/app": "x",
            "/usr/bin/gone": "x",
            "/bin": ("link", "usr/bin"),
            "/usr/bin/alias": ("link", "app"),
            "/usr/bin/other": ("link", "gone"),
            "/log": ("link", "/dev/stdout"),
            "/var/empty": None,
            "/etc/marker": "",
        },
    )
    context = complete(tree, {"/usr/bin/app": "exec"})
    assert {"/usr", "/usr/bin", "/var/empty", "/bin", "/usr/bin/alias", "/log"} <= context.kept.keys()
    assert not {"/usr/bin/gone", "/usr/bin/other"} & context.kept.keys()


def test_keep_and_drop(tmp_path):
    files = {"/a/one": "1", "/a/b/two": "2", "/c/three": "3"}
    context = complete(trees.make(tmp_path, files), {"/c/three": "open"}, keep=["/a"], drop=["/a/b/*"])
    assert {path for path in context.kept if path in files} == {"/a/one", "/c/three"}
    for option in ("keep", "drop"):
        with pytest.raises(CntrError, match="nothing in the image matches"):
            complete(trees.scanned(tmp_path), {}, **{option: ["/no/*"]})


@pytest.mark.parametrize(
    ("used", "variables", "all_zones"),
    [
        ({"/usr/bin/app": "exec"}, [], False),
        ({"/usr/bin/app": "exec", "/usr/share/zoneinfo/Etc/UTC": "open"}, [], False),
        ({"/usr/bin/app": "exec", "/usr/share/zoneinfo/Asia/Tokyo": "open"}, [], True),
        ({"/usr/lib/php/libphp8.2.so": "open"}, [], True),
        ({"/usr/bin/app": "exec"}, ["TZ=Europe/Berlin"], True),
    ],
)
def test_time_zones_where_they_are_named(tmp_path, used, variables, all_zones):
    zones = {
        f"/usr/share/zoneinfo/{name}": "zone" for name in ("Etc/UTC", "Europe/Berlin", "Asia/Tokyo", "right/Asia/Tokyo")
    }
    files = {"/usr/bin/app": "x", "/usr/lib/php/libphp8.2.so": "x", "/lib/ld-x": "x", **zones}
    context = complete(trees.make(tmp_path, files), used, {"Env": variables})
    assert ("/usr/share/zoneinfo/Europe/Berlin" in context.kept) == all_zones
    assert "/usr/share/zoneinfo/right/Asia/Tokyo" not in context.kept


def test_the_package_database_is_filtered_to_what_is_there(tmp_path):
    status = "\n\n".join(f"Package: {name}\nStatus: install ok installed\nVersion: 1\n" for name in ("one", "two"))
    files = {"/bin/one": "x", "/bin/two": "x", packages.STATUS: status}
    files |= {f"/var/lib/dpkg/info/{name}.list": f"/bin\n/bin/{name}\n" for name in ("one", "two")}
    context = complete(trees.make(tmp_path, files), {"/bin/one": "exec"})
    assert b"Package: one" in context.replaced[packages.STATUS]
    assert b"Package: two" not in context.replaced[packages.STATUS]


def test_the_names_given_to_dlopen():
    data = b"\0libreal.so.6\0 say libnot.so.1 in a text\0libx.so\0x/libpath.so.2\0libc++.so.1.0\0"
    assert elf.loaded_by_name(data) == {"libreal.so.6", "libc++.so.1.0"}


@pytest.mark.parametrize("offset", [-1, 2, 1 << 63, 1 << 80])
def test_what_a_file_says_of_its_own_size_is_not_believed(tmp_path, offset):
    tree = trees.make(tmp_path, {"/x": "ab"})
    try:
        assert tree.read("/x", 1 << 80, 1) == b"b"
        assert tree.read("/x", 1, offset) == tree.read("/x", -1) == b""
    finally:
        tree.close()


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_after_an_elf_head_are_an_error(tmp_path_factory, rest):
    root = tmp_path_factory.mktemp("elf")
    tree = trees.make(root, {"/x": b"\x7fELF\x02\x01" + bytes(10) + rest})
    try:
        elf.parse(tree, "/x")
    finally:
        tree.close()


def test_a_small_file_that_needs_a_million_libraries_costs_little(tmp_path):
    tree = trees.make(tmp_path, {"/x": greedy_program(headers=1, needed=30000)})
    try:
        found = elf.parse(tree, "/x")
    finally:
        tree.close()
    assert found is not None
    assert (len(found.needed), len(found.paths)) == (1024, 256)
    assert max(map(len, [*found.needed, *found.paths])) == 4096


def test_configurations_that_include_each_other_are_read_once(tmp_path):
    files = {
        f"/etc/ld.so.conf.d/{number}.conf": f"include /etc/ld.so.conf.d/*.conf\n/x{number}\n" for number in range(64)
    }
    tree = trees.make(tmp_path, {**files, "/etc/ld.so.conf": "include /etc/ld.so.conf.d/*.conf\n" * 9})
    try:
        assert len(elf._configured(tree, "/etc/ld.so.conf", 0, set())) == 64
    finally:
        tree.close()


def test_what_the_linker_needs_of_a_real_program(tmp_path):
    tree = trees.make(tmp_path, {"/true": pathlib.Path("/bin/true").resolve().read_bytes()})
    try:
        found = elf.parse(tree, "/true")
    finally:
        tree.close()
    assert found is not None
    assert "libc.so.6" in found.needed
    assert found.interpreter.startswith("/lib")


# --- writing -------------------------------------------------------------------------------------------------------------


def torture(root: pathlib.Path) -> None:
    """One of everything that a tar can hold."""
    (root / ("long" * 50)).mkdir()
    (root / ("long" * 50) / ("name" * 50)).write_text("long")
    pathlib.Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe not utf-8")).write_text("bytes")
    (root / "suid").write_text("x")
    os.chown(root / "suid", 4_000_000, 5_000_000)
    (root / "suid").chmod(0o6755)
    os.setxattr(root / "suid", "user.note", b"\x00\xff\n")
    subprocess.run(["setcap", "cap_net_raw+ep", root / "suid"], check=False)
    os.link(root / "suid", root / "zz-same")
    with open(root / "sparse", "wb") as stream:
        stream.truncate(1 << 30)
        stream.seek(1 << 29)
        stream.write(b"middle")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    os.symlink("no\nwhere", root / "dangling")
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    os.chown(root / "sticky", 1000, 1000)
    for path in root.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000), follow_symlinks=False)


def archived(tree, place: pathlib.Path, compression: str = "gzip") -> writer.Archive:
    place.mkdir(exist_ok=True)
    layer = writer.layer(tree, tree.entries, {}, str(place), compression)
    return writer.Archive(str(place), {"architecture": "amd64", "os": "linux", "config": {}}, [layer], compression)


@as_root
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_everything_comes_back_as_it_was(tmp_path, compression):
    root, back = tmp_path / "root", tmp_path / "back"
    root.mkdir()
    back.mkdir()
    torture(root)
    tree = trees.scanned(root)
    one, two = archived(tree, tmp_path / "1", compression), archived(tree, tmp_path / "2", compression)
    assert (one.id, one.manifest.digest) == (two.id, two.manifest.digest)
    path = tmp_path / "image.tar"
    with open(path, "wb") as stream:
        one.write(stream, "x:1")
    assert path.stat().st_size < 1 << 21  # without the hole
    compare.unpack_over(f"archive:{path}", str(back))
    other = trees.scanned(back)
    try:
        assert [str(one) for one in compare.trees(tree, other)] == []
        assert (back / "sparse").stat().st_blocks < 1 << 12
    finally:
        tree.close()
        other.close()


def test_a_comparison_sees_each_kind_of_difference(tmp_path):
    first = trees.make(
        tmp_path / "1", {"/same": "x", "/gone": "x", "/text": "one", "/mode": "x", "/link": ("link", "a")}
    )
    second = trees.make(
        tmp_path / "2", {"/same": "x", "/new": "x", "/text": "two", "/mode": "x", "/link": ("link", "b")}
    )
    for name in ("same", "text", "mode", "link"):
        for side in ("1", "2"):
            os.utime(tmp_path / side / name, (0, 0), follow_symlinks=False)
    (tmp_path / "2/mode").chmod(0o600)
    first.close()
    second.close()
    first, second = trees.scanned(tmp_path / "1"), trees.scanned(tmp_path / "2")
    try:
        found = {(one.sign, one.path, one.what) for one in compare.trees(first, second)}
    finally:
        first.close()
        second.close()
    assert found == {
        ("-", "/gone", ""), ("+", "/new", ""), ("~", "/text", "content"), ("~", "/mode", "mode"), ("~", "/link", "target")
    }  # fmt: skip


def test_a_socket_is_left_out(tmp_path):
    with socket.socket(socket.AF_UNIX) as stream:
        stream.bind(str(tmp_path / "s"))
        tree = trees.scanned(tmp_path)
    try:
        archived(tree, tmp_path.parent / f"{tmp_path.name}-blobs")
    finally:
        tree.close()


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("nginx:1.25", "nginx:1.25-slim"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest-slim"),
        ("a/b@sha256:0", "a/b:latest-slim"),
        ("f" * 64, "slim:latest"),
    ],
)
def test_what_a_slim_image_is_called(reference, name):
    assert slim_name(reference) == name


def test_a_short_reference_is_docker_hubs():
    assert writer.full("nginx") == "docker.io/library/nginx:latest"
    assert writer.full("me/app:2") == "docker.io/me/app:2"
    assert writer.full("localhost/app:2") == "localhost/app:2"
    assert writer.full("r.example:5000/app") == "r.example:5000/app:latest"


def test_a_long_word_is_searched_once():
    """With a search that is quadratic in the length of a word, a megabyte of one letter would take an hour."""
    assert lua._PATH.findall("a" * (1 << 20)) == []
    assert lua._PATH.findall("x;/usr/share/lua/5.1/?.lua;/opt/?/init.lua") == [
        "/usr/share/lua/5.1/?.lua",
        "/opt/?/init.lua",
    ]
