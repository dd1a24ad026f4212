"""What the verbs print for people: tables and sentences from results.

``--json`` prints the results as they are; nothing here is read by machines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from tailor import catalog
from tailor.progress import table_of, told, wide_console


def result(found: dict[str, Any]) -> None:
    """One run."""
    table([found], None)


def together(found: list[dict[str, Any]]) -> None:
    """The runs of several tasks; what failed is told as the error."""
    if done := [r for r in found if "failed" not in r]:
        table(done, None)


def table(rows: list[dict[str, Any]], out: Path | None) -> None:
    """One line per run; ``out`` is a file that was written beside."""
    shown = Table(
        box=None,
        header_style="bold",
        caption="layers adapted, universal blocks kept; params: one task's network, MACs: one "
        "image, both in backbones; multiple: trunk and this task; all without heads",
        caption_justify="left",
    )
    words = ("run", "task", "method", "stage")
    numbers = ("val", "test", "layers", "blocks", "params", "MACs", "multiple", "bytes")
    for name in (*words, *numbers):
        shown.add_column(name, justify="left" if name in words else "right")
    for r in rows:
        params, macs, blocks = r["params"], r["macs"], r.get("blocks")
        # A row of the report counts blocks, a result lists them; runs of old versions have neither.
        kept = r.get("blocks_kept")
        if isinstance(blocks, list):
            kept, blocks = sum(b["kept"] for b in blocks), len(blocks)
        network = params.get("network")
        shown.add_row(
            *(str(r[word]) for word in words),
            told(r["val"], r["metric"]),
            told(r["test"], r["metric"]),
            "-" if _mixes_blocks(r) else f"{r['layers_adapted']}/{r['layers']}",
            "-" if kept is None or blocks is None else f"{kept}/{blocks}",
            "-" if network is None else f"{network / params['universal']:.3f}",
            f"{macs['student'] / macs['backbone']:.3f}" if macs["backbone"] else "-",
            f"{params['multiple']:.3f}x",
            f"{r['bytes']:,}",
        )
    console = wide_console()
    console.print(shown)
    if out is not None:
        console.print(f"written: {out}", highlight=False, markup=False)


def pruned(found: dict[str, Any]) -> None:
    """The table, and what the rule alone would not explain."""
    table([found], None)
    for word, why in (
        ("excluded", "also removed, because nothing arrives there or leaves"),
        ("reopened", "kept in spite of the rule, because the network was cut apart"),
    ):
        if names := found.get(word):
            print(f"{why}: {', '.join(names)}")


def sweep(found: dict[str, Any]) -> None:
    """Means over seeds, the front of a search, and which trials failed."""
    from tailor.worker import name_of  # with Optuna, which takes a second to import

    console = wide_console()
    done = [t for t in found["trials"] if t["status"] == "done"]
    places = [Path(found["out"]) / run for trial in done for run in trial["runs"]]
    here = [place for place in places if (place / "result.json").exists()]
    if here:
        rows = catalog.load("analysis", "rows", "analysis")
        means = catalog.load("analysis", "table", "analysis")
        frame = means.table(rows.rows(rows.read_runs(here)))
        console.print(table_of(means.cells(frame)))
    if len(here) < len(places):
        console.print(
            f"{len(places) - len(here)} of {len(places)} runs are not here: on other machines, or "
            f"removed (another --study trains them again)"
        )
    front = [t for t in done if t.get("front")]
    for t in sorted(front, key=lambda t: t["params"]):
        time = f", {t['latency']:.2f} ms" if "latency" in t else ""
        console.print(
            f"on the front: {100 * t['val']:.2f} % validation, {100 * t['params']:.2f} % added, "
            f"{t['macs']:.3f} MACs{time}: {name_of(t['point'])}",
            highlight=False,
            markup=False,
        )
    for t in (t for t in found["trials"] if t["status"] == "failed"):
        console.print(f"failed: {name_of(t['point'])}: {t['error']}", highlight=False, markup=False)
    console.print(
        f"{found['done']} of {found['total']} trials done; `tailor report {found['out']} --out "
        f"report.html` shows them",
        highlight=False,
        markup=False,
    )


def measured(r: dict[str, Any]) -> None:
    """What `evaluate` found."""
    said = (
        f"{r['metric']} {100 * r['value']:.2f} % on {r['n']} images of {r['task']} ({r['split']})"
    )
    if "latency" in r:
        time = r["latency"]
        said += (
            f"; {time['ms']:.2f} ms per image, {time['ratio']:.2f}x of the backbone's "
            f"{time['ms_backbone']:.2f} ms (spread {time['spread']:.2f}, one thread)"
        )
    print(f"{r['run']}: {said}")


def scored(found: dict[str, Any]) -> None:
    """Points of each domain, the missing ones, and the place among published results."""
    compared = found["best"] is not None
    shown = Table(box=None, header_style="bold")
    shown.add_column("domain")
    columns = ["accuracy %", "fine-tuning %", "score"]
    columns += ["best published", "behind", "share of loss"] if compared else []
    for title in columns:
        shown.add_column(title, justify="right")
    for name, d in found["domains"].items():
        cells = [f"{d['accuracy']:.2f}", f"{d['baseline']:.2f}", f"{d['score']:.2f}"]
        if compared:
            share = "-" if d["share"] is None else f"{100 * d['share']:.1f} %"
            cells += [f"{d['best']:.2f}", f"{d['lost']:.2f}", share]
        shown.add_row(name, *cells)
    console = wide_console()
    console.print(shown)
    count = len(found["domains"])
    said = [f"score {found['total']:.2f} of {1000 * count} over {count} domains"]
    if found["missing"]:
        said.append(f"missing: {', '.join(found['missing'])}")
    if compared:
        said.append(_standing(found))
        said.append(f"behind: points less than {found['best']}, the best published over all ten")
    if max(d["accuracy"] for d in found["domains"].values()) <= 1:
        said.append("no accuracy is above 1 %: these are percent, not shares")
    if found["sample"]:
        said.append("drawn images: this says that the program runs, not how well a method does")
    for line in said:
        console.print(line, highlight=False, markup=False)


def _standing(found: dict[str, Any]) -> str:
    """The place among the published rows, over the same domains."""
    rows, place = found["published"], found["rank"]
    said = f"place {place} among {len(rows)} published results over these domains"
    if place > 1:
        above = rows[place - 2]
        said += f", behind {above['method']} ({above['total']:.2f})"
    if place <= len(rows):
        below = rows[place - 1]
        said += f", no less than {below['method']} ({below['total']:.2f})"
    return said


def submitted(r: dict[str, Any]) -> None:
    """Where the predictions are, and of which domains."""
    counts = ", ".join(f"{name} {count:,}" for name, count in r["domains"].items())
    print(f"{r['out']}: {r['predictions']:,} predictions ({counts})")
    if r["missing"]:
        print(f"missing: {', '.join(r['missing'])}")


def merged(r: dict[str, Any]) -> None:
    """Where the merged network is, and how it is read."""
    print(f"{r['out']}: {r['backbone']} with {r['classes']} classes, {r['bytes']:,} bytes")
    if not r["timm"]:
        print(
            f"no plain timm model: in Python, tailor.open_run({r['run']!r}).student.merge() builds "
            f"the network that this state dict fits"
        )


def weights(r: dict[str, Any]) -> None:
    """Which network each file belongs to; what it computes, where that was asked."""
    table = Table(box=None, header_style="bold")
    for name in ("File", "Network", "Tensors", "Parameters", "Buffers", "Image", "Output", "Head"):
        table.add_column(name, justify="left" if name in ("File", "Network") else "right")
    for row in (row for row in r["files"] if row["network"]):
        table.add_row(
            Path(row["file"]).name,
            row["network"],
            *(f"{row[name]:,}" for name in ("tensors", "params", "buffers")),
            *("x".join(map(str, row[name])) for name in ("input", "output")),
            f"{row['classes']} classes, {row['head']:,}" if row["classes"] else "-",
        )
    console = wide_console()
    console.print(table)
    for row in r["files"]:
        for line in _computed(row):
            console.print(line, highlight=False, markup=False)
    if r["out"]:
        print(f"{r['out']['file']}: {r['out']['network']}, in our layout")


def _computed(row: dict[str, Any]) -> list[str]:
    name, found = Path(row["file"]).name, row.get("measured")
    if row["network"] is None:
        return [str(row["why"])]
    same = row["same_as"]
    said = [] if same is None else [f"{name}: the same numbers as {Path(same).name}"]
    if found is None:
        return said
    out = found["outputs"]
    said += [
        f"{name}: outputs of {found['n']} images have mean {out['mean']:.3f}, deviation "
        f"{out['std']:.3f} ({out['between']:.3f} between images), {100 * out['zeros']:.0f} % zeros"
    ]
    if "top1" in found:
        said.append(f"{name}: top-1 {100 * found['top1']:.2f} %, if its classes are the task's")
    if (same := found.get("agreement")) is not None:
        best = (
            f"same best class as the teacher for {100 * same['top1']:.1f} % of images "
            f"({100 * same['chance']:.1f} % by chance), KL {same['kl']:.2f} nats, "
            if "top1" in same
            else ""
        )
        said.append(f"{name}: {best}correlation {same['correlation']:.3f}")
    return said


def _mixes_blocks(row: dict[str, Any]) -> bool:
    """Whether the method chooses among blocks, so that no layer is ever adapted."""
    gates = row.get("gates") or []
    return row.get("gated") == "blocks" or any(g["kind"] != "delta" for g in gates)
