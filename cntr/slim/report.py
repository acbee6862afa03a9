"""The result as text, as JSON, and for ``--explain``."""

from __future__ import annotations

import json
import stat

from cntr.errors import printable
from cntr.slim.rules import packages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cntr.slim.accesses import Accesses
    from cntr.slim.exercise import Exercise
    from cntr.slim.rules import Context
    from cntr.slim.runs import Image
    from cntr.slim.tree import Tree
    from cntr.slim.writer import Archive

_SETID = stat.S_ISUID | stat.S_ISGID
_SHOWN = 12  # names per line in the text report


class Report:
    """The facts, added as they are found. Sizes in bytes, times in seconds."""

    def __init__(self, image: Image) -> None:
        self.reference, self.engine, self.id = image.reference, image.engine, image.id
        self.recorder = self.name = self.output = self.loaded = self.fat = self.in_engine = ""
        self.slim_id = self.manifest = ""
        self.on_cntrfs = False
        self.first_answer = self.seconds = 0.0
        self.rounds: list[list[str]] = []
        self.notes: list[str] = []
        self.explained: list[str] = []
        self.exercise: list[str] = []
        self.used: dict[str, int] = {}
        self.before = self.after = (0, 0)  # bytes of files, number of files
        self.directories = self.compressed = 0
        self.rules: dict[str, tuple[int, int]] = {}
        self.packages_kept: list[str] = []
        self.packages_gone: list[str] = []
        self.setid_kept: list[str] = []
        self.setid_gone: list[str] = []
        self.kept: dict[str, list[str]] = {}

    def note(self, line: str) -> None:
        """Add a remark for the user."""
        self.notes.append(line)

    def image(self, tree: Tree) -> None:
        """Add the facts of the whole image."""
        self.before = total(tree, list(tree.entries))

    def recorded(self, used: Accesses) -> None:
        """Add how many paths of each kind were recorded."""
        for kinds in used.kinds.values():
            for kind in kinds:
                self.used[kind] = self.used.get(kind, 0) + 1

    def archive(self, archive: Archive) -> None:
        """Add the facts of the slim image."""
        self.slim_id, self.manifest = archive.id, archive.manifest.digest
        self.compressed = sum(layer.size for layer in archive.layers)

    def finish(self, context: Context, exercise: Exercise, seconds: float) -> None:
        """Add what is kept and what is removed, at the end."""
        tree = context.tree
        self.seconds, self.exercise = seconds, exercise.described()
        self.after = total(tree, list(context.kept), context.replaced)
        self.directories = sum(1 for entry in tree.entries.values() if entry.is_directory)
        rows: dict[str, list[str]] = {}
        for path, reason in context.kept.items():
            if not tree.entries[path].is_directory:
                rows.setdefault(reason.rule, []).append(path)
        self.rules = {rule: total(tree, paths, context.replaced) for rule, paths in rows.items()}
        there, known = packages.kept(context), packages.installed(context)
        self.packages_kept = sorted(f"{name} {known[name].version}" for name in known if name in there)
        self.packages_gone = sorted(f"{name} {known[name].version}" for name in known if name not in there)
        setid = sorted(path for path, entry in tree.entries.items() if entry.is_file and entry.mode & _SETID)
        self.setid_kept = [path for path in setid if path in context.kept]
        self.setid_gone = [path for path in setid if path not in context.kept]
        self.kept = {path: [reason.rule, reason.why, reason.by] for path, reason in sorted(context.kept.items())}

    @property
    def reduction(self) -> float:
        """The reduction in size, 0 to 1."""
        return 1 - self.after[0] / self.before[0] if self.before[0] else 0.0

    # output formats

    def document(self, *, everything: bool = False) -> dict[str, Any]:
        """The facts as JSON values; everything: also each kept path with its reason."""
        names = "reference engine id recorder name output loaded fat in_engine on_cntrfs slim_id manifest first_answer seconds"
        found: dict[str, Any] = {name: getattr(self, name) for name in names.split()}
        found |= {
            "before": {"bytes": self.before[0], "files": self.before[1]},
            "after": {"bytes": self.after[0], "files": self.after[1], "compressed": self.compressed},
            "reduction": round(self.reduction, 4),
            "exercise": self.exercise,
            "used": self.used,
            "rounds": self.rounds,
            "rules": {rule: {"bytes": size, "files": count} for rule, (size, count) in self.rules.items()},
            "packages": {"kept": self.packages_kept, "gone": self.packages_gone},
            "setid": {"kept": self.setid_kept, "gone": self.setid_gone},
            "notes": self.notes,
            "explained": self.explained,
        }
        return found | ({"kept": self.kept} if everything else {})

    def json(self, *, everything: bool = False) -> str:
        """The document as text."""
        return json.dumps(self.document(everything=everything), indent=1, sort_keys=True)

    def text(self) -> str:
        """The report as text."""
        if not self.slim_id:
            kinds = ", ".join(f"{count} by {kind}" for kind, count in sorted(self.used.items()))
            return f"{printable(self.reference)}: used: {kinds or 'nothing'}"
        size, count = self.before
        lines = [
            f"{printable(self.reference)} → {printable(self.name)}",
            f"  size      {size / 1e6:.1f} MB → {self.after[0] / 1e6:.1f} MB of files, {self.reduction:.1%} smaller",
            f"  files     {count} → {self.after[1]}; all {self.directories} directories as they were",
            f"  kept      {', '.join(self._rules())}",
            f"  exercise  {printable('; '.join(self.exercise))}",
            f"  proved    {self.proof()}",
        ]
        if self.packages_gone:
            lines.append(
                f"  packages  {len(self.packages_kept)} kept, {len(self.packages_gone)} gone: {_some(self.packages_gone)}"
            )
        if self.setid_gone or self.setid_kept:
            lines.append(f"  set-id    {len(self.setid_gone)} gone; left: {_some(self.setid_kept) or 'none'}")
        for what, where in (("archive", self.output), ("loaded", self.loaded), ("rest", self.fat)):
            lines += [f"  {what.ljust(9)} {printable(where)}"] if where else []
        lines += [f"  note      {printable(note)}" for note in self.notes]
        lines.append(
            "  What the exercise did not ask for may be missing: `cntr attach` brings tools, --app and --keep bring files."
        )
        return "\n".join([*lines, *(f"\n{text}" for text in self.explained)])

    def _rules(self) -> list[str]:
        rows = sorted(self.rules.items(), key=lambda row: -row[1][0])
        return [f"{rule} {size / 1e6:.1f} MB ({count})" for rule, (size, count) in rows if count]

    def proof(self) -> str:
        """Where the slim image was run and did what the whole image does."""
        parts = []
        if self.on_cntrfs:
            added = sum(map(len, self.rounds))
            parts.append(
                f"on CntrFS in {len(self.rounds)} round{'s' if len(self.rounds) > 1 else ''}, {added} files added"
            )
        if self.in_engine:
            parts.append(f"by {self.in_engine} from what was written")
        return "; ".join(parts) or "not at all (--verify none)"

    def explain(self, context: Context, path: str) -> str:
        """Why a path is kept, back to what was recorded; or that it is left out."""
        shown = printable(path)
        real, links = context.tree.resolve(path)
        if not real and path not in context.tree:
            return f"{shown}: not in the image"
        lines = [f"{shown}"]
        lines += [f"  leads to {printable(real)} by {', '.join(map(printable, links))}"] if links else []
        one = real if real else path
        if one not in context.kept:
            why = context.dropped.get(one) or "the run did not use it, and no rule asks for it"
            owner = packages.owners(context).get(one)
            return "\n".join([*lines, f"  left out: {why}", *([f"  of the package {owner}"] if owner else [])])
        seen: set[str] = set()
        while one and one not in seen and (reason := context.kept.get(one)) is not None:
            seen.add(one)
            lines.append(f"  kept: {printable(one)}: {printable(reason.why)} [{reason.rule}]")
            one = context.tree.resolve(reason.by)[0] if reason.by else ""
        return "\n".join(lines)


def total(tree: Tree, paths: list[str], replaced: dict[str, bytes] | None = None) -> tuple[int, int]:
    """(bytes, number) of the files among PATHS; a file with several names counts once."""
    size = count = 0
    seen: set[tuple[int, int]] = set()
    for path in paths:
        entry = tree.entries[path]
        if entry.is_directory:
            continue
        count += 1
        if entry.nlink > 1:
            if (entry.dev, entry.ino) in seen:
                continue
            seen.add((entry.dev, entry.ino))
        size += len(replaced[path]) if replaced and path in replaced else entry.size
    return size, count


def _some(names: list[str]) -> str:
    shown = ", ".join(printable(name.split(" ")[0]) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
