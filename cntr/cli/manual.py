"""Text generated from the table of options: ``--help``, the man page, shell completion."""

from __future__ import annotations

import sys

from cntr import __version__
from cntr.cli.options import COMMANDS
from cntr.cli.options_attach import DEBUG, HELP
from cntr.cli.parser import Option, Subcommand
from cntr.errors import UsageError, printable

TARGETS = """TARGET   a container's name, id or unique id prefix, a pid, or engine:name
         (docker:web, k8s:namespace/pod/container, pid:42, unit:nginx.service, command:PATTERN); an image:
         image:NAME[:TAG], image:ENGINE:NAME, archive:FILE[:TAG], oci:DIR[:TAG], dir:PATH, raw:NAME; what is stopped"""
HOSTS = """HOST     another machine, where all of it is done, by ssh and sudo: ssh://[user@]host[:port], or a Host of
         ~/.ssh/config. Paths are that machine's, but for cp; it needs a python3, and cntr is brought along."""
STATUS = """Exit status: the command's own; 125 cntr failed, 126 the command is not executable, 127 it was not found,
128+N it was killed by signal N."""

DESCRIPTION = """A slim container holds the application; the fat side holds the tools. In a session the fat side's tree is /,
the container's is at /var/lib/cntr, and /proc, /dev, /sys and the files passwd, group, hosts, hostname, resolv.conf and
localtime of /etc are the container's. The container, its engine and the kernel are not changed. When the session's command
ends, all that it started ends too."""


def overview() -> str:
    """``cntr --help``."""
    longest = max(len(command.name) for command in COMMANDS)
    commands = "\n".join(f"  {command.name.ljust(longest)}  {command.help}" for command in COMMANDS)
    return (
        "cntr: your tools inside a slim container\n\nUsage: cntr [--host HOST] COMMAND [OPTION…] [TARGET] [-- CMD…]\n\n"
        f"{commands}\n\n{TARGETS}\n\n{HOSTS}\n\nExamples:\n"
        "  cntr attach web                 a shell with your tools beside the container `web`; its files are at /var/lib/cntr\n"
        "  cntr attach web -- strace -p 1  one tool instead of a shell\n"
        "  cntr exec web -- /app --check   the container's own program in its own root\n\n"
        f"{STATUS}\n\n`cntr COMMAND --help` says more."
    )


def usage(command: Subcommand) -> str:
    """``cntr COMMAND --help``."""
    words = " ".join(command.positional)
    line = f"Usage: cntr {command.name} {'[OPTION…] ' if command.options else ''}{words}{' [-- CMD…]' if command.takes_command else ''}"
    rows = [
        (_names(option), option.help + (f" [{'|'.join(option.choices)}]" if option.choices else ""))
        for option in (*command.options, HELP, DEBUG)
    ]
    longest = max(len(names) for names, _ in rows)
    options = "\n".join(f"  {names.ljust(longest)}  {help}" for names, help in rows)
    details = f"\n\n{command.details}" if command.details else ""
    target = f"\n\n{TARGETS}" if any("TARGET" in word for word in (*command.positional, details)) else ""
    examples = "\n".join(f"  {example}" for example in command.examples.splitlines())
    what = f"{command.help[0].upper()}{command.help[1:]}."
    return f"{line.rstrip()}\n\n{what}{details}{target}\n\nOptions:\n{options}\n\nExamples:\n{examples}\n\n{STATUS}"


def _names(option: Option) -> str:
    return ", ".join(option.names) + (f" {option.value}" if option.value else "")


def man_page() -> str:
    """cntr(1) in man(7) markup; ``python -m cntr.cli.manual > cntr.1``."""
    trailing = r" [\-\- CMD…]"
    parts = [
        f'.TH CNTR 1 "" "cntr {__version__}" "User Commands"',
        ".SH NAME\ncntr \\- your tools inside a slim container",
        ".SH SYNOPSIS",
        *(
            f".B cntr {c.name}\n[OPTION…] {' '.join(c.positional)}{trailing if c.takes_command else ''}\n.br"
            for c in COMMANDS
        ),
        f".SH DESCRIPTION\n{DESCRIPTION}",
        f".SH TARGETS\n.nf\n{TARGETS}\n.fi",
        f".SH OTHER MACHINES\n.B cntr \\-\\-host HOST COMMAND…\n.PP\n.nf\n{HOSTS}\n.fi",
    ]
    for command in COMMANDS:
        parts.append(f".SH CNTR {command.name.upper()}\n{command.help[0].upper()}{command.help[1:]}.")
        if command.details:
            parts.append(f".PP\n.nf\n{_escape(command.details)}\n.fi")
        for option in command.options:
            parts.append(f".TP\n.B {_escape(_names(option))}\n{_escape(option.help)}")
        parts.append(f".PP\nExamples:\n.nf\n{_escape(command.examples)}\n.fi")
    parts += [
        f".SH EXIT STATUS\n{STATUS}",
        ".SH ENVIRONMENT\n.TP\n.B CNTR_BASE_DIR\nWhere the container's tree is in a session; default /var/lib/cntr.\n"
        ".TP\n.B CNTR_TARGET\nSet in a session: the target as it was named.\n"
        ".TP\n.B SHELL\nThe shell of a session, where the tools have it.",
    ]
    return "\n".join(parts) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


