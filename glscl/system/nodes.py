"""The nodes of a cluster: those there are, before Ray is started here, and a request for more."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from glscl.system.environment import check_environment, named_cluster
from glscl.system.session import alive_nodes, cluster_of_this_machine

RENEW_S = 20.0
"""Seconds between two renewals of a request; after three times as long it is void."""


def cluster_nodes() -> list[Mapping[str, float]]:
    """Resources of the nodes of the cluster that `glscl.system.session.ray_session` would use; nothing is started.

    Raises:
        UserError: see `glscl.system.environment.check_environment`.
    """
    import ray

    from glscl.system.ray_internals.cluster import nodes_at, resources_of_this_machine

    if ray.is_initialized():
        return alive_nodes()
    check_environment()
    named = named_cluster()
    address = cluster_of_this_machine(say=False) if named in (None, "auto") else named
    if address in (None, "local"):
        return [resources_of_this_machine()]
    return nodes_at(address)


class NodeRequest:
    """Asks an autoscaler for nodes that hold these bundles, until the ``with`` block ends or its process is gone.

    Ray's own ``request_resources`` has no end: one of a killed driver would keep nodes for ever.
    """

    def __init__(self, bundles: Sequence[Mapping[str, float]]) -> None:
        self._bundles = list(map(dict, bundles))
        self._name = f"glscl-{uuid.uuid4().hex}"
        self._renewed = float("-inf")

    def __enter__(self) -> Self:
        from glscl.system.ray_internals.cluster import autoscaling_coordinator

        self._coordinator = autoscaling_coordinator()
        return self

    def renew(self) -> None:
        """Say again that the nodes are wanted, where that is due."""
        if time.monotonic() - self._renewed >= RENEW_S:
            self._renewed = time.monotonic()
            self._coordinator.request_resources.remote(
                requester_id=self._name, resources=self._bundles, expire_after_s=3 * RENEW_S
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._coordinator.cancel_request.remote(requester_id=self._name)
