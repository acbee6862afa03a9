"""`python -m lab VERB …`: the lab's command line."""

from __future__ import annotations

import argparse
import sys

from . import verbs
from .errors import LabError
from .session import DRIVERS, terminated_like_interrupted
from .table import SUITES, load


def _machine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--driver", choices=("auto", *DRIVERS), default="auto", help="default: vagrant if it is installed, else qemu"
    )
    parser.add_argument(
        "--accel", choices=("auto", "kvm", "tcg"), default="auto", help="default: kvm if it boots the kernel, else tcg"
    )
    parser.add_argument("--mirror", help="Debian mirror for building boxes (default: the one this machine's apt uses)")
    parser.add_argument(
        "--libvirt-uri",
        default="",
        help="for --driver vagrant, e.g. qemu+ssh://host/system (default: a libvirtd of the lab's own)",
    )
    parser.add_argument("--keep-on-fail", action="store_true", help="keep a machine on which something failed")


def arguments() -> argparse.ArgumentParser:
    """All verbs and options."""
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    sub = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    run = sub.add_parser("run", help="run scenarios on machines: all, gate, or machines by name")
    run.add_argument(
        "machines",
        nargs="*",
        default=["all"],
        metavar="MACHINE",
        help=f"all, gate, or of: {', '.join(load().machines)}",
    )
    run.add_argument(
        "--transports", default="", help="of mount,devfuse,pyfuse3 (default: all; the gate: mount,devfuse)"
    )
    run.add_argument("--scenario", default="", metavar="EXPR", help="only scenarios whose name matches (pytest -k)")
    run.add_argument(
        "--failed",
        action="store_true",
        help="only what failed in the last report; the new report goes to `again` beside it",
    )
    run.add_argument("--report", default="reports/lab", metavar="DIR", help="default: %(default)s")
    run.add_argument(
        "--jobs", "-j", type=int, default=0, help="machines at once (default: 1 under TCG, else half the cores)"
    )
    run.add_argument(
        "--cpus",
        type=int,
        default=0,
        help="of each machine (default: the table's; with -j under TCG, a share of this host's cores)",
    )
    for suite in SUITES:
        run.add_argument(
            f"--{suite}-dir",
            metavar="DIR",
            default="",
            help=f"an installed {suite}, to be run in one machine of each box",
        )
        run.add_argument(
            f"--{suite}-tests", metavar="WORDS", default="", help=f"which of its tests, as for tests/suites/{suite}.py"
        )
    _machine_options(run)

    for verb, text in (
        ("try", "a sandbox: a machine with slim containers and cntr, and a shell in it"),
        ("shell", "a shell in a kept machine, or in a new one"),
    ):
        one = sub.add_parser(verb, help=text)
        one.add_argument("machine", choices=[*load().machines], metavar="MACHINE")
        one.add_argument("--command", "-c", default="", help="run this instead of a shell")
        _machine_options(one)

    box = sub.add_parser("box", help="build boxes into the cache")
    box.add_argument("boxes", nargs="*", metavar="BOX", help=f"of: {', '.join(load().boxes)} (default: all)")
    box.add_argument("--mirror")
    doctor = sub.add_parser("doctor", help="what this host lacks for the lab, and how to install it")
    doctor.add_argument("--json", action="store_true")
    clean = sub.add_parser("clean", help="remove left-over machines, and the lab's libvirtd")
    clean.add_argument("--boxes", action="store_true", help="the cached boxes too")
    sub.add_parser("list", help="machines and boxes of the table")
    by_hand = sub.add_parser("vagrant-environment", help="what the Vagrantfile asks for when vagrant is called by hand")
    by_hand.add_argument("--repository", default=".")
    return parser


def main() -> int:
    """Run a verb; return 2 if the lab itself failed, 1 if a scenario did."""
    words = sys.argv[1:]
    if not words or not (words[0] in verbs.VERBS or words[0] in ("-h", "--help")):
        words.insert(0, "run")  # `gate`, `docker nspawn`, nothing: scenarios
    options = arguments().parse_args(words)
    try:
        with terminated_like_interrupted():
            return verbs.VERBS[options.verb](options)
    except LabError as error:
        print(f"lab: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"     {error.hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as signal:
        print(f"\nlab: interrupted{f' ({signal})' if str(signal) else ''}; nothing is left running", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
