"""Tables of what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

Results = dict[str, Any]  # what speed.py writes
Table = list[list[str]]

COLUMNS = ["library", "posterior", "form", "ms", "/ first", "/ peer", "MiB", "MiB / first"]
PEERS = {
    "reparameterization": "bayesian-torch reparameterization",
    "flipout": "bayesian-torch flipout",
    "LRT": "bensemble LRT",
}
# Workload, contender, what it is compared with, the largest ratio of their medians.
AIMS = [
    *(
        ("mlp", f"pyro_bnn {q} {form}", PEERS[q], aim)
        for form in ("standalone", "standalone, fused Adam")
        for q, aim in {"reparameterization": 0.7, "flipout": 0.75, "LRT": 0.8}.items()
    ),
    ("conv", "pyro_bnn reparameterization standalone", PEERS["reparameterization"], 1.0),
    ("conv", "pyro_bnn flipout standalone", PEERS["flipout"], 0.75),
    ("lstm", "pyro_bnn reparameterization standalone", PEERS["reparameterization"], 0.1),
    ("lstm", "pyro_bnn flipout standalone", PEERS["flipout"], 0.25),
    *(
        ("mlp", f"pyro_bnn {q} SVI.step", "Pyro AutoNormal SVI.step", aim)
        for q, aim in {"reparameterization": 0.45, "flipout": 0.5, "LRT": 0.5}.items()
    ),
    ("mlp", "pyro_bnn LRT standalone", "torch deterministic", 2.5),
    ("mlp", "pyro_bnn reparameterization standalone", "torch deterministic", 2.5),
    ("predict", "pyro_bnn LRT Predictive", "Pyro LRT of pyro_bnn Predictive", 0.1),
    ("predict", "pyro_bnn LRT Predictive", "pyro_bnn LRT Predictive, loop", 0.1),
    ("predict-conv", "pyro_bnn LRT Predictive", "pyro_bnn LRT Predictive, loop", 1.0),
]
MEMORY_AIMS = [
    ("wide", f"pyro_bnn reparameterization {form}", PEERS["reparameterization"], 0.6)
    for form in ("standalone", "standalone, fused Adam")
]


def ratio(contenders: Results, name: str, other: str | None, key: str = "median") -> float | None:
    """One contender's time or memory to another's, if both were measured."""
    values = [contenders.get(n or "", {}).get(key) for n in (name, other)]
    return None if None in values else values[0] / values[1]


def aims(results: Results) -> Table:
    rows = [["workload", "contender", "compared with", "of", "aim", "measured", ""]]
    for quantity, key, entries in (
        ("time", "median", AIMS),
        ("peak memory", "memory", MEMORY_AIMS),
    ):
        for workload, name, other, aim in entries:
            if workload not in results["workloads"]:
                continue
            contenders = results["workloads"][workload]["contenders"]
            measured = ratio(contenders, name, other, key)
            verdict = "-" if measured is None else "met" if measured <= aim else "missed"
            cell = "-" if measured is None else f"{measured:.3f}"
            rows.append([workload, name, other, quantity, f"{aim:g}", cell, verdict])
    return rows


def workload_table(workload: Results) -> tuple[Table, list[str]]:
    """A table with a row for each contender, and its footnotes."""
    contenders: Results = workload["contenders"]
    baseline = next(iter(contenders))
    notes: list[str] = []
    rows = [COLUMNS]
    for name, result in contenders.items():
        cells = [result["library"], result["posterior"], result["form"]]
        if "reason" in result:
            if result["reason"] not in notes:
                notes.append(result["reason"])
            cells += [f"- [{notes.index(result['reason']) + 1}]", *4 * ["-"]]
        else:
            peer = _peer(contenders, result)
            cells += [
                f"{result['median']:.2f}",
                _cell(ratio(contenders, name, baseline)),
                _cell(ratio(contenders, name, peer)),
                f"{result['memory'] / 2**20:.1f}",
                _cell(ratio(contenders, name, baseline, "memory")),
            ]
        rows.append(cells)
    return rows, [f"[{i}] {note}" for i, note in enumerate(notes, 1)]


def text(results: Results) -> str:
    return "\n".join(_sections(results, "{}\n", _aligned))


def markdown(results: Results) -> str:
    return "\n".join(_sections(results, "### {}\n", _pipes))


def _sections(results: Results, heading: str, table: Any) -> Iterator[str]:
    for key, value in results["header"].items():
        yield f"- {key}: {value}"
    yield ""
    aimed = aims(results)
    if len(aimed) > 1:
        yield heading.format("Aims")
        yield from table(aimed)
    for name, workload in results["workloads"].items():
        yield ""
        yield heading.format(f"{name}: {workload['title']}")
        rows, notes = workload_table(workload)
        yield from table(rows)
        if notes:
            yield ""
            yield "; ".join(notes)


def _peer(contenders: Results, result: Results) -> str | None:
    """Whom a contender of ours is compared with: another library with the same posterior."""
    if result["library"] != "pyro_bnn" or result["posterior"] not in PEERS:
        return None
    if result["form"] in ("ELBO module", "SVI.step"):
        forms = ("SVI.step", "ELBO module")
        names = [f"Pyro AutoNormal {form}" for form in forms]
        return next((name for name in names if name in contenders), None)
    if result["form"].startswith("Predictive"):
        return "bensemble LRT loop"
    return PEERS[result["posterior"]]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _aligned(rows: Table) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(_padded(row, widths)).rstrip()


def _padded(row: list[str], widths: list[int]) -> Iterable[str]:
    for cell, width in zip(row, widths, strict=True):
        yield cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)


def _pipes(rows: Table) -> Iterator[str]:
    for i, row in enumerate(rows):
        yield "| " + " | ".join(row) + " |"
        if i == 0:
            yield "|" + len(row) * " --- |"
