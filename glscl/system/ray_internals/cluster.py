"""Private parts of Ray's cluster: addresses, start, nodes, actors, key-value store, launcher files."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil
from ray._private import services, state
from ray._private.utils import read_ray_address
from ray.experimental import internal_kv
from ray.util import get_node_ip_address

START_S = 300.0  # seconds that a node is given to appear, as long as its process runs


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Let a name of one of Ray's modules stand for something else in this block."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def print_no_traceback_of(kind: type[Exception]) -> None:
    """In a training worker, keep Ray Train from printing the traceback of an error of this kind that ends it."""
    logging.getLogger("ray.train.v2._internal.util").addFilter(lambda _: not isinstance(sys.exc_info()[1], kind))


def written_address() -> str | None:
    """Address of the cluster that ``ray start`` wrote down on this machine; nothing says that it still runs."""
    return read_ray_address() or None  # type: ignore[no-any-return]


@contextmanager
def patient_start() -> Iterator[None]:
    """Let ``ray.init`` wait in this block for a node that starts slowly."""
    with replaced(services, "get_node", partial(wait_for_node, services.get_node)):
        yield


def wait_for_node(get_node: Callable[[str, str], Any], address: str, node: str) -> Any:
    """Ray's details of the node that is starting, however long that takes while its process runs."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return get_node(address, node)
        except RuntimeError:
            runs = any(child.name() == "raylet" for child in psutil.Process().children())
            if not runs or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def resources_of_this_machine() -> Mapping[str, float]:
    """The resources that a node started here would have."""
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec

    return ResourceAndLabelSpec().resolve(is_head=True).to_resource_dict()  # type: ignore[no-any-return]


def nodes_at(address: str) -> list[Mapping[str, float]]:
    """Resources of the live nodes of the cluster at an address, without connecting this process to it."""
    cluster = state.GlobalState()
    cluster._initialize_global_state(services._get_gcs_client_options(address))
    return [node["Resources"] for node in cluster.node_table() if node["Alive"]]


def use_interface_of_node() -> None:
    """Set ``GLOO_SOCKET_IFNAME`` to the interface of this node's address in the cluster, unless it is set."""
    address = get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def autoscaling_coordinator() -> Any:
    """The actor that asks an autoscaler for nodes on behalf of everybody who wants some."""
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

    return default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()


class KeyValueStore:
    """Ray's key-value store, in which every key begins with a token."""

    def __init__(self, token: str) -> None:
        self.token = token
        self._prefix = f"glscl-{token}-"

    def put(self, key: str, value: bytes) -> None:
        internal_kv._internal_kv_put(self._prefix + key, value, overwrite=True)

    def get(self, key: str) -> bytes | None:
        return internal_kv._internal_kv_get(self._prefix + key)  # type: ignore[no-any-return]

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin so, sorted."""
        keys = internal_kv._internal_kv_list(self._prefix + prefix)
        return sorted(key.decode().removeprefix(self._prefix) for key in keys)

    def clear(self) -> None:
        """Delete every key of this token."""
        internal_kv._internal_kv_del(self._prefix, del_by_prefix=True)


def prepare_launcher(values: dict[str, Any]) -> dict[str, Any]:
    """Fill in the defaults of a cluster-launcher file's provider and check the file as ``ray up`` does.

    Where ``ray up`` would refuse the file, Ray raises jsonschema.ValidationError, ValueError, RuntimeError,
    NotImplementedError, KeyError, TypeError or AttributeError.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(values)
    validate_config(prepared)
    return prepared
