"""Health of the worker group: heartbeats of the ranks, the driver's watchdog, and the consensus on requests."""
