"""MSE of learned attacks on CIFAR-10's LeNet under noise and pruning: the table in docs/attacks.md.

python benchmarks/git_table.py PATH.npz PUBLIC.npz RESULTS [--seeds 3] [--attack git --attack lti --attack ridge]

Several processes may work through one table together: each cell is measured once, and a killed run goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from gitbench.bench import case_of
from gitbench.evaluation import Chain
from gitbench.store import Store

DEFENSES = (
    "none", "pruning(rate=0.9)", "pruning(rate=0.99)", "pruning(rate=0.999)", "gaussian_noise(std=0.01)", "gaussian_noise(std=0.1)",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("public")
    parser.add_argument("results", type=Path)
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--attack", action="append")
    parser.add_argument("--defense", action="append")
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--victims", type=int, default=800)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    store = Store(options.results)
    chain = Chain(store=store, device="auto")
    dataset = f"npz(path={options.path!r}, public={options.public!r})"
    for seed in options.seed or range(3):
        for attack in options.attack or ("git", "lti", "ridge"):
            for defense in options.defense or DEFENSES:
                case = case_of(
                    attack=attack, defense=defense, model=options.model, dataset=dataset, threat="server", profile="standard",
                    victims=options.victims, batch_size=1, seed=seed,
                )  # fmt: skip
                busy = store.root / "busy" / case.case_id
                busy.parent.mkdir(parents=True, exist_ok=True)
                try:
                    busy.touch(exist_ok=False)  # another process has it
                except FileExistsError:
                    continue
                found = store.load(case.case_id) or chain.run(case)
                store.save(found)
                if found.status == "error":
                    print(f"{attack:12} {defense:26} seed {seed}  {found.error}", flush=True)
                    continue
                mse, psnr = found.metrics["mse"], found.metrics["psnr"]
                print(
                    f"{options.model:8} {attack:12} {defense:26} seed {seed}  MSE {mse.mean:.5f} [{mse.low:.5f}, {mse.high:.5f}]  "
                    f"PSNR {psnr.mean:.2f}  fit {found.cost.fit_seconds:.0f} s  "
                    f"attack {1000 * found.cost.attack_seconds / options.victims:.2f} ms an image  {found.cost.peak_memory_mb:.0f} MiB",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(main())
