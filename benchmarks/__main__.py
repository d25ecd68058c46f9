"""Run the benchmarks, one after the other, each in a process of its own; figures go to benchmarks/results/*.json.

make bench                                # all of them
make bench ARGS="append http_api"             # these
make bench ARGS="--quick"                 # shorter runs: whether they work, not what the service can do
"""

import argparse
import subprocess
import sys
from pathlib import Path

from process_usage import run

# What `make bench` runs, in this order: a name, which is a program beside this one, and what it measures.
BENCHMARKS = {
    "append": "events appended a second, beside the library's recorder, single INSERTs and pgbench",
    "growth": "appends, reads and lists with 10,000 to 1,000,000 orders; disk; plans of every list",
    "http_api": "requests a second and what one costs, beside aiohttp alone",
    "pipeline": "from `pay` to the workflow's start, to captured, to the webhook; lag of projections",
    "overload": "twice the load that the API can take, how soon all is well again, and memory in the long run",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:10} {what}" for name, what in BENCHMARKS.items()),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; without any: all")
    parser.add_argument("--quick", action="store_true", help="shorter runs")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - BENCHMARKS.keys()):
        parser.error(f"no benchmark is named {unknown[0]}: choose from {', '.join(BENCHMARKS)}")
    failed = []
    for name in options.names or BENCHMARKS:
        print(f"# {name}: {BENCHMARKS[name]}", flush=True)
        program = [sys.executable, str(Path(__file__).with_name(f"{name}.py"))]
        if _ended_with([*program, *(["--quick"] if options.quick else [])]):
            failed.append(name)
    if failed:
        raise SystemExit(f"ended with an error: {', '.join(failed)}")


def _ended_with(command: list[str]) -> int:
    """The status of a benchmark, which is given the time to stop its servers where this program is ended."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except SystemExit:
            process.terminate()
            raise


if __name__ == "__main__":
    run(main)
