"""An agent for a raylet that does nothing: it says on no port that there are no metrics, and ends with the raylet.

    python -IS idle_agent.py SESSION_FOLDER NODE

Ray's own takes as long to start as a worker, to serve a dashboard that a cluster of one command does not have.
"""

import os
import sys
import time

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")


def main(folder: str, node: str) -> None:
    """Write the ports as Ray's agent without its extra packages does, and wait for the end of the raylet."""
    raylet = int(os.environ["RAY_RAYLET_PID"])
    for port in PORTS:
        path = os.path.join(folder, f"{port}_{node}")
        with open(f"{path}.new", "w", encoding="ascii") as file:
            file.write("-1")
        os.rename(f"{path}.new", path)
    while os.getppid() == raylet:
        time.sleep(1.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
