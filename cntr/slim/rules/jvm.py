"""A Java virtual machine: its own library and configuration, without what only a compiler, a debugger or a desktop
needs.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "jvm"
SUMMARY = "a JVM's libraries, modules, security, time zone and network configuration; jars beside one on the class path"
# Not needed by a server, unless its exercise shows it: libraries for desktops, sources, symbols, shared archives for
# other heap settings.
_LEFT_OUT = re.compile(
    r"/lib/(?:src\.zip|ct\.sym|[^/]*\.debuginfo|server/classes_nocoops\.jsa|jrt-fs\.jar|jspawnhelper\.debug|"
    r"lib(?:awt|awt_xawt|awt_headless|fontmanager|freetype|javajpeg|jawt|jsound|lcms|mlib_image|splashscreen|jdwp|dt_socket|"
    r"attach|saproc|j2gss|j2pcsc|j2pkcs11|instrument|rmi|jimage_tools|le|sctp|systemlookup|"
    r"psfontj2d|psfont)\.[^/]*|psfont[^/]*|fontconfig[^/]*|jfr/.*)$"
)
_ALWAYS = re.compile(r"/(?:lib|conf)/(?:.*\.(?:properties|policy|cfg|conf|dat|certs|security)|security/.*|"
    r"server/lib.*\.so|lib(?:java|jli|net|nio|zip|"
                     r"jimage|verify|jsig|management|management_ext|management_agent|prefs|extnet|syslookup)\.so|modules|tzdb\.dat|jvm\.cfg|jexec|"
                     r"jspawnhelper|classlist|server/classes\.jsa|tzmappings)$")  # fmt: skip


def follows(context: Context, path: str, entry: Entry) -> Found:
    """For libjvm.so: the virtual machine around it."""
    if not path.endswith("/libjvm.so"):
        return
    home = re.sub(r"/lib(?:/[a-z0-9_]+)?/(?:server|client|minimal)/libjvm\.so$", "", path)
    if home == path:
        return
    for one in context.tree.below(home):
        inner = one[len(home) :].replace("/jre/", "/", 1)
        if not _LEFT_OUT.search(inner) and _ALWAYS.search(inner):
            yield one, "part of the Java virtual machine"
