"""All code that stands on private parts of Ray: the cluster (`cluster`) and Ray Train (`train`).

No other module imports them, so that a new version of Ray is checked here; ``tests/test_ray_internals.py`` looks.
"""
