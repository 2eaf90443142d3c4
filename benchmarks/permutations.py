"""Unknown orders of rows and columns: how often `factorize(A, chain, perm="search")` finds them, and how long it takes.

    python benchmarks/permutations.py                 # sizes 8 to 128, four levels of noise: some minutes on one thread
    python benchmarks/permutations.py --sizes 256     # one size; the results of the others are kept

Matrices: Hadamard, DFT, and random orthogonal butterflies whose 2 x 2 blocks are drawn uniformly (Haar); Gaussian noise
with a Frobenius norm of `noise` times that of the matrix is added, then rows and columns are shuffled. The matrix is
*found* when the error is at most 1.01 times the one in the true order, or exact if there is no noise. The error in the
order that was found can be below the one in the true order: noise favours some of the orders that fit.
Writes benchmarks/results/permutations.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scipy
import torch

from flatwing import Chain, factorize
from flatwing.core import replacing
from flatwing.core.machine import environment
from flatwing.structure import transforms

RESULT = Path(__file__).parent / "results" / "permutations.json"
NOISE = (0.0, 0.01, 0.1, 0.3)


def hadamard(n: int, generator: torch.Generator) -> torch.Tensor:
    """The same for every generator."""
    return transforms.hadamard(n, normalized=True).dense()


def dft(n: int, generator: torch.Generator) -> torch.Tensor:
    """Columns in the order of the chain; the same for every generator."""
    product = transforms.dft(n)
    return product.dense()[:, product.perm_in]


def orthogonal(n: int, generator: torch.Generator) -> torch.Tensor:
    """A butterfly with random orthogonal blocks."""
    return transforms.random_orthogonal(n, generator=generator).dense()


KINDS: dict[str, Callable[[int, torch.Generator], torch.Tensor]] = {
    "hadamard": hadamard,
    "dft": dft,
    "orthogonal": orthogonal,
}


def trial(kind: str, n: int, noise: float, seed: int) -> dict[str, Any]:
    """One matrix: whether it was found, by what, its error against the one in the true order, seconds."""
    generator, chain = torch.Generator().manual_seed(seed), Chain.butterfly(n)
    matrix = KINDS[kind](n, generator)
    added = torch.randn(matrix.shape, dtype=matrix.dtype, generator=generator)
    matrix = matrix + noise * matrix.norm() / added.norm() * added
    truth = factorize(matrix, chain).certificate
    rows, columns = (torch.randperm(n, generator=generator) for _ in range(2))
    shuffled = matrix[rows][:, columns]
    begin = time.perf_counter()
    result = factorize(shuffled, chain, perm="search")
    seconds = time.perf_counter() - begin
    proof = result.certificate
    return {
        "found": proof.exact if truth.exact else proof.error <= 1.01 * truth.error,
        "declared failed": any("failed" in note for note in result.notes),
        "order": result.permutation,
        "error": proof.error,
        "error in the true order": truth.error,
        "seconds": round(seconds, 4),
    }


def main() -> None:
    """Run all instances, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--instances", type=int, default=6)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trial("hadamard", 8, 0.01, 0)  # loads compiled code and scipy
    content = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    print("  n  kind        noise  found  error / true order  seconds: mean, most")
    for n in arguments.sizes:
        runs: dict[str, Any] = {}
        for kind in KINDS:
            for noise in NOISE:
                trials = [trial(kind, n, noise, seed) for seed in range(arguments.instances)]
                found, seconds = sum(t["found"] for t in trials), [t["seconds"] for t in trials]
                worst = max(t["error"] / t["error in the true order"] for t in trials) if noise else 1.0
                print(
                    f"{n:3d}  {kind:10s}  {noise:5.2f}  {found} of {len(trials)}  {worst:16.3f}  "
                    f"{sum(seconds) / len(seconds):10.3f} {max(seconds):8.3f}",
                    flush=True,
                )
                runs[f"{kind}, noise {noise}"] = {
                    "found": found,
                    "instances": len(trials),
                    "mean_seconds": round(sum(seconds) / len(seconds), 4),
                    "trials": trials,
                }
        content[f"n={n}"] = {"environment": environment() | {"scipy": scipy.__version__}, "runs": runs}
        with replacing(arguments.out) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
