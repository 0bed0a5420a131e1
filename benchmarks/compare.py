"""Markdown tables from the JSON files of the benchmarks: ratios, traffic, memory, goals; old against new for two files.

Run it as ``python -m benchmarks.compare FILE.json...``; two files are compared if they are of one allocator regime.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DIRECTIONS = {"forward": "forward", "forward_backward": "forward + backward"}
SEGOPS = "segops"
EAGER = "eager"
MET = "met"


class Goal(NamedTuple):
    case: str
    direction: str
    against: str
    reached: str
    goal: str
    verdict: str


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed")
    options = parser.parse_args(arguments)
    runs = [json.loads(path.read_text()) for path in options.files]
    print("\n\n".join(report(run) for run in runs))
    if len(runs) == 2 and regime(runs[0]) == regime(runs[1]):
        print(f"\n{old_and_new(*runs)}")
    missed = [goal for run in runs for goal in goals(run) if goal.verdict != MET]
    if options.check and missed:
        print(f"{len(missed)} goals missed", file=sys.stderr)
        return 1
    return 0


def regime(run: dict[str, Any]) -> str:
    return run["machine_info"]["segops"]["regime"]


def title(run: dict[str, Any]) -> str:
    """The allocator regime on the CPU, or the device."""
    return regime(run) if "gpu" in run["machine_info"]["segops"] else f"{regime(run)} allocator"


def report(run: dict[str, Any]) -> str:
    """The tables of one run, one operator after the other, and the line that says what they were measured on."""
    parts = []
    for op in dict.fromkeys(b["extra_info"]["op"] for b in run["benchmarks"]):
        records = [b["extra_info"] for b in run["benchmarks"] if b["extra_info"]["op"] == op]
        parts += [f"### {op}, {title(run)}", ratio_table(records)]
        whole = [record for record in records if record.get("network")]
        parts += [absences(records), traffic_table(records), arithmetic_table(records)]
        parts += [network_memory_table(whole)]
        parts.append(memory_table([record for record in records if record not in whole]))
    if found := goals(run):
        parts += ["Goals:", table(Goal._fields, found)]
    return "\n\n".join(part for part in [*parts, provenance(run)] if part)


def ratio_table(records: Sequence[dict[str, Any]]) -> str:
    """Each contender's time as a multiple of segops'; the noise is the largest median over minimum in the row."""
    names = contenders(records)
    header = ["case", "direction", "segops ms", *names, "noise"]
    rows = []
    for record in records:
        found = record["contenders"]
        ratios = [number(found.get(name, {}).get("ratio")) for name in names]
        noise = number(max(c["median"] / c["minimum"] for c in found.values() if "median" in c))
        rows.append([*place(record), milliseconds(found[SEGOPS]["median"]), *ratios, noise])
    return "Time of each contender as a multiple of segops' (medians of interleaved laps):\n\n" + table(header, rows)


def traffic_table(records: Iterable[dict[str, Any]]) -> str:
    """How near segops comes to the bandwidth of a copy, counting only the bytes that any implementation has to move."""
    rows = []
    for record in records:
        if record["copy_bandwidth"]:
            floor, moved, copied = (record[key] for key in ("floor_bytes", "moved_bytes", "copy_bandwidth"))
            for name, contender in record["contenders"].items():
                if contender["group"] == SEGOPS and "median" in contender:
                    reached = floor / contender["median"]
                    numbers = [number(n) for n in (floor / 1e6, moved / 1e6, reached / 1e9, copied / 1e9)]
                    where, direction = place(record)
                    where += name.removeprefix(SEGOPS)
                    rows.append([where, direction, *numbers, f"{reached / copied:.0%}"])
    if not rows:
        return ""
    header = ("case", "direction", "floor MB", "moved MB", "floor GB/s", "copy GB/s", "fraction of the floor reached")
    return "Memory traffic of segops:\n\n" + table(header, rows)


def arithmetic_table(records: Iterable[dict[str, Any]]) -> str:
    """Speed of what is bound by arithmetic, counted by the definition: faster algorithms pass the processor's peak."""
    rows = []
    for record in records:
        if record.get("products"):
            flops = 2 * record["products"]
            for name, contender in record["contenders"].items():
                if "median" in contender:
                    where, direction = place(record)
                    intensity = number(flops / record["floor_bytes"])
                    speed = number(flops / contender["median"] / 1e9)
                    rows.append([where, direction, name, number(flops / 1e9), intensity, speed])
    if not rows:
        return ""
    header = ("case", "direction", "contender", "GFLOP", "FLOP a byte of the floor", "GFLOP/s")
    return "Arithmetic, as much as the definition has:\n\n" + table(header, rows)


def memory_table(records: Sequence[dict[str, Any]]) -> str:
    """Peak of forward + backward beyond the inputs, as a multiple of the gradient's size."""
    names = contenders(records)
    rows = []
    for record in records:
        if record["direction"] == "forward_backward":
            found = record["contenders"]
            peaks = [found.get(name, {}).get("peak_bytes") for name in (SEGOPS, *names)]
            multiples = [number(None if peak is None else peak / record["gradient_bytes"]) for peak in peaks]
            rows.append([case(record), *map(megabytes, (peaks[0], found[SEGOPS]["peak_resident_bytes"])), *multiples])
    if not rows:
        return ""
    title = "Peak memory of forward + backward beyond the inputs, as a multiple of the gradient:\n\n"
    return title + table(["case", "segops MB", "resident MB", SEGOPS, *names], rows)


