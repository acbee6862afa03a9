"""What an image needs later than its start: other branches, jobs, logins, data of another kind. Each was lost once."""

from __future__ import annotations

import pytest

from cntr.slim import rules
from cntr.slim.rules import scripts
from tests.slim import trees

PROGRAM = "#!"


def kept(tmp_path, files: dict, used: dict | None = None, settings: dict | None = None) -> set[str]:
    """The files that are kept; all that USED does not name are of the system, not of the application."""
    tree = trees.make(tmp_path, files)
    context = trees.context(tree, used, settings)
    try:
        rules.complete(context)
        return set(context.kept)
    finally:
        tree.close()


@pytest.mark.parametrize(
    ("script", "others"),
    [
        (". /usr/lib/app/shared.sh\n", {"/usr/lib/app/shared.sh": "later() { tool --flag; }\n"}),
        ('. "$(dirname "$0")/shared.sh"\n', {"/usr/sbin/shared.sh": "tool\n"}),
        ("source ${0%/*}/../lib/shared.sh\n", {"/usr/lib/shared.sh": "tool\n"}),
        ('HERE=$(cd "$(dirname "$0")" && pwd)\n. "$HERE/shared.sh"\n', {"/usr/sbin/shared.sh": "tool\n"}),
        ("LIB=/usr/lib/app\nfor x in 1; do . $LIB/shared.sh; done\n", {"/usr/lib/app/shared.sh": "tool\n"}),
        ("if false; then . ${LIB:-/usr/lib/app}/shared.sh; fi\n", {"/usr/lib/app/shared.sh": "tool\n"}),
        (". shared.sh\n", {"/usr/bin/shared.sh": "tool\n"}),
        (". $HOMELIB/shared.sh\n", {"/usr/lib/home/shared.sh": "tool\n"}),
        ("[ $1 = x ] && exec /usr/lib/app/other\n", {"/usr/lib/app/other": "#!/bin/sh\ntool\n"}),
        (
            "case $1 in x) other ;; esac\n",
            {"/usr/bin/other": "#!/usr/bin/env bash\n. /usr/lib/deep\n", "/usr/lib/deep": "tool\n"},
        ),
        ("BIN=/usr/bin\n$BIN/tool\n", {}),
        ("nice sh -e /usr/lib/app/plain\n", {"/usr/lib/app/plain": "tool\n"}),
    ],
)
def test_what_a_start_script_sources_or_starts_in_another_branch(tmp_path, script, others):
    files = {"/usr/sbin/start": f"#!/bin/sh\n{script}", "/usr/bin/tool": PROGRAM, "/usr/bin/not": PROGRAM, **others}
    settings = {"Env": ["PATH=/usr/bin", "HOMELIB=/usr/lib/home"]}
    found = kept(tmp_path, files, {"/usr/sbin/start": "exec"}, settings)
    assert {"/usr/bin/tool", *others} <= found
    assert "/usr/bin/not" not in found


@pytest.mark.parametrize(
    "settings",
    [
        {"Cmd": ["/bin/sh", "-c", "if [ -e /maintenance ]; then tool; else server; fi"]},
        {"Entrypoint": ["tini", "--", "bash", "-ec"], "Cmd": ["server & tool"]},
        {"Healthcheck": {"Test": ["CMD-SHELL", "test -e /x || tool"]}},
        {"Entrypoint": ["/bin/sh"], "Cmd": ["plain"], "WorkingDir": "/usr/bin"},
        {"Healthcheck": {"Test": ["CMD", "sh", "-c", "test -e /x && /usr/bin/tool"]}},
    ],
)
def test_a_command_line_of_the_configuration_that_a_shell_runs(tmp_path, settings):
    files = dict.fromkeys(("/usr/bin/tool", "/usr/bin/server", "/bin/sh", "/usr/bin/tini", "/usr/bin/bash"), PROGRAM)
    files["/usr/bin/plain"] = "[ -e /x ] && tool\n"
    assert "/usr/bin/tool" in kept(tmp_path, files, settings={**settings, "Env": ["PATH=/usr/bin:/bin"]})


