"""`Run`: the folder of one run and everything a recipe writes into it.

```text
runs/<slug>/<time>/
    config.yaml   env.json   stages.json   content.json   metrics.jsonl   claims.json   report.html
    figures/      <stage>/…                                       (one folder for each stage that asked for one)
```
"""

from __future__ import annotations

import fcntl
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bloomery.core.config import encode, load_yaml, save_yaml
from bloomery.core.errors import ConfigError
from bloomery.core.files import atomic_file, read_json, write_json
from bloomery.core.hashing import digest
from bloomery.lab import environment, figures
from bloomery.lab.recipe import Recipe
from bloomery.lab.stage import Stage, StageRecord, as_json, remove
from bloomery.lab.tracking import Line, Metrics, Sink, Track, open_sink

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")
_TAKEN = {"figures", "tensorboard", "wandb"}


class Run:
    """One run of a recipe, open for writing. A context manager; only one process can hold a folder.

    Opening a folder that already holds a run of the same recipe and configuration continues it. Another recipe is
    refused; another configuration is refused unless `changed=True`, which reruns the stages that the change touches.
    """

    def __init__(
        self,
        folder: Path | str,
        recipe: Recipe,
        preset: str = "cpu",
        *,
        changed: bool = False,
        track: Track | None = None,
        quiet: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.recipe, self.preset = recipe, preset
        self.config: dict[str, Any] = encode(recipe)
        self._track, self.quiet = track, quiet
        self._stage: str | None = None
        self._trim: str | None = None  # a stage taken up again, whose repeated metrics are still to be dropped
        self._chain = ""
        self._rerun = False  # whether the newest stage has to be done
        self._used: list[str] = []
        self._check_folder(changed)

    # --- opening and closing -------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed however the process ends, not inherited
        except OSError as error:
            self._lock.close()
            raise ConfigError(
                "another process is writing this run", where=self.folder, fix="wait for it or choose another --out"
            ) from error
        save_yaml(self.folder / "config.yaml", {"recipe": self.recipe.slug(), "preset": self.preset, **self.config})
        write_json(self.folder / "env.json", environment.describe())
        self._records = {r["name"]: StageRecord(**r) for r in self._read("stages.json")}
        self._content: list[dict[str, Any]] = self._read("content.json")
        self._fresh: set[tuple[str, str]] = set()  # content added by this process
        self._metrics = Metrics(self.folder / "metrics.jsonl")
        self._metrics.keep(lambda line: line.get("stage") is not None)  # code between stages runs again
        self._sinks: list[Sink] = []
        if self._track:
            self._sinks.append(open_sink(self._track, self.folder, self.recipe.slug(), self.config))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in self._sinks:
            sink.close()
        self._metrics.close()
        self._lock.close()

    def finish(self) -> None:
        """Forget what an earlier configuration has left: stages not visited, content not added again."""
        for name in self._records.keys() - set(self._used):
            self._forget(name)
        self._records = {name: self._records[name] for name in self._used if name in self._records}
        self._save_records()
        self._content = [
            item for item in self._content if item["stage"] is not None or (item["kind"], item["name"]) in self._fresh
        ]
        self._save_content()

    # --- what a recipe writes ------------------------------------------------------------------------------------

    def stage(self, name: str, **inputs: Any) -> Stage:
        """A named, timed stage; done stages with the same inputs are skipped when a run is resumed.

        `inputs` are the values (JSON, dataclasses, paths) the stage depends on; without any it depends on every field
        of the recipe. It also depends on all stages before it: when one is run again, so is it. A path counts by its
        name; what the file holds is not looked at. To depend on the content of a file that no stage of this run
        writes, give `core.hashing.file_digest(path)`.
        """
        if not _NAME.fullmatch(name) or name.split("/")[0] in _TAKEN:
            raise ConfigError(f"stage name {name!r}", fix="use letters, digits, _ . - and / for a group")
        if name in self._used:
            raise ConfigError(f"two stages are called {name!r}", where=self.recipe.slug(), fix="give each its own name")
        if any(f"{a}/".startswith(f"{b}/") for other in self._used for a, b in ((name, other), (other, name))):
            raise ConfigError(f"stages {name!r} and another share a folder", where=self.recipe.slug())
        self._used.append(name)
        known = as_json(inputs, f"inputs of stage {name!r}") if inputs else self.config
        self._chain = digest([name, known, self._chain])
        old = self._records.get(name)
        if old is not None and (old.key != self._chain or self._rerun):
            self._forget(name)
            old = None
        record = old or StageRecord(name, self._chain)
        self._rerun = record.state != "done"  # from here on, since `done` needs all before it to be done
        return Stage(self, record, todo=self._rerun)

    def log(self, step: int, **values: Any) -> None:
        """Append numbers (or short strings) of one step to `metrics.jsonl` and to the trackers in use."""
        if self._trim is not None:  # the stage resumes at `step`: what it had logged from there on is repeated now
            stage, self._trim = self._trim, None
            self._metrics.keep(lambda line: line["stage"] != stage or line["step"] < step)
        line = self._metrics.append(step, self._stage, values)
        numbers = {k: float(line[k]) for k in values if isinstance(line[k], (int, float))}
        for sink in self._sinks:
            sink.log(step, {f"{self._stage}/{k}" if self._stage else k: v for k, v in numbers.items()})

    def metrics(self, name: str | None = None, stage: str | None = None) -> list[Line]:
        """Logged lines, also those of stages done before a resume; only those with value `name`, of `stage`."""
        return [
            line
            for line in self._metrics.lines()
            if (name is None or name in line) and (stage is None or line["stage"] == stage)
        ]

    def figure(self, name: str, figure: Figure | str, caption: str = "") -> None:
        """Keep a matplotlib figure (or SVG text) as `figures/<name>.svg` and show it in the report."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"figure name {name!r}", fix="use letters, digits, _ . - and / for a group")
        svg = figures.to_svg(figure, name, printable(caption))
        file = self.folder / "figures" / f"{name}.svg"
        with atomic_file(file, "w") as out:
            out.write(svg)
        self._add("figure", name, caption, file=f"figures/{name}.svg")

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> None:
        """Show a table in the report. Numbers are aligned right; None is shown as a dash."""
        rows = [[printable(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
        for row in rows:
            if len(row) != len(columns):
                raise ConfigError(f"table {name!r}: a row of {len(row)} values for {len(columns)} columns")
        self._add("table", name, caption, columns=list(columns), rows=as_json(rows, f"table {name!r}"))

    def text(self, name: str, text: str, caption: str = "") -> None:
        """Show a text in the report, as it is (line breaks kept, nothing interpreted)."""
        self._add("text", name, caption, text=printable(text))

    def samples(self, name: str, pairs: Iterable[tuple[str, str]], caption: str = "") -> None:
        """Show prompts with their completions in the report."""
        self._add("samples", name, caption, pairs=[[printable(a), printable(b)] for a, b in pairs])

    def artefact(self, path: Path | str, caption: str = "") -> None:
        """Name a file or folder as a product of the run; the report lists it with its size."""
        path = Path(path)
        if not path.exists():
            raise ConfigError("no such artefact", where=path)
        inside = path.resolve().is_relative_to(self.folder.resolve())
        shown = path.resolve().relative_to(self.folder.resolve()) if inside else path
        self._add("artefact", str(shown), caption, bytes=size(path))

    # --- what the report reads -----------------------------------------------------------------------------------

    @property
    def content(self) -> list[dict[str, Any]]:
        """Figures, tables, texts, samples and artefacts, in the order they were first added."""
        return list(self._content)

    @property
    def stages(self) -> list[StageRecord]:
        """Records of the stages this run has visited, in order."""
        return [self._records[name] for name in self._used if name in self._records]

    # --- inside --------------------------------------------------------------------------------------------------

    def _check_folder(self, changed: bool) -> None:
        """Refuse a folder that holds something else."""
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise ConfigError("is a file, not a run folder", where=self.folder, fix="choose another --out")
        if not (self.folder / "config.yaml").exists():
            if any(not entry.name.startswith(".") for entry in self.folder.iterdir()):  # .lock, temporary files
                raise ConfigError(
                    "is not empty and not a run folder (no config.yaml)", where=self.folder, fix="choose another --out"
                )
            return
        theirs = load_yaml(self.folder / "config.yaml")
        slug = theirs.pop("recipe", None)
        theirs.pop("preset", None)
        if slug != self.recipe.slug():
            raise ConfigError(
                f"holds a run of {slug!r}, not of {self.recipe.slug()!r}", where=self.folder, fix="choose another --out"
            )
        if not changed and (difference := differences(theirs, self.config)):
            raise ConfigError(
                f"holds a run with another configuration: {'; '.join(difference)}",
                where=self.folder,
                fix="choose another --out, or --resume this folder to rerun the stages that the change touches",
            )

    def _read(self, name: str) -> Any:
        return read_json(self.folder / name) if (self.folder / name).exists() else []

    def _enter(self, record: StageRecord, todo: bool) -> None:
        if self._stage is not None:
            raise ConfigError(f"stage {record.name!r} inside stage {self._stage!r}", fix="close the first one before")
        self._stage = record.name
        if not todo:
            self._say(f"{record.name}: done before, skipped")
            return
        for stale in ("claims.json", "report.html"):  # they tell of results that are about to change
            (self.folder / stale).unlink(missing_ok=True)
        if record.attempts:
            self._trim = record.name
        record.attempts += 1
        record.state = "running"
        self._records[record.name] = record
        self._content = [item for item in self._content if item["stage"] != record.name]
        self._save_records()
        self._say(f"{record.name} …" if record.attempts == 1 else f"{record.name} … (taken up again)")

    def _leave(self, record: StageRecord, todo: bool) -> None:
        self._stage = self._trim = None
        if not todo:
            return
        self._save_records()
        if record.state == "done":
            self._say(f"{record.name}: {duration(record.seconds)}, peak {record.peak_bytes / 2**30:.2f} GiB")

    def _forget(self, name: str) -> None:
        """Remove every trace of a stage that has to be done from the start."""
        self._records.pop(name, None)
        remove(self.folder / name)
        self._metrics.keep(lambda line: line["stage"] != name)
        self._content = [item for item in self._content if item["stage"] != name]
        self._save_records()
        self._save_content()

    def _save_records(self) -> None:
        write_json(self.folder / "stages.json", [record.to_dict() for record in self._records.values()])

    def _save_content(self) -> None:
        write_json(self.folder / "content.json", self._content)

    def _add(self, kind: str, name: str, caption: str, **data: Any) -> None:
        item = {"kind": kind, "name": name, "caption": printable(caption), "stage": self._stage, **data}
        for index, other in enumerate(self._content):
            if (other["kind"], other["name"]) == (kind, name):
                self._content[index] = item
                break
        else:
            self._content.append(item)
        self._fresh.add((kind, name))
        self._save_content()

    def _say(self, line: str) -> None:
        if not self.quiet:
            print(f"[{self.recipe.slug()}] {line}", file=sys.stderr, flush=True)


def new_folder(slug: str, root: Path | str = "runs") -> Path:
    """A run folder name that does not exist yet: `runs/<slug>/<time>`."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder, number = Path(root) / slug / stamp, 2
    while folder.exists():
        folder, number = folder.with_name(f"{stamp}-{number}"), number + 1
    return folder


def differences(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> list[str]:
    """`field: there A, here B` for every field in which two configurations differ."""
    found = []
    for key in [*ours, *(k for k in theirs if k not in ours)]:
        there, here = theirs.get(key), ours.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            found += differences(there, here, f"{prefix}{key}.")
        elif there != here or (key in theirs) != (key in ours):
            found.append(f"{prefix}{key} is {there!r} there, {here!r} here")
    return found


def printable(text: str) -> str:
    """`text` with what neither JSON nor HTML can carry (control characters, half surrogates) as U+FFFD."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )
