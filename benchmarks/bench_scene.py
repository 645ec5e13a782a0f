"""Frames a second of the built-in scene, one thread, every domain.

    python benchmarks/bench_scene.py [--frames 200] [--size 192x256]

Domains take turns frame by frame, so that a busy machine slows all of them alike. Checked first: a frame rendered anew
has the same bytes.
"""

from __future__ import annotations

import argparse
import time

import cv2
import numpy as np
import rows

from edge_sfda.data.scene import DOMAINS, Scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--size", default="192x256")
    options = parser.parse_args()
    height, width = (int(n) for n in options.size.split("x"))
    cv2.setNumThreads(1)
    scenes = {name: Scene(1, height, width) for name in DOMAINS}
    for name, scene in scenes.items():  # the first frame also lays out the street
        assert np.array_equal(scene.render(3.0, name)[0], Scene(1, height, width).render(3.0, name)[0]), name
    wall: dict[str, list[float]] = {name: [] for name in DOMAINS}
    used: dict[str, list[float]] = {name: [] for name in DOMAINS}
    for i in range(options.frames):
        for name, scene in scenes.items():
            start, cpu = time.perf_counter(), time.process_time()
            scene.render(i / 10, name)
            used[name].append(time.process_time() - cpu)
            wall[name].append(time.perf_counter() - start)
    results = []
    for name in DOMAINS:
        p20, median, p80 = (float(v) * 1e3 for v in np.percentile(wall[name], (20, 50, 80)))
        results.append(
            {
                "domain": name,
                "size": f"{height}x{width}",
                "frames": options.frames,
                "frame_ms": round(median, 2),
                "p20_ms": round(p20, 2),
                "p80_ms": round(p80, 2),
                "cpu_ms": round(float(np.median(used[name])) * 1e3, 2),
                "fps": round(1e3 / median, 1),
            }
        )
        print(f"{name:8} {median:6.2f} ms ({p20:.2f} to {p80:.2f})  {1e3 / median:6.1f} fps")
    print(rows.write("scene", results))


if __name__ == "__main__":
    main()
