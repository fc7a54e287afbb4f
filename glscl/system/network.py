"""The network interface that processes of a node talk over."""

from __future__ import annotations

import os

import psutil


def use_interface_of_node() -> None:
    """Set ``GLOO_SOCKET_IFNAME`` to the interface of this node's address in the cluster, unless it is set."""
    import ray

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
