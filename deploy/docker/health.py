"""A container's health: 0 where the live loop's metrics answer on loopback, else 1 and the reason."""

from __future__ import annotations

import os
import sys
import urllib.request


def main() -> int:
    """Ask for the metrics once."""
    address = f"http://127.0.0.1:{os.environ.get('EDGE_SFDA_METRICS_PORT', '8321')}/metrics"
    # no proxy: the loop is in this container
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=4) as answer:
            answer.read()
    except (OSError, ValueError) as error:
        print(f"{address}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