def test_scripts_that_lead_back_to_each_other_and_values_that_grow_end(tmp_path):
    files = {
        "/bin/a": "#!/bin/sh\n. /bin/b\n",
        "/bin/b": "#!/bin/sh\n. /bin/a\n/usr/bin/tool\n",
        "/usr/bin/tool": PROGRAM,
    }
    assert "/usr/bin/tool" in kept(tmp_path, files, {"/bin/a": "exec"})
    growing = "\n".join(["A=xxxxxxxxxx", *("A=$A$A$A$A$A$A$A$A",) * 1000])
    assert len(scripts.expanded(growing, "/", {})) < 1 << 21


def test_files_that_the_applications_texts_name(tmp_path):
    files = {
        "/app/main.py": "def later():\n    return open('/usr/share/dict/words'), os.listdir('/usr/share/rules.d')\n",
        "/app/settings.yaml": "geo: /usr/share/GeoIP/city.mmdb\nbase: /usr/share\nproc: /proc/self/maps\n",
        "/app/native": b"\x7fELF\x02\x01" + bytes(60) + b"\0/usr/share/native/data.bin\0",
        "/app/node_modules/x/index.js": "'/usr/share/foreign/file'",
        "/usr/share/dict/words": "a",
        "/usr/share/rules.d/one": "1",
        "/usr/share/GeoIP/city.mmdb": "1",
        "/usr/share/native/data.bin": "1",
        "/usr/share/foreign/file": "1",
        "/usr/share/other": "1",
    }
    found = kept(tmp_path, files, {"/app/main.py": "open"}, {"WorkingDir": "/app"})
    wanted = {
        "/usr/share/dict/words",
        "/usr/share/rules.d/one",
        "/usr/share/GeoIP/city.mmdb",
        "/usr/share/native/data.bin",
    }
    assert wanted <= found
    assert not {"/usr/share/foreign/file", "/usr/share/other"} & found


def test_programs_that_a_used_configuration_names(tmp_path):
    files = {
        "/etc/server/main.conf": "Subsystem sftp /usr/lib/server/sftp\n# /usr/lib/server/not\ndata /usr/share/big/data\n",
        "/etc/shells": "/usr/bin/zsh\n",
        "/etc/other.conf": "/usr/lib/server/other\n",
        **dict.fromkeys(
            ("/usr/lib/server/sftp", "/usr/lib/server/not", "/usr/lib/server/other", "/usr/bin/zsh"), PROGRAM
        ),
        "/usr/share/big/data": "1",
    }
    found = kept(tmp_path, files, {"/etc/server/main.conf": "open", "/etc/shells": "open"})
    assert "/usr/lib/server/sftp" in found
    assert not {"/usr/lib/server/not", "/usr/lib/server/other", "/usr/bin/zsh", "/usr/share/big/data"} & found


def test_jobs_of_cron_and_programs_of_a_supervisor(tmp_path):
    programs = (
        "/bin/sh",
        "/usr/bin/job",
        "/usr/bin/late",
        "/usr/bin/daily",
        "/usr/bin/run-parts",
        "/usr/bin/hourly",
        "/usr/bin/worker",
    )
    files = {
        **dict.fromkeys(programs, PROGRAM),
        "/usr/sbin/cron": PROGRAM,
        "/etc/crontab": "SHELL=/bin/sh\n17 *\t* * *\troot\tcd / && run-parts --report /etc/cron.hourly\n",
        "/etc/cron.d/app": "# * * * * * root no\n*/5 * * * * www-data [ -e /x ] && job | tee /log\n@reboot root late\n",
        "/var/spool/cron/crontabs/root": "0 3 * * 1-5 daily\n",
        "/etc/cron.hourly/app": "#!/bin/sh\nhourly\n",
        "/etc/supervisord.conf": "[program:late]\ncommand = worker --fast\nautostart=false\n",
    }
    used = {
        "/usr/sbin/cron": "exec",
        **{path: "open" for path in files if "cron" in path and path.startswith(("/etc", "/var"))},
    }
    used["/etc/supervisord.conf"] = "open"
    assert set(programs) | {"/etc/cron.hourly/app"} <= kept(tmp_path, files, used, {"Env": ["PATH=/usr/bin:/bin"]})


@pytest.mark.parametrize(
    ("used", "wanted"),
    [
        ("/usr/lib/x/libcrypto.so.3", "/usr/lib/x/ossl-modules/legacy.so"),
        ("/usr/lib/x/libMagickCore-6.Q16.so.6", "/usr/lib/x/ImageMagick-6.9.11/modules-Q16/coders/jpeg.so"),
        ("/usr/lib/x/libgdk_pixbuf-2.0.so.0.4200.10", "/usr/lib/x/gdk-pixbuf-2.0/2.10.0/loaders/gif.so"),
        ("/usr/lib/x/libtinfo.so.6.4", "/lib/terminfo/x/xterm-256color"),
        ("/usr/lib/x/libc.so.6", "/usr/lib/x/libnss_extrausers.so.2"),
        ("/usr/lib/x/libpam.so.0.85.1", "/usr/lib/x/security/pam_unix.so"),
        ("/usr/lib/x/libfontconfig.so.1", "/usr/share/fonts/one.ttf"),
        ("/usr/lib/python3.11/ctypes/util.py", "/sbin/ldconfig"),
        ("/usr/lib/python3.11/encodings/idna.py", "/usr/lib/python3.11/encodings/punycode.py"),
        ("/bin/tar", "/bin/gzip"),
        ("/usr/sbin/sshd", "/bin/zsh"),
        ("/usr/bin/server", "/etc/mime.types"),
    ],
)
def test_what_is_loaded_or_started_only_when_it_is_asked_for(tmp_path, used, wanted):
    """The other rows' files stay out: each is there for its own library or program."""
    files = {
        "/etc/nsswitch.conf": "passwd: files [NOTFOUND=continue] extrausers\n",
        "/etc/passwd": "root:x:0:0::/root:/bin/zsh\nnobody:x:1:1::/:/usr/sbin/nologin\n",
        "/etc/pam.d/sshd": "@include common-auth\n",
        "/etc/pam.d/common-auth": "auth [success=1 default=ignore] pam_unix.so nullok\n",
        "/usr/lib/ld-x": "x",
        **dict.fromkeys(
            ("/bin/tar", "/bin/gzip", "/usr/sbin/sshd", "/bin/zsh", "/sbin/ldconfig", "/usr/bin/server"), PROGRAM
        ),
        **dict.fromkeys(("/usr/lib/python3.11/encodings/idna.py",), "label.encode('punycode')"),
        **dict.fromkeys(("/etc/mime.types", "/lib/terminfo/x/xterm-256color", "/usr/share/fonts/one.ttf"), "x"),
        **dict.fromkeys(("/usr/lib/python3.11/ctypes/util.py", "/usr/lib/python3.11/encodings/punycode.py"), "x"),
        "/usr/lib/x/security/pam_unix.so": "x",
    }
    files.update({path: files.get(path, "x") for path in (used, wanted)})
    found = kept(tmp_path, files, {used: "exec" if files[used] == PROGRAM else "open"})
    assert wanted in found
    assert ("/bin/gzip" in found, "/bin/zsh" in found) == (used == "/bin/tar", used == "/usr/sbin/sshd")


