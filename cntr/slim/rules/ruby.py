"""Ruby: a gem that is used, whole, with its specification."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "ruby"
SUMMARY = "lib, data and specification of each gem that is used; a bundle's files"
_GEM = re.compile(r"(.*)/gems/([^/]+)/(?:lib|app|ext|bin|exe|config|data)/")


def follows(context: Context, path: str, entry: Entry) -> Found:
    """Of a file in a gem: autoload takes the rest when it is first named."""
    found = _GEM.match(path)
    if found:
        root, name = found[1], found[2]
        done: set[str] = context.once("ruby gems", set)
        if f"{root}/{name}" not in done:
            done.add(f"{root}/{name}")
            yield f"{root}/specifications/{name}.gemspec", "the specification of a gem"
            yield f"{root}/specifications/default/{name}.gemspec", "the specification of a gem"
            for part in ("lib", "app", "config", "data", "locales"):
                for one in context.tree.below(f"{root}/gems/{name}/{part}"):
                    yield one, f"the gem {name}, which is used"
    if path.endswith(("/Gemfile", "/gems.rb", "/config.ru")):
        directory = path.rpartition("/")[0]
        for name in ("Gemfile.lock", "gems.locked", ".bundle/config", "Gemfile"):
            yield f"{directory}/{name}", "the bundle that a program belongs to"
