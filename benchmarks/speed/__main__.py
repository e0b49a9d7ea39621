"""gitbench against breaching on the same networks, gradients and images, in turn; writes ``benchmarks/RESULTS.md``.

python -m benchmarks.speed [--python ENVIRONMENT_WITH_BREACHING/bin/python] [--threads 2]
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks.speed.comparison import Point, compare
from benchmarks.speed.environment import peer_python
from benchmarks.speed.networks import NETWORKS
from benchmarks.speed.report import written


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--python", type=Path, help="of an environment that has breaching; by default one is made in a cache folder")
    parser.add_argument("--alone", action="store_true", help="measure gitbench alone")
    parser.add_argument("--threads", type=int, default=2, help="of each implementation")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured, in turn")
    parser.add_argument("--seconds", type=float, default=6, help="that one measurement takes, about")
    parser.add_argument("--limit", type=float, default=20, help="seconds of one iteration, beyond which a number of victims is left out")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--victims", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "RESULTS.md")
    options = parser.parse_args(arguments)
    peer = None if options.alone else options.python or peer_python()
    points: list[Point] = []
    for network in options.networks:
        for victims in options.victims:
            point = compare(
                network, victims, peer=peer, threads=options.threads, rounds=options.rounds, seconds=options.seconds, limit=options.limit
            )
            points += [] if point is None else [point]
            print(point or f"{network} with {victims} victims is left out", file=sys.stderr, flush=True)
    command = f"python -m benchmarks.speed {shlex.join(sys.argv[1:] if arguments is None else arguments)}".strip()
    options.output.write_text(written(points, command=command, threads=options.threads))


if __name__ == "__main__":
    main()
