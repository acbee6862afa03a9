"""What a library loads by itself when data, a login or a configuration requires it, and programs
that others start by name: a table.
"""

from __future__ import annotations

import re

from cntr.slim.rules import translate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "plugins"
SUMMARY = (
    "plug-ins of kept libraries that data or a login asks for: PAM's and name services' modules, OpenSSL's older algorithms, image "
    "formats, terminals, fonts; programs that others start by name (tar's compressors, a login's shell)"
)
# A kept file's name → globs of what it may load; {dir} is its directory.
LOADED = {
    r"libcrypto\.so\.[\d.]+": ("{dir}/ossl-modules/*.so",),
    r"libMagickCore-.*\.so\.[\d.]+": ("{dir}/ImageMagick-*/modules-*/*/*", "/usr/share/ImageMagick-*/*.xml"),
    r"libGraphicsMagick.*\.so\.[\d.]+": ("{dir}/GraphicsMagick-*/modules-*/*/*", "{dir}/GraphicsMagick-*/config/*"),
    r"libgdk_pixbuf-2\.0\.so\.[\d.]+": ("{dir}/gdk-pixbuf-2.0/**",),
    r"libsox\.so\.[\d.]+": ("{dir}/sox/*",),
    r"libgvc\.so\.[\d.]+": ("{dir}/graphviz/*",),
    r"libQt[56]Gui\.so\.[\d.]+": ("{dir}/qt[56]/plugins/imageformats/*", "{dir}/qt[56]/plugins/platforms/*"),
    r"libQt[56]Sql\.so\.[\d.]+": ("{dir}/qt[56]/plugins/sqldrivers/*",),
    r"libgs\.so\.[\d.]+": ("/usr/share/ghostscript/**",),
    r"libmagic\.so\.[\d.]+": ("/usr/lib/file/magic.mgc", "/usr/share/misc/magic.mgc", "/usr/share/file/magic.mgc"),
}
# A kept program's name → the programs that it starts by name.
STARTED = {
    "tar": "gzip bzip2 xz zstd",
    "rsync": "ssh",
    "scp": "ssh",
    "sftp": "ssh",
    "git": "ssh",
    "cron": "sh sendmail",
    "crond": "sh",
    "atd": "sh",
    "make": "sh",
    "logrotate": "sh gzip",
    "gpg": "gpg-agent",
}
LOGINS = ("sshd", "login", "su", "dropbear", "in.telnetd")
_NO_SHELL = ("nologin", "false", "sync")
TERMINALS = "ansi dumb linux rxvt rxvt-unicode screen screen-256color tmux tmux-256color vt100 vt102 vt220 xterm xterm-256color xterm-color"
_PAM_MODULE = re.compile(r"\b(pam_\w+\.so)\b")
_SERVICE = re.compile(r"^\s*\w+:(.*)$", re.MULTILINE)
_FONTS, _LARGEST = "/usr/share/fonts", 8 << 20  # bytes of all fonts that are kept as a whole
_COMPILED = {re.compile(name): globs for name, globs in LOADED.items()}


def follows(context: Context, path: str, entry: Entry) -> Found:
    """Rules for a kept library or program."""
    directory, _, name = path.rpartition("/")
    if not entry.is_file:
        return
    for expression, globs in _COMPILED.items():
        if expression.fullmatch(name):
            for one in globs:
                yield from _matching(context, one.replace("{dir}", directory), f"{name} loads it when it is asked for")
    if name in STARTED and entry.is_executable:
        for program in STARTED[name].split():
            yield context.program(program), f"{name} starts it"
    if name in LOGINS and "exec" in context.accesses.kinds.get(path, ()):
        for line in context.tree.text("/etc/passwd", 1 << 20).splitlines():
            shell = line.rpartition(":")[2].strip()
            if shell.rpartition("/")[2] not in _NO_SHELL:
                yield shell, f"a login's shell, for {name}"
    if name.startswith(("libtinfo.so.", "libncurses.so.", "libncursesw.so.")):
        for one in TERMINALS.split():
            for place in ("/lib/terminfo", "/usr/share/terminfo", "/etc/terminfo", "/usr/lib/terminfo"):
                yield f"{place}/{one[0]}/{one}", "a usual terminal"
    if name.startswith("libc.so."):
        for one in _services(context):
            yield f"{directory}/libnss_{one}.so.2", "names are looked up by it"
    if name.startswith("libpam.so."):
        yield from _pam(context, directory)
    if name.startswith("libfontconfig.so."):
        for glob in ("/etc/fonts/**", "/usr/share/fontconfig/**"):
            yield from _matching(context, glob, "fonts are looked up by it")
        fonts = context.tree.below(_FONTS)
        if sum(context.tree.entries[one].size for one in fonts) <= _LARGEST:
            for one in fonts:
                yield one, "fonts are looked up by name"
    if path.endswith("/ctypes/util.py"):
        for one in ("/sbin/ldconfig", "/usr/sbin/ldconfig", "/sbin/ldconfig.real"):
            yield one, "find_library() runs it"


def _matching(context: Context, glob: str, why: str) -> Found:
    """Files below the first directory of GLOB that has no wildcard."""
    head = re.split(r"[*?\[]", glob, maxsplit=1)[0].rpartition("/")[0]
    real, _ = context.tree.resolve(head)
    expression = re.compile(translate(glob))
    for one in [f"{head}{one[len(real) :]}" for one in context.tree.below(real)] if real else []:
        if expression.fullmatch(one):
            yield one, why
    if glob in context.tree:
        yield glob, why


def _services(context: Context) -> list[str]:
    text = context.tree.text("/etc/nsswitch.conf", 1 << 16)
    words = " ".join(re.sub(r"\[[^\]]*\]", " ", line) for line in _SERVICE.findall(text)).split()
    return [word for word in dict.fromkeys(words) if re.fullmatch(r"\w{1,40}", word)]


def _pam(context: Context, directory: str) -> Found:
    """The services of kept programs, what they have in common, and the modules that these name."""
    programs = {path.rpartition("/")[2] for path in context.kept}
    for path in context.tree.children("/etc/pam.d"):
        name = path.rpartition("/")[2]
        if name != "other" and not name.startswith(("common-", "system-", "password-")) and name not in programs:
            continue
        yield path, "a login is checked by it"
        for module in _PAM_MODULE.findall(context.tree.text(path, 1 << 16)):
            yield f"{directory}/security/{module}", f"a login by {path}"
    for one in (*context.tree.children("/etc/security"), "/usr/sbin/unix_chkpwd", "/sbin/unix_chkpwd"):
        yield one, "a login is checked by it"