def completion(shell: str) -> str:
    """A completion script. Raises UsageError for an unknown shell."""
    writers = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if shell not in writers:
        raise UsageError(f"no completion for {printable(shell)}", "bash, zsh and fish have one")
    return writers[shell]()


FILES = ("DIR", "FILE", "PATH", "SRC")  # option values that are file names
WORDS = {"cache": "list clear", "completion": "bash zsh fish", "sessions": "list end"}  # of commands without a target
RUNNING = 'cntr ps --all --json 2>/dev/null | sed -n \'s/^ *"name": "\\([A-Za-z0-9_./-]*\\)",*$/\\1/p\''


def _bash() -> str:
    cases = "\n".join(
        f"    {c.name}) options={' '.join(name for o in (*c.options, HELP) for name in o.names)!r} ;;" for c in COMMANDS
    )
    return f"""_cntr() {{
  local at current=${{COMP_WORDS[COMP_CWORD]}} options=
  if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W '{" ".join(c.name for c in COMMANDS)}' -- "$current")); return; fi
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  for ((at = 2; at < COMP_CWORD; at++)); do
    if [ "${{COMP_WORDS[at]}}" = -- ]; then
      compopt -o filenames 2>/dev/null
      [ $((at + 1)) -eq "$COMP_CWORD" ] && COMPREPLY=($(compgen -c -- "$current"))
      COMPREPLY+=($(compgen -f -- "$current"))
      return
    fi
  done
  case "${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD - 1]}}" in
{_values()}
  esac
  case $current in
    -*) COMPREPLY=($(compgen -W "$options" -- "$current")); return ;;
  esac
  case ${{COMP_WORDS[1]}} in
    {_taking("SRC")})
      compopt -o filenames -o nospace 2>/dev/null
      COMPREPLY=($(compgen -f -- "$current") $(compgen -S :/ -W "$({RUNNING})" -- "$current")) ;;
    {_taking("SOURCE")}) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -d -- "$current")) ;;
    {_taking("FILE")}) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$current")) ;;
{_words()}
    {_taking("TARGET")}) COMPREPLY=($(compgen -W "$({RUNNING})" -- "$current")) ;;
  esac
}}
complete -F _cntr cntr
"""


def _taking(word: str) -> str:
    """The commands that take WORD as a positional argument, as a ``case`` pattern."""
    return "|".join(c.name for c in COMMANDS if {word, f"[{word}]"} & set(c.positional))


def _values() -> str:
    """What bash completes after an option that takes a value: its choices, files, or nothing."""
    groups: dict[str, list[str]] = {}
    for command in COMMANDS:
        for option in command.options:
            words = "-f" if option.value.startswith(FILES) else ""
            if option.choices:
                words = f"-W {' '.join(option.choices)!r}"
            if option.value:
                groups.setdefault(words, []).extend(f'"{command.name} {name}"' for name in option.names)
    lines = []
    for words, patterns in groups.items():
        names = "compopt -o filenames 2>/dev/null; " if words == "-f" else ""
        done = f'{names}COMPREPLY=($(compgen {words} -- "$current")); ' if words else ""
        lines.append(f"    {'|'.join(patterns)}) {done}return ;;")
    return "\n".join(lines)


def _words() -> str:
    return "\n".join(
        f'    {name}) COMPREPLY=($(compgen -W {words!r} -- "$current")) ;;' for name, words in WORDS.items()
    )


def _zsh() -> str:
    return f"#compdef cntr\nautoload -U +X bashcompinit && bashcompinit\n{_bash()}"


def _fish() -> str:
    # In a function: fish parses a quoted command of `complete -a` a second time.
    lines = [
        f"function __cntr_names\n    {RUNNING}\nend",
        "function __cntr_sides\n    __cntr_names | sed 's,$,:/,'\nend",
    ]
    lines += [f"complete -c cntr -n __fish_use_subcommand -f -a {c.name} -d {_quoted(c.help)}" for c in COMMANDS]
    for command in COMMANDS:
        seen = f"-n '__fish_seen_subcommand_from {command.name}'"
        if "TARGET" in " ".join(command.positional):
            lines.append(f"complete -c cntr {seen} -f -a '(__cntr_names)'")
        if "SRC" in command.positional:
            lines.append(f"complete -c cntr {seen} -F -a '(__cntr_sides)'")
        if command.name in WORDS:
            lines.append(f"complete -c cntr {seen} -f -a '{WORDS[command.name]}'")
        for option in command.options:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            lines.append(f"complete -c cntr {seen} {names}{_fishs_value(option)} -d {_quoted(option.help)}")
    return "\n".join(lines) + "\n"


def _fishs_value(option: Option) -> str:
    if option.choices:
        return f" -x -a '{' '.join(option.choices)}'"
    return "" if not option.value else " -r" if option.value.startswith(FILES) else " -x"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"


if __name__ == "__main__":
    sys.stdout.write(man_page())
