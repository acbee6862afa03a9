"""Files that pyproject.toml cannot express: those below share/ in a wheel. The manual page and completion are generated
here.

The documents keep the checkout's layout, so their links work. The tests are in the source archive (MANIFEST.in).
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOCUMENTS = "share/doc/cntr-attach"


def written(made: Path) -> dict[str, list[str]]:
    """Generate the manual page and completion below MADE: directory of the installation → files."""
    sys.path.insert(0, str(HERE))
    from cntr.cli import manual

    files = {
        "share/man/man1/cntr.1": manual.man_page(),
        "share/man/man1/kubectl-cntr.1": ".so man1/cntr.1\n",
        "share/man/man8/mount.fuse.cntrfs.8": ".so man1/cntr.1\n",
        "share/bash-completion/completions/cntr": manual.completion("bash"),
        "share/zsh/site-functions/_cntr": manual.completion("zsh"),
        "share/fish/vendor_completions.d/cntr.fish": manual.completion("fish"),
    }
    found: dict[str, list[str]] = {}
    for name, text in files.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text, encoding="utf-8")
        found.setdefault(name.rpartition("/")[0], []).append(str(made / name))
    return found


def documents() -> dict[str, list[str]]:
    """README and docs/, under their names in the checkout: directory of the installation → files."""
    pages = sorted(path.relative_to(HERE).as_posix() for path in HERE.glob("docs/*"))
    return {DOCUMENTS: sorted(path.name for path in HERE.glob("*.md")), f"{DOCUMENTS}/docs": pages}


if __name__ == "__main__":
    from setuptools import setup

    setup(data_files=list({**written(Path("build/share")), **documents()}.items()))