def network_memory_table(records: Sequence[dict[str, Any]]) -> str:
    """Peaks of whole networks beyond parameters and images, by both counts."""
    rows = []
    for record in records:
        for name, contender in record["contenders"].items():
            if "median" in contender:
                peaks = (contender["peak_bytes"], contender["peak_resident_bytes"])
                rows.append([*place(record), name, *map(megabytes, peaks)])
    if not rows:
        return ""
    title = (
        "Peak memory beyond parameters and images, of a training step with the parameters' gradients. Other run times "
        "allocate nothing by PyTorch and keep their memory between calls, so neither count tells what they need:\n\n"
    )
    return title + table(["case", "direction", "contender", "allocated by PyTorch, MB", "resident, MB"], rows)


def absences(records: Iterable[dict[str, Any]]) -> str:
    """Why a contender has no time."""
    reasons = {
        f"* {name}: {contender['unavailable']}"
        for record in records
        for name, contender in record["contenders"].items()
        if "unavailable" in contender
    }
    return "\n".join(sorted(reasons))


def goals(run: dict[str, Any]) -> list[Goal]:
    """Every goal; one whose contender has no time is missed. Ratios are goals of the recycled regime only."""
    found = []
    for record in (b["extra_info"] for b in run["benchmarks"]):
        where = (f"{record['op']} {case(record)}", DIRECTIONS[record["direction"]])
        contenders = record["contenders"].values()
        for group, goal in record["goals"].items() if record["regime"] == "recycled" else ():
            ratios = [c["ratio"] for c in contenders if c["group"] == group and "ratio" in c]
            best = min(ratios, default=0.0)
            found.append(Goal(*where, group, number(best or None), f">= {goal:g}", verdict(best >= goal)))
        limit = record["memory_goal_bytes"]
        if limit is not None:
            peak = record["contenders"][SEGOPS]["peak_bytes"]
            reached, goal = (f"{megabytes(size)} MB" for size in (peak, limit))
            found.append(Goal(*where, "memory", reached, f"<= {goal}", verdict(peak <= limit)))
        for group, share in record.get("memory_goals", {}).items():
            peaks = [c["peak_bytes"] for c in contenders if c["group"] == group and "peak_bytes" in c]
            part = record["contenders"][SEGOPS]["peak_bytes"] / min(peaks) if peaks else None
            met = verdict(part is not None and part <= share)
            found.append(Goal(*where, f"memory of {group}", number(part), f"<= {share:g}", met))
    return found


def verdict(met: bool) -> str:
    return MET if met else "**missed**"


def old_and_new(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Two runs of one regime. Times of different runs drift with the machine; times relative to eager do much less."""
    before = {b["name"]: b["extra_info"] for b in old["benchmarks"]}
    rows = []
    for bench in new["benchmarks"]:
        if bench["name"] in before:
            pair = [extra["contenders"] for extra in (before[bench["name"]], bench["extra_info"])]
            times = [contenders[SEGOPS]["median"] for contenders in pair]
            against = [contenders.get(EAGER, {}).get("ratio") for contenders in pair]
            gain = None if None in against else against[1] / against[0]
            row = [*map(milliseconds, times), number(times[0] / times[1]), *map(number, against), number(gain)]
            rows.append([*place(bench["extra_info"]), *row])
    header = ["case", "direction", "old ms", "new ms", "old / new", "eager : old", "eager : new", "gain against eager"]
    return "### Old and new\n\n" + (table(header, rows) if rows else "The two files have no benchmark in common.")


def provenance(run: dict[str, Any]) -> str:
    machine, here, commit = run["machine_info"], run["machine_info"]["segops"], run["commit_info"]
    cpu = machine.get("cpu", {})
    device = f"{here['gpu']}; " if "gpu" in here else ""
    clock = f" at {cpu['hz_actual_friendly']}" if "hz_actual_friendly" in cpu else ""
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    return (
        f"Regime: {here['regime']}; {device}{cpu.get('brand_raw', machine['machine'])}{clock}, {here['cores']} cores, "
        f"governor {here['governor'] or 'unknown'}, load before {here['load']:.1f}; {here['threads']} threads; "
        f"segops kernels {here['isa']} by {here['compiler']}; {versions}, Python {machine['python_version']}; "
        f"commit {commit['id'][:12]}{' (modified)' if commit.get('dirty') else ''}; {run['datetime'][:10]}."
    )


def case(record: dict[str, Any]) -> str:
    return f"({', '.join(map(str, record['shape']))}) {record['dtype']} {record['layout']}"


def place(record: dict[str, Any]) -> tuple[str, str]:
    return case(record), DIRECTIONS[record["direction"]]


def contenders(records: Iterable[dict[str, Any]]) -> list[str]:
    return [name for name in dict.fromkeys(n for record in records for n in record["contenders"]) if name != SEGOPS]


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.4g}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
