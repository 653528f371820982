"""Claims, tables and figures of the ByteCheckpoint recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

from bloomery.lab import Claim, figures

if TYPE_CHECKING:
    from bloomery.lab import Run

PAPER = "arXiv:2407.20143"
TIMED = ("FSDP2", "DDP")
KINDS = {"sync": "save", "stall": "stall", "durable": "until durable", "load": "load"}
NONE = -1e-12  # the margin of a claim that two values are equal
OURS, DCP = "ours", "DCP"


def claims(found: Mapping[str, Any]) -> Iterator[Claim]:
    """What is claimed, from what the stages have found."""
    yield from _reshard(found["reshard"])
    for layout in TIMED:
        yield from _times(layout, found[layout])
    yield from _balance(found["plans"]["balance"])
    reads = found["reads"]
    share = {name: reads[name] / reads["state"] for name in (OURS, DCP)}
    yield _claim(
        f"{reads['readers']} replicas read every byte of a checkpoint once, DCP each for itself",
        share[OURS], share[DCP], "lower", 0.9 * (reads["readers"] - 1), "bytes read over bytes of the state", DCP,
        f"counted by the system; {reads['received'] / reads['state']:.2f} times the state goes from rank to rank",
    )  # fmt: skip
    flat = found["irregular"]
    yield _claim(
        f"Storable pieces of a flat buffer of {flat['bytes'] / 1e6:.0f} MB are found faster than by gathering it",
        median(flat["all_gather"]) / median(flat["ours"]), 10, "higher", 0.0, "times faster", "limit",
        f"nothing is sent, where all-gather brings {flat['communicated'] / 1e6:.0f} MB to every rank; "
        f"{flat['tensors']} tensors, {flat['boxes']} boxes on {flat['ranks']} ranks",
    )  # fmt: skip
    yield from _plans(found["plans"])
    yield from _crashes(found["kills"]["trials"], found["flips"])


def _reshard(found: Mapping[str, Any]) -> Iterator[Claim]:
    cells = [(target, source, cell) for target, row in found["pairs"].items() for source, cell in row.items()]
    exact = sum(not cell["different"] and cell["queue"] for *_, cell in cells)
    same = sum(followed(found, *cell) for cell in cells)
    tensors = sum(cell["tensors"] for *_, cell in cells)
    steps = len(cells[0][2]["losses"])
    yield _claim(
        "A state saved in any layout loads into any other bit by bit",
        exact / len(cells), 1, "higher", NONE, "share of pairs", "all",
        f"{len(cells)} pairs of layouts, {tensors} tensors, and the data queue without loss or repetition",
    )  # fmt: skip
    yield _claim(
        f"… and the next {steps} steps have the losses they would have had",
        same / len(cells), 1, "higher", NONE, "share of pairs", "all",
        "to the bit: those of the same layout when the state is handed over without a file, and for a run that stays "
        "in its layout those of the run that was never interrupted",
    )  # fmt: skip


def followed(found: Mapping[str, Any], target: str, source: str, cell: Mapping[str, Any]) -> bool:
    """Whether the losses after loading are the expected ones."""
    expected = [cell["handed_over"]] + ([found["uninterrupted"][source]] if source == target else [])
    return all(cell["losses"] == losses for losses in expected)


def _times(layout: str, found: Mapping[str, Any]) -> Iterator[Claim]:
    size = found["local_bytes"] / 1e6
    what = f"{found['world']} ranks, {size:,.0f} MB on each, {layout}"
    ours, dcp = ({kind: median(found[name][kind]) for kind in KINDS} for name in (OURS, DCP))
    spread = f"medians of {len(found[OURS]['sync'])} rounds in turns"
    yield _claim(
        f"An asynchronous save holds training up a fifth as long as a synchronous one ({layout})",
        ours["sync"] / ours["stall"], 5, "higher", 0.0, "times shorter", "limit",
        f"{what}: {ours['stall']:.3f} s against {ours['sync']:.3f} s; DCP {dcp['stall']:.3f} s and {dcp['sync']:.3f} s",
    )  # fmt: skip
    yield _claim(
        f"An asynchronous save holds training up for less time than DCP's ({layout})",
        ours["stall"], dcp["stall"], "lower", 0.0, "s", DCP, f"{what}; {spread}",
    )  # fmt: skip
    for kind in ("sync", "load"):
        yield _claim(
            f"A {'synchronous save' if kind == 'sync' else 'load'} takes at most 0.8 of DCP's time ({layout})",
            ours[kind] / dcp[kind], 0.8, "lower", 0.0, "of DCP's time", "limit",
            f"{what}: {ours[kind]:.3f} s against {dcp[kind]:.3f} s; {spread}, both flushed, caches warm",
        )  # fmt: skip
    if layout == TIMED[0]:
        yield _claim(
            "An asynchronous save needs no more than 1.1 times a rank's state in memory",
            found[OURS]["memory"], 1.1, "lower", 0.0, "of the state", "limit",
            f"{what}: peak resident memory of the first save less that before; DCP {found[DCP]['memory']:.2f}",
        )  # fmt: skip


def _balance(found: Mapping[str, Any]) -> Iterator[Claim]:
    note = f"uncut tensors {found['uncut']['ratio']:.3f}, all on the lowest rank {found['lowest rank']['ratio']:.2f}"
    ratio = {name: found[name]["ratio"] for name in (OURS, DCP)}
    text = "busiest of 4 ranks over the mean"
    yield _claim("Replicas are written evenly", ratio[OURS], 1.05, "lower", 0.0, text, "limit", note)
    yield _claim("… more evenly than by DCP", ratio[OURS], ratio[DCP], "lower", 0.0, text, DCP, "")


def _plans(found: Mapping[str, Any]) -> Iterator[Claim]:
    many, large, dcp = found["many"], found["large"], found["DCP"]
    yield _claim(
        "A plan that is known costs a fiftieth of a new one",
        many["cached"] / many["first"], 0.02, "lower", 0.0, "of the first", "limit",
        f"{many['tensors']:,} tensors on {many['ranks']} ranks, on the first rank: {many['first']:.3f} s, then "
        f"{1000 * many['cached']:.2f} ms. DCP with its cache, tensors that all hold: {dcp['first']:.3f} s, then "
        f"{1000 * dcp['cached']:.1f} ms",
    )  # fmt: skip
    note = (
        f"{large['ranks']:,} simulated ranks, {large['tensors']:,} tensors of {large['bytes'] / 1e12:.2f} TB in "
        f"{large['chunks']:,} chunks; a rank's own part {large['local']:.3f} s, then {1000 * large['cached']:.2f} ms"
    )
    text = "The first plan of a 405B run is made in 10 seconds"
    yield _claim(text, large["first"], 10, "lower", 0.0, "s", "limit", note)
    yield _claim("… and the next costs a rank 0.1 s", large["cached"], 0.1, "lower", 0.0, "s", "limit", "")


def _crashes(trials: list[Mapping[str, Any]], flips: Mapping[str, Mapping[str, int]]) -> Iterator[Claim]:
    lost = [
        trial for trial in trials if trial["wrong"] or trial["latest"] is None or trial["latest"] < trial["reported"]
    ]
    yield _claim(
        "A job that is killed while it saves loses nothing that was committed",
        len(lost), 0, "lower", NONE, "jobs", "none",
        f"{len(trials)} jobs of two ranks, one or both of them killed by SIGKILL; "
        f"{sum(len(trial['accepted']) for trial in trials)} checkpoints were read and compared in full",
    )  # fmt: skip
    total = sum(flips[OURS].values())
    yield _claim(
        "A flipped bit is never loaded",
        flips[OURS]["wrong"], 0, "lower", NONE, "flips", "none",
        f"{flips[OURS]['refused']} of {total} refused; DCP refuses {flips['dcp']['refused']} and loads "
        f"{flips['dcp']['wrong']} as other numbers",
    )  # fmt: skip


def _claim(
    statement: str, ours: float, baseline: float, better: Any, margin: float, unit: str, name: str, note: str
) -> Claim:
    return Claim(
        statement=statement, paper=PAPER, ours={0: ours}, baseline={0: baseline}, better=better, margin=margin,
        unit=unit, names=(OURS, name), note=note,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- the report


def show(run: Run, found: Mapping[str, Any]) -> None:
    """Tables of everything that was measured, and how long training is held up."""
    _show_reshard(run, found["reshard"])
    for layout in TIMED:
        _show_times(run, layout, found[layout])
    rows: list[list[Any]] = [
        [name, values["largest"] / 1e6, values["total"] / 4e6, round(values["ratio"], 4)]
        for name, values in found["plans"]["balance"].items()
    ]
    run.table("balance", ["rule", "busiest rank, MB", "mean, MB", "ratio"], rows, "A state that four ranks all hold.")
    reads = found["reads"]
    rows = [[name, reads[name] / 1e6, round(reads[name] / reads["state"], 3)] for name in (OURS, DCP)]
    caption = f"{reads['readers']} replicas load a state of {reads['state'] / 1e6:.0f} MB."
    run.table("reads", ["library", "read by all ranks, MB", "over the state"], rows, caption)
    flips = found["flips"]
    rows = [[name, *(flips[key][kind] for kind in ("refused", "wrong", "unchanged"))] for name, key in
            ((OURS, OURS), (DCP, "dcp"))]  # fmt: skip
    run.table("flips", ["library", "refused", "other numbers", "no effect"], rows, "One bit turned over at a time.")


def _show_reshard(run: Run, found: Mapping[str, Any]) -> None:
    sources = list(found["uninterrupted"])
    rows = []
    for target, row in found["pairs"].items():
        cells = []
        for source in sources:
            cell = row[source]
            exact = "bits" if not cell["different"] and cell["queue"] else f"{len(cell['different'])} tensors differ"
            cells.append(exact + (", losses" if followed(found, target, source, cell) else ", other losses"))
        rows.append([target, *cells])
    caption = "Saved in the layout of the column, loaded in that of the row: what is equal."
    run.table("resharding", ["loaded in", *sources], rows, caption)


def _show_times(run: Run, layout: str, found: Mapping[str, Any]) -> None:
    names = [name for name in found if isinstance(found[name], dict)]
    rows = []
    for name in names:
        seconds = [median(found[name][kind]) for kind in KINDS]
        slowdown = median(found[name]["slowdown"]) if found[name]["slowdown"] else None
        memory = found[name]["memory"] if layout == TIMED[0] else None
        rows.append([name, *(round(s, 4) for s in seconds), None if memory is None else round(memory, 2),
                     None if slowdown is None else round(slowdown, 2)])  # fmt: skip
    columns = ["library", *(f"{text}, s" for text in KINDS.values()), "memory over state", "step while writing"]
    missing = f" Not installed: {', '.join(found['missing'])}." if found["missing"] else ""
    caption = (
        f"{found['world']} ranks, {found['local_bytes'] / 1e6:,.0f} MB on each, {layout}; medians of the slowest "
        "rank. Stall: until training may go on. Step: time of a small product beside the writing, over its time alone."
        f"{missing}"
    )
    run.table(f"times-{layout}", columns, rows, caption)
    bars = {
        f"{name} {text}": dict(enumerate(found[name][kind]))
        for kind, text in (("sync", "save"), ("stall", "stall"))
        for name in names
    }
    run.figure(f"stall-{layout}", figures.bars(bars, y="seconds"), f"Synchronous saves, and stalls, {layout}.")
