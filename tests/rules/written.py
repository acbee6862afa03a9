"""The parts of the documentation that are generated from the code; ``python -m tests.rules.written`` updates them."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from cntr.cli.options import COMMANDS
from cntr.slim import rules
from tests.engines import support
from tests.engines.test_names import MODULE
from tests.rules import source
from tests.rules.test_layers import package_imports, packages_downward


def commands() -> str:
    """The table of commands in docs/cntr.1.md."""
    rows = [
        f"| `cntr {' '.join([c.name, *c.positional])}{' [-- CMD…]' if c.takes_command else ''}` | {c.help} |"
        for c in COMMANDS
    ]
    return "\n".join(["| command | |", "|---|---|", *rows])


def packages() -> str:
    """The table of packages in docs/architecture.md: the first line of each docstring, and what the package imports."""
    modules, imports, order = source.modules("cntr"), package_imports(), packages_downward()
    rows = []
    for package in order:
        path = modules[f"cntr.{package}"]
        first = (ast.get_docstring(source.tree(path)) or "").split("\n")[0].replace("``", "`").rstrip(".")
        used = " ".join(f"`{other}`" for other in order if other in imports[package])
        rows.append(f"| `{package}{'/' if path.name == '__init__.py' else '.py'}` | {first} | {used} |")
    return "\n".join(["| package | what it is | imports from |", "|---|---|---|", *rows])


def example() -> str:
    """The example in docs/engines.md, a module that a test runs."""
    return f"```python\n{MODULE.strip()}\n```"


def slim_rules() -> str:
    """The table in docs/slim.md, from the rules' modules."""
    rows = [f"| `{rule.NAME}` | {rule.SUMMARY} |" for rule in rules.modules()]
    return "\n".join(["| rule | adds |", "|---|---|", *rows])


# page → the texts between its marks, in order
WRITTEN = {
    "docs/cntr.1.md": (commands,),
    "docs/architecture.md": (packages,),
    "docs/engines.md": (support.table, example),
    "docs/slim.md": (slim_rules,),
}
MARKS = re.compile(r"(<!-- written by tests/rules/written.py -->\n)(.*?)(\n<!-- end -->)", re.DOTALL)


def rewritten(text: str, texts: tuple[Callable[[], str], ...]) -> str:
    """TEXT with the parts between its marks replaced."""
    anew = iter(texts)
    return MARKS.sub(lambda found: found[1] + next(anew)() + found[3], text)


def main() -> None:
    """Update every page."""
    for name, texts in WRITTEN.items():
        path = source.ROOT / name
        path.write_text(rewritten(path.read_text(), texts))


if __name__ == "__main__":
    main()
