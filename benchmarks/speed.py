"""Speed and memory: this library against others and against deterministic networks.

    python benchmarks/speed.py

prints a table, and writes what it measured to a JSON file and a plot. Runs of all contenders of a
workload alternate; times are medians. `--readme` only puts the tables of the JSON file into
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import re
import sys
import warnings
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import plot
import pyro
import report
import torch
from contenders import Contender, contenders
from measure import Step, interleaved, peak_memory
from networks import NotMeasuredError
from workloads import WORKLOADS, Workload

FOLDER = Path(__file__).parent
PACKAGES = ("torch", "pyro-ppl", "bayesian-torch", "bensemble", "torch-uncertainty", "tyxe")
MARKERS = ("<!-- tables -->\n", "<!-- end of tables -->\n")


def measured(
    workload: Workload, chosen: list[Contender], device: str, runs: int | None, seconds: float
) -> dict[str, Any]:
    """What is known of each contender: times and memory, or why it could not take part."""
    results: dict[str, dict[str, Any]] = {}
    steps: dict[str, Step] = {}
    for contender in chosen:
        result = results[contender.name] = {
            "library": contender.library,
            "posterior": contender.posterior,
            "form": contender.form,
        }
        build = partial(built, contender, workload, device)
        try:
            with pyro.get_param_store().scope():
                result["memory"] = peak_memory(build, device, 1 if workload.num_samples else 2)
            with pyro.get_param_store().scope():
                steps[contender.name] = build()
        except Exception as error:
            result["reason"] = reason(error)
    for name, times in interleaved(steps, runs=runs, seconds=seconds).items():
        results[name].update(asdict(times))
    return {"title": workload.title, "contenders": results}


def built(contender: Contender, workload: Workload, device: str) -> Step:
    if workload.needs_gpu and device == "cpu":
        raise NotMeasuredError("needs a GPU")
    pyro.set_rng_seed(0)
    return contender.build(workload, device)


def reason(error: Exception) -> str:
    message = str(error).partition("\n")[0]
    return message if isinstance(error, NotMeasuredError) else f"{type(error).__name__}: {message}"


def header(device: str, threads: int) -> dict[str, str]:
    return {
        **{package: version(package) for package in PACKAGES},
        "Python": platform.python_version(),
        "processor": processor(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": str(threads),
    }


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    found = re.search(r"model name\s*: (.+)", text)
    return found.group(1) if found else platform.processor()


def update_readme(results: dict[str, Any]) -> None:
    path = FOLDER / "README.md"
    start, end = MARKERS
    before, _, rest = path.read_text().partition(start)
    after = rest.partition(end)[2]
    path.write_text(f"{before}{start}\n{report.markdown(results)}\n\n{end}{after}")


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", metavar="PATTERN", help="regular expression, see --list")
    parser.add_argument("--list", action="store_true", help="only print what there is to measure")
    parser.add_argument("--runs", type=int, help="by default, as many as fit in --seconds")
    parser.add_argument("--seconds", type=float, default=20.0, help="for a workload")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device)
    parser.add_argument("--json", type=Path, help="by default, in this folder without --only")
    parser.add_argument("--plot", type=Path, help="likewise")
    parser.add_argument("--readme", action="store_true", help="only put tables into README.md")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "`--device cuda` needs a GPU that torch can use, and torch.cuda.is_available() is "
            "false: run it on a machine with one, with a CUDA build of torch"
        )
    suffix = "" if args.device == "cpu" else f"-{args.device}"
    path: Path | None = args.json or (None if args.only else FOLDER / f"speed{suffix}.json")
    picture: Path | None = args.plot or (None if args.only else FOLDER / f"speed{suffix}.png")
    if args.readme:
        update_readme(json.loads((path or FOLDER / "speed.json").read_text()))
        return

    torch.set_num_threads(args.threads)
    # The C library gives memory back to the system and asks for it again, until it has seen a large
    # block; what comes first would be slower than what comes later.
    torch.empty(7_500_000)
    warnings.simplefilter("ignore")  # of other libraries
    results: dict[str, Any] = {"header": header(args.device, args.threads), "workloads": {}}
    for workload in WORKLOADS:
        chosen = contenders(workload)
        if args.only:
            chosen = [c for c in chosen if re.search(args.only, f"{workload.name} {c.name}")]
        if args.list:
            print(*(f"{workload.name} {c.name}" for c in chosen), sep="\n")
        elif chosen:
            print(f"measuring {workload.name}", file=sys.stderr)
            results["workloads"][workload.name] = measured(
                workload, chosen, args.device, args.runs, args.seconds
            )
            gc.collect()
    if args.list:
        return
    print(report.text(results))
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n")
    if picture is not None:
        plot.draw(results, picture)


if __name__ == "__main__":
    main()
