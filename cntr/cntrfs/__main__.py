"""``python -m cntr.cntrfs SOURCE MOUNTPOINT``: what ``cntr mount`` does, without the rest of cntr."""

from __future__ import annotations

import argparse
import logging
import sys

from cntr.cntrfs import mounting
from cntr.cntrfs.options import CACHE_POLICIES, Options, parse, set_cache
from cntr.errors import CntrError, complain


def main(arguments: list[str] | None = None) -> int:
    """Parse, mount, serve; returns the exit status."""
    parser = argparse.ArgumentParser(prog="cntr mount", description="Mount CntrFS: SOURCE seen through FUSE.")
    parser.add_argument("source")
    parser.add_argument("mountpoint")
    parser.add_argument("--binding", choices=mounting.BINDINGS)
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--foreground", action="store_true")
    parser.add_argument("--cache", choices=CACHE_POLICIES)
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTS")
    given = parser.parse_args(arguments)
    logging.basicConfig(format="cntrfs: %(levelname)s: %(message)s", level=logging.INFO)
    try:
        options = parse(",".join(given.options), Options(read_only=given.read_only))
        if given.cache:
            set_cache(options, given.cache)
        return mounting.run(given.source, given.mountpoint, options, binding=given.binding, foreground=given.foreground)
    except CntrError as error:
        complain(f"cntr: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
