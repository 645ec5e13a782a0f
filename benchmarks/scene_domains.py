"""Every domain of the built-in scene with the built-in source network, one configuration for all of them.

    python benchmarks/scene_domains.py [--source CHECKPOINT] [--methods none bn tent stvm] [--seeds 0 1 2]

Adapts offline on the first 48 frames of a drive, mIoU on its next 48. Source: trained by day on other streets. The
default street is one that no choice was made on; settings were chosen on street 7, the guard on 7 and 11.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import rows
import torch

from edge_sfda import config as configs
from edge_sfda.adapt import run
from edge_sfda.data.scene import DOMAINS
from edge_sfda.nets import load


def measure(source: Path, domain: str, street: int, method_name: str, seed: int) -> dict[str, Any]:
    """Adapt to one domain on one thread and return its row."""
    torch.set_num_threads(1)
    pair = pairs.scene(domain, street)
    net, manifest = load(source)
    method = run.make(net, manifest, replace(configs.preset(method_name), seed=seed))
    scores = pair.scores(pairs.offline(method, manifest, pair))
    return {"domain": domain, "street": street, "method": method_name, "seed": seed, **scores}


def table(results: list[dict[str, Any]]) -> str:
    """Return mean (worst) mIoU as Markdown, a row a domain, a column a method."""
    methods = list(dict.fromkeys(r["method"] for r in results))
    lines = ["| domain | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for domain in dict.fromkeys(r["domain"] for r in results):
        cells = []
        for method in methods:
            miou = [r["miou"] for r in results if r["domain"] == domain and r["method"] == method]
            worst = f" ({min(miou):.3f})" if len(miou) > 1 else ""
            cells.append(f"{np.mean(miou):.3f}{worst}")
        lines.append(f"| {domain} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("edge_sfda/assets/scene_day_nano.safetensors"))
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    parser.add_argument("--street", type=int, default=43, help="seed of the street")
    parser.add_argument("--methods", nargs="+", default=["none", "bn", "tent", "mean-teacher", "stvm"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(measure, arguments.source, domain, arguments.street, method, seed)
            for domain in arguments.domains
            for method in arguments.methods
            for seed in (arguments.seeds[:1] if method in ("none", "bn") else arguments.seeds)
        ]
        for future in futures:
            results.append(future.result())
            print(results[-1], flush=True)
    print(rows.write("scene_domains", results))
    print(table(results))


if __name__ == "__main__":
    main()
