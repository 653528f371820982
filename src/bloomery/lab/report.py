"""`report.html`: one file that tells what was claimed, what came out, how, and where. Opens offline, prints well.

Every value that is shown goes through `escape`; samples are text written by a model and are never trusted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from bloomery.core.config import load_yaml
from bloomery.core.files import atomic_file, read_json
from bloomery.lab.claim import Claim
from bloomery.lab.folder import Run, duration
from bloomery.lab.style import STYLE


@dataclass(frozen=True)
class Report:
    """Everything a report shows, read back from a run folder."""

    folder: Path
    summary: dict[str, Any]  # claims.json
    config: dict[str, Any]
    environment: dict[str, Any]
    stages: list[dict[str, Any]]
    content: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path | str) -> Report:
        """Collect the parts of a finished run."""
        folder = Path(folder)
        return cls(
            folder=folder,
            summary=read_json(folder / "claims.json"),
            config=load_yaml(folder / "config.yaml"),
            environment=read_json(folder / "env.json"),
            stages=read_json(folder / "stages.json"),
            content=read_json(folder / "content.json"),
        )

    @staticmethod
    def write(run: Run | Path | str) -> Path:
        """Write `report.html` of a finished run into its folder."""
        folder = run.folder if isinstance(run, Run) else Path(run)
        with atomic_file(folder / "report.html", "w") as file:
            file.write(Report.read(folder).html())
        return folder / "report.html"

    def html(self) -> str:
        """The page."""
        claims = [Claim.from_dict(claim) for claim in self.summary["claims"]]
        files = [item for item in self.content if item["kind"] == "artefact"]
        results = [item for item in self.content if item["kind"] != "artefact"]
        title = f"{self.summary['recipe']} · {self.summary['preset']}"
        parts = [
            self._header(claims),
            _section("Claims", [_claim(claim) for claim in claims]),
            _section("Results", [self._item(item) for item in results]),
            _section("Stages", [_panel(_stages(self.stages))] if self.stages else []),
            _section("Files", [_panel(_files(files))] if files else []),
            _section("Configuration", [_panel(_list(self.config))]),
            _section("Environment", [self._environment()]),
        ]
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<link rel="icon" href="data:,">\n'
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
            + "\n".join(part for part in parts if part)
            + f"\n<footer>Written by bloomery from {escape(self.folder.name)}; the same folder holds the metrics, "
            "the configuration and every figure as a file.</footer>\n</main>\n</body>\n</html>\n"
        )

    def _header(self, claims: Sequence[Claim]) -> str:
        summary = self.summary
        kicker = (
            f"<b>{escape(summary['stage'])}</b> · preset {escape(summary['preset'])} · {escape(summary['finished'])}"
        )
        peak = max((stage["peak_bytes"] for stage in self.stages), default=0)
        facts = [duration(summary["seconds"]), f"peak memory {_bytes(peak)}" if peak else "", _seeds(claims)]
        note = ""
        if summary["preset"] == "smoke":
            note = "The smoke preset checks that everything runs; it is too small to judge claims."
            note = f'<p class="small soft">{note}</p>'
        return (
            f'<header>\n<p class="kicker">{kicker}</p>\n<h1>{escape(summary["recipe"])}</h1>\n'
            f'<p class="lead">{escape(summary["summary"])}</p>\n<p class="small">{_paper(summary["paper"])}</p>\n'
            f'<div class="verdict">{_verdict(claims, summary["preset"])}<span class="soft small">'
            f"{escape(' · '.join(fact for fact in facts if fact))}</span></div>\n{note}</header>"
        )

    def _environment(self) -> str:
        machine = {name: value for name, value in self.environment.items() if name != "packages"}
        packages = _list(self.environment.get("packages", {}))
        return _panel(_list(machine) + f"<details><summary>Package versions</summary>{packages}</details>")

    def _item(self, item: dict[str, Any]) -> str:
        heading = f"<h3>{escape(_words(item['name']))}</h3>"
        caption = f"<span>{escape(item['caption'])}</span>" if item["caption"] else ""
        if item["kind"] == "figure":
            body = (self.folder / item["file"]).read_text(encoding="utf-8")  # checked when it was written
        elif item["kind"] == "table":
            body = _table(item["columns"], item["rows"], _words(item["name"]))
        elif item["kind"] == "samples":
            body = "".join(_sample(prompt, completion) for prompt, completion in item["pairs"])
        else:
            body = f'<pre class="text">{escape(item["text"])}</pre>'
        return f'<figure class="panel">\n<figcaption>{heading}{caption}</figcaption>\n{body}</figure>'


def _section(title: str, blocks: Iterable[str]) -> str:
    body = "\n".join(blocks)
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def _verdict(claims: Sequence[Claim], preset: str) -> str:
    """All claims in one badge; without a colour for the smoke preset, which cannot judge them."""
    if not claims:
        return '<span class="badge">no claims</span>'
    held, total = sum(claim.passes for claim in claims), len(claims)
    if held == total:
        css, text = "good", "✓ The claim holds" if total == 1 else f"✓ All {total} claims hold"
    else:
        css, text = "bad", "✗ The claim does not hold" if total == 1 else f"✗ {held} of {total} claims hold"
    return f'<span class="badge {"" if preset == "smoke" else css}">{text}</span>'


def _seeds(claims: Sequence[Claim]) -> str:
    counts = sorted({len(claim.seeds) for claim in claims})
    return " and ".join("1 seed" if n == 1 else f"{n} seeds" for n in counts)


def _claim(claim: Claim) -> str:
    places = _places(claim)
    badge = (
        '<span class="badge good">✓ holds</span>' if claim.passes else '<span class="badge bad">✗ does not hold</span>'
    )
    seeds = _seeds([claim])
    spread = f"± {claim.spread:.{places}f} (std, {seeds})" if len(claim.seeds) > 1 else f"({seeds}, spread unknown)"
    note = f'<p class="small">{escape(claim.note)}</p>' if claim.note else ""
    ours, baseline = claim.names
    rows = [
        [
            seed,
            *(f"{v:.{places}f}" for v in (claim.ours[seed], claim.baseline[seed])),
            f"{claim.gains[seed]:+.{places}f}",
        ]
        for seed in claim.seeds
    ]
    unit = f" [{claim.unit}]" if claim.unit else ""
    table = _table(["seed", f"{ours}{unit}", f"{baseline}{unit}", "gain"], rows, "values by seed")
    return (
        f'<article class="panel claim">\n<header><h3>{escape(claim.statement)}</h3>{badge}</header>\n'
        f'<p class="small soft">{_paper(claim.paper)}</p>\n<div class="body">\n'
        f'<div><div class="gain">{claim.gain:+.{places}f} <small>{escape(claim.unit)}</small></div>'
        f'<p class="small soft">mean gain {spread}<br>'
        f"margin {claim.margin:.{places}f}, {claim.better} is better</p></div>\n"
        f"{_dots(claim, places)}\n</div>\n{note}<details><summary>Values by seed</summary>{table}</details>\n</article>"
    )


def _dots(claim: Claim, places: int) -> str:
    """Both sides on one scale, a dot for each seed and a mark at the mean."""
    values = [*claim.ours.values(), *claim.baseline.values()]
    low, span = min(values), max(values) - min(values) or 1.0
    rows = []
    for css, name, side in (("ours", claim.names[0], claim.ours), ("base", claim.names[1], claim.baseline)):
        mean = sum(side.values()) / len(side)
        dots = "".join(
            f'<i style="left:{_at(side[seed], low, span)}" title="seed {seed}: {side[seed]:.{places}f}"></i>'
            for seed in claim.seeds
        )
        mark = f'<span class="mean" style="left:{_at(mean, low, span)}"></span>'
        rows.append(
            f'<span class="name">{escape(name)}</span><span class="track {css}" aria-hidden="true">{mark}{dots}</span>'
            f'<span class="value">{mean:.{places}f}</span>'
        )
    return f'<div class="dots">{"".join(rows)}</div>'


def _at(value: float, low: float, span: float) -> str:
    return f"{4 + 92 * (value - low) / span:.2f}%"


def _places(claim: Claim) -> int:
    """Decimal places that show the gain, the margin and the spread with two or three digits."""
    scale = min((abs(v) for v in (claim.gain, claim.margin, claim.spread) if v), default=1.0)
    return min(max(1 - math.floor(math.log10(scale)), 0), 6)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], label: str) -> str:
    numeric = [
        bool(rows) and all(row[i] is None or _is_number(row[i]) for row in rows) for i in range(len(columns))
    ]  # fmt: skip
    css = [' class="num"' if flag else "" for flag in numeric]
    head = "".join(f'<th scope="col"{c}>{escape(name)}</th>' for name, c in zip(columns, css, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{c}>{escape(_cell(v))}</td>" for v, c in zip(row, css, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _sample(prompt: str, completion: str) -> str:
    return (
        f'<div class="sample"><pre class="prompt">{escape(prompt)}</pre>'
        f'<pre class="completion">{escape(completion)}</pre></div>'
    )


def _stages(stages: Sequence[dict[str, Any]]) -> str:
    longest = max(stage["seconds"] for stage in stages) or 1.0
    gpu = any(stage["gpu_peak_bytes"] for stage in stages)
    rows = []
    for stage in stages:
        again = " (taken up again)" if stage["attempts"] > 1 else ""
        memory = f'<td class="num">{_bytes(stage["peak_bytes"])}</td>'
        memory += f'<td class="num">{_bytes(stage["gpu_peak_bytes"])}</td>' if gpu else ""
        rows.append(
            f'<tr><th scope="row">{escape(stage["name"])}<span class="soft">{again}</span></th>'
            f'<td class="bar"><span class="share" style="width:{100 * stage["seconds"] / longest:.1f}%"></span></td>'
            f'<td class="num">{duration(stage["seconds"])}</td>{memory}</tr>'
        )
    extra = '<th scope="col" class="num">GPU memory</th>' if gpu else ""
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="stages"><table><thead><tr>'
        '<th scope="col">stage</th><th scope="col"></th><th scope="col" class="num">time</th>'
        f'<th scope="col" class="num">peak memory</th>{extra}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def _files(files: Sequence[dict[str, Any]]) -> str:
    rows = []
    for item in files:
        name = escape(item["name"])
        path = Path(item["name"])
        link = name if path.is_absolute() else f'<a href="{escape(path.as_posix())}">{name}</a>'
        rows.append(
            f'<tr><th scope="row" class="mono">{link}</th><td>{escape(item["caption"])}</td>'
            f'<td class="num">{_bytes(item["bytes"])}</td></tr>'
        )
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="files"><table><tbody>'
        + "\n".join(rows)
        + "</tbody></table></div>"
    )


def _list(values: dict[str, Any]) -> str:
    pairs = "\n".join(
        f'<div><dt>{escape(name)}</dt><dd class="mono">{escape(_cell(value))}</dd></div>'
        for name, value in _flat(values)
    )
    return f'<dl class="facts">\n{pairs}\n</dl>'


def _panel(body: str) -> str:
    return f'<div class="panel">{body}</div>'


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _paper(paper: str) -> str:
    """The paper as text; an arXiv identifier as a link."""
    found = re.fullmatch(r"arXiv:(\d{4}\.\d{4,5})(.*)", paper)
    if found is None:
        return escape(paper)
    return f'<a href="https://arxiv.org/abs/{found[1]}">arXiv:{found[1]}</a>{escape(found[2])}'


def _words(name: str) -> str:
    text = name.replace("_", " ").replace("-", " ").strip()
    return text[:1].upper() + text[1:]


def _is_number(value: Any) -> bool:
    """Whether a cell is a number, or a number that was formatted before."""
    if isinstance(value, str):
        return re.fullmatch(r"[+−-]?[\d,.]+(e[+-]?\d+)?\s?%?", value) is not None
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(v) for v in value) or "–"
    return str(value) or "–"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit in ("B", "KiB") or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