RUBY, NATIVE = "/usr/lib/ruby/3.1.0", "/usr/lib/x86_64-linux-gnu/ruby/3.1.0"


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("main.rb", "require 'digest'\nDigest::SHA256\n", {f"{RUBY}/digest.rb", f"{NATIVE}/digest/sha2.so"}),
        ("main.rb", "def later = (require 'psych')\n", {f"{RUBY}/psych.rb", f"{RUBY}/psych/syntax_error.rb"}),
        ("main.rb", "text.unicode_normalize(:nfc)\n", {f"{RUBY}/unicode_normalize/normalize.rb"}),
        ("main.rb", "text.encode('Shift_JIS')\n", {f"{NATIVE}/enc/trans/japanese.so"}),
        ("main.rb", "File.read(path, encoding: 'ISO-8859-2')\n", {f"{NATIVE}/enc/trans/japanese.so"}),
        ("main.rb", "text.force_encoding(Encoding::EUC_JP)\n", {f"{NATIVE}/enc/trans/japanese.so"}),
        ("main.rb", "text.encode('UTF-8') rescue Encoding::UndefinedConversionError\n", set()),
        ("main.rb", "x = `tool a | other`\n", {"/bin/sh", "/usr/bin/tool", "/usr/bin/other"}),
        ("main.rb", "Open3.capture2('tool x')\n", {"/bin/sh", "/usr/bin/tool"}),
        ("main.js", "require('child_process').exec('tool | other')\n", {"/bin/sh", "/usr/bin/tool", "/usr/bin/other"}),
        ("main.php", "<?php iconv('UTF-8', 'EUC-JP//TRANSLIT', $x);\n", {"/usr/lib/x/gconv/EUC-JP.so"}),
        ("main.php", "<?php iconv('UTF-8', 'ISO-8859-1', $x);\n", set()),
        ("main.php", "<?php mail($to, 'subject', $text);\n", {"/bin/sh", "/usr/sbin/sendmail"}),
        (
            "main.pl",
            "use Math::BigInt;\n",
            {"/usr/share/perl/5.36/Math/BigInt.pm", "/usr/share/perl/5.36/Math/BigInt/Calc.pm"},
        ),
        ("main.pl", "open my $f, '<:encoding(UTF-16)', $x;\n", {"/usr/share/perl/5.36/PerlIO/encoding.pm"}),
    ],
)
def test_what_code_loads_by_a_computed_name(tmp_path, name, text, wanted):
    candidates = (
        *(f"{RUBY}/digest.rb", f"{NATIVE}/digest/sha2.so", f"{RUBY}/psych.rb", f"{RUBY}/psych/syntax_error.rb"),
        *(f"{RUBY}/unicode_normalize/normalize.rb", f"{NATIVE}/enc/trans/japanese.so"),
        "/usr/lib/x/gconv/EUC-JP.so",
        *(f"/usr/share/perl/5.36/{one}.pm" for one in ("Math/BigInt", "Math/BigInt/Calc", "PerlIO", "PerlIO/encoding")),
    )
    programs = ("/bin/sh", "/usr/bin/tool", "/usr/bin/other", "/usr/sbin/sendmail")
    files = {f"/app/{name}": text, **dict.fromkeys(candidates, "x"), **dict.fromkeys(programs, PROGRAM)}
    found = kept(tmp_path, files, {f"/app/{name}": "open"}, {"WorkingDir": "/app", "Env": ["PATH=/usr/bin:/bin"]})
    assert found & {*candidates, *programs} == wanted | (found & {"/usr/share/perl/5.36/PerlIO.pm"})


def test_extensions_and_clients_of_a_database(tmp_path):
    home, shared = "/usr/lib/postgresql/15", "/usr/share/postgresql/15/extension"
    wanted = {
        *(
            f"{shared}/uuid-ossp.control",
            f"{shared}/uuid-ossp--1.1.sql",
            f"{home}/lib/uuid-ossp.so",
            f"{home}/bin/pg_isready",
        ),
        *(f"{shared}/pg_trgm.control", f"{home}/lib/pg_trgm.so"),
    }
    others = {
        f"{shared}/plperl.control",
        f"{shared}/hstore_plpython3u.control",
        f"{home}/lib/plperl.so",
        f"{home}/lib/llvmjit.so",
    }
    files = {f"{home}/bin/postgres": PROGRAM, **dict.fromkeys(wanted | others, "x")}
    found = kept(tmp_path, files, {f"{home}/bin/postgres": "exec"})
    assert wanted <= found
    assert not others & found
