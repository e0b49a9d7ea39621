"""The tables of docs/attacks.md on learned attacks and on auto, on CIFAR-10.

python benchmarks/learned_attacks.py TABLE PATH.npz PUBLIC.npz RESULTS [--seed 0] [--attack git]

TABLE is noise, conditions, hybrids, models or auto (with --profile quick, 32 victims: minutes). Several processes may work through one
table together: each cell is measured once, and a killed run goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from gitbench.identity.case import Case
from gitbench.measure.evaluator import Evaluator
from gitbench.run.bench import case_of
from gitbench.store.folder import Store

DEFENSES = (
    "none", "pruning(rate=0.9)", "pruning(rate=0.99)", "pruning(rate=0.999)", "gaussian_noise(std=0.01)", "gaussian_noise(std=0.1)",
)  # fmt: skip


Row = tuple[str, str, str, str]  # dataset, model, defense, attack


def rows_of(table: str, path: str, public: str) -> tuple[int, list[Row]]:
    """Victims and cells of a table."""
    both, small = f"npz(path={path!r}, public={public!r})", f"npz(path={path!r})"
    if table == "noise":
        return 800, [(both, "lenet", defense, attack) for attack in ("git", "lti", "ridge") for defense in DEFENSES]
    if table == "hybrids":
        priors = ("git", "lti", "gias(iterations=300)", "ridge")
        attacks = ("ig", *priors, *(f"{prior}+ig" for prior in priors))
        return 64, [(both, "lenet", "none", attack) for attack in attacks]
    if table == "models":
        return 800, [(both, model, "none", attack) for model in ("resnet", "vit") for attack in ("git", "lti", "ridge")]
    if table == "auto":
        defenses = (
            "none", "gaussian_noise(std=0.01)", "gaussian_noise(std=0.1)", "pruning(rate=0.9)", "pruning(rate=0.99)",
            "dp_sgd(noise_multiplier=0.1)", "parameter_drift(epochs=1, samples=500)",
        )  # fmt: skip
        attacks = ("ridge", "recursion", "git", "lti", "ig", "dlg", "auto")
        return 32, [(small, model, defense, attack) for model in ("mlp", "lenet", "resnet") for defense in defenses for attack in attacks]
    rows: list[Row] = []
    for attack in ("git", "lti", "ig"):
        rows += [
            (small, "lenet", f"parameter_drift(epochs={epochs}, samples={samples})", attack)
            for epochs, samples in ((0, 500), (10, 500), (20, 500), (10, 1000), (20, 1000))
        ]
        rows.append((small, "lenet(bias=False)", "none", attack))
        if attack != "ig":
            rows += [(small, "lenet", "none", f"{attack}(limit={limit})") for limit in (1000, 2000, 5085)]
            rows.append((f"benchmarks/shifted.py:Shifted(dataset={small!r})", "lenet", "none", attack))
    return 100, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("noise", "conditions", "hybrids", "models", "auto"))
    parser.add_argument("path")
    parser.add_argument("public")
    parser.add_argument("results", type=Path)
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--attack", action="append")
    parser.add_argument("--model", action="append")
    parser.add_argument("--profile", default="standard")
    parser.add_argument("--victims", type=int, help="another number than the table's")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    store = Store(options.results)
    chain = Evaluator(store=store, device="auto")
    victims, rows = rows_of(options.table, options.path, options.public)
    for seed in options.seed or (0,):
        for dataset, model, defense, attack in rows:
            if (not options.attack or attack in options.attack) and (not options.model or model in options.model):
                case = case_of(
                    attack=attack, defense=defense, model=model, dataset=dataset, threat="server", profile=options.profile,
                    victims=options.victims or victims, batch_size=1, seed=seed,
                )  # fmt: skip
                _measure(case, chain, store)


def _measure(case: Case, chain: Evaluator, store: Store) -> None:
    busy = store.root / "busy" / case.case_id
    busy.parent.mkdir(parents=True, exist_ok=True)
    try:
        busy.touch(exist_ok=False)  # another process has it
    except FileExistsError:
        return
    found = store.load(case.case_id) or chain.run(case)
    store.save(found)
    where = f"{case.model:17} {case.attack:18} {case.defense:40} seed {case.seed}"
    if found.status == "error":
        print(f"{where}  {found.error}", flush=True)
        return
    mse, psnr = found.metrics["mse"], found.metrics["psnr"]
    print(
        f"{where}  MSE {mse.mean:.5f} [{mse.low:.5f}, {mse.high:.5f}]  PSNR {psnr.mean:.2f} [{psnr.low:.2f}, {psnr.high:.2f}]  "
        f"fit {found.cost.fit_seconds:.0f} s  attack {1000 * found.cost.attack_seconds / case.victims:.2f} ms an image  "
        f"{found.cost.peak_memory_mb:.0f} MiB  {case.dataset if 'Shifted' in case.dataset else ''}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
