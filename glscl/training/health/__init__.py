"""Health of the worker group: heartbeats of the ranks, the driver's watchdog, and requests that all ranks agree on.

Ranks send heartbeats to Ray's key-value store (`heartbeat`); the driver's watchdog diagnoses them and leaves orders
there (`watchdog`); one number that is all-reduced beside every step makes all ranks do what one of them was asked for,
at the same boundary between steps (`consensus`). A store, not an actor: nothing more to start, and a frozen rank
cannot freeze it. Both sides poll, and nothing but the all-reduce is on the path of a step.
"""
