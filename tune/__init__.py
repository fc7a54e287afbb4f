"""Sweeps: Ray Tune searches over any keys of a run's configuration, with an objective across domains.

``options`` is a sweep's configuration, ``space`` what is searched, ``objective`` what a trial trains and what it is
scored by, ``trial`` what one trial does, ``sweep`` the driver that has them done, ``winner`` compares the winner with
the default, ``analysis`` is what the trials show.
"""
