"""What every program may need without a recording showing it: name services, certificates, time zone, parts of the C
library.
"""

from __future__ import annotations

import re

from cntr.slim.rules import translate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found

NAME = "basics"
SUMMARY = (
    "passwd, group, nsswitch, hosts, services, certificates, os-release, local time, time zones where they are named, "
    "libgcc_s, libnss_*, gconv's table, empty files"
)
FILES = {
    "users and groups by name": "/etc/passwd /etc/group /etc/shadow /etc/gshadow /etc/nsswitch.conf /etc/login.defs /etc/shells",
    "hosts, services and protocols by name": "/etc/hosts /etc/host.conf /etc/resolv.conf /etc/hostname"
    " /etc/services /etc/protocols /etc/gai.conf",
    "what system this is": "/etc/os-release /usr/lib/os-release /etc/debian_version"
    " /etc/alpine-release /etc/redhat-release /etc/lsb-release",
    "the local time": "/etc/localtime /etc/timezone /usr/share/zoneinfo/UTC /usr/share/zoneinfo/Etc/UTC",
    "certificates": "/etc/ssl/certs/** /etc/ssl/cert.pem /etc/ssl/openssl.cnf /usr/lib/ssl/*"
    " /etc/pki/tls/certs/* /etc/pki/ca-trust/extracted/pem/*"
    " /etc/ca-certificates.conf /usr/share/ca-certificates/** /usr/local/share/ca-certificates/**",
    "where libraries are": "/etc/ld.so.cache /etc/ld.so.conf /etc/ld.so.conf.d/* /etc/ld.so.preload /etc/ld-musl-*.path",
    "the shell's and terminal's set-up": "/etc/profile /etc/environment /etc/inputrc",
    "mounts by name": "/etc/mtab /etc/fstab",
    "kinds of files by suffix": "/etc/mime.types",
}
# The C library loads these by name: to cancel a thread, look up a name, convert a character set.
LIBC = ("libgcc_s.so.1", "libnss_files.so.2", "libnss_dns.so.2", "libnss_compat.so.2", "libresolv.so.2")
GCONV = ("gconv-modules.cache", "gconv-modules", "UTF-16.so", "UTF-32.so", "ISO8859-1.so", "ISO8859-15.so", "CP1252.so")
ZONES = "/usr/share/zoneinfo"
LOCAL = (f"{ZONES}/UTC", f"{ZONES}/Etc/UTC", f"{ZONES}/localtime")
# Programs and libraries whose users name time zones, which they read from the system.
ZONED = re.compile(r"libphp[\d.]*\.so|php(?:-fpm|-cgi)?[\d.]*|postgres|mariadbd|mysqld|ruby[\d.]*|Rscript|beam\.smp")
LOCALE = ("/usr/lib/locale/C.utf8", "/usr/lib/locale/C.UTF-8")


def seeds(context: Context) -> Found:
    """Those that the image has."""
    tree = context.tree
    if len(tree.entries) < 64 and not any("/ld-" in path for path in tree.entries):
        return  # a single static program
    for why, patterns in FILES.items():
        for pattern in patterns.split():
            if "*" not in pattern:
                yield pattern, why
                continue
            head = pattern.partition("*")[0].rpartition("/")[0]
            real, _ = tree.resolve(head)
            expression = re.compile(translate(pattern))
            for path in tree.below(real) if real else ():
                if expression.fullmatch(path.replace(real, head, 1)):
                    yield path, why
    yield from _empty(context)
    if context.environment().get("TZ"):
        yield from zones(context, "TZ")


def zones(context: Context, why: str) -> Found:
    """The time zones, once."""
    done: list[str] = context.once("zones", list)
    if not done:
        done.append(why)
        for path in context.tree.below(ZONES):
            if not path.startswith((f"{ZONES}/right/", f"{ZONES}/posix/")):
                yield path, "time zones by name"


def _empty(context: Context) -> Found:
    for path, entry in context.tree.entries.items():
        if entry.is_file and not entry.size:
            yield path, "an empty file says something by being there"


def follows(context: Context, path: str, entry: object) -> Found:
    """With the C library: what it loads by itself. With a program that knows time zones by name: the zones."""
    name = path.rpartition("/")[2]
    if ZONED.fullmatch(name) or path.startswith(f"{ZONES}/") or path.endswith("/zoneinfo/__init__.py"):
        if ZONED.fullmatch(name) or path not in LOCAL:
            yield from zones(context, path)
        return
    if not (name.startswith(("libc.so.", "libc-2.")) or name == "libc.musl"):
        return
    directory = path.rpartition("/")[0]
    for library in LIBC:
        yield f"{directory}/{library}", "the C library loads it by itself"
    for table in GCONV:
        yield f"{directory}/gconv/{table}", "conversions between the usual character sets"
    for locale in LOCALE:
        for one in context.tree.below(locale) if locale in context.tree else ():
            yield one, "the C.UTF-8 locale"
