"""The study: heads × training domains × test domains × seeds, on whatever the cluster offers, and what it shows.

``options`` is its configuration, ``grid`` the cells that follow from it, ``plan`` what is checked before, ``run`` the
driver that has them done, ``analysis`` the figures and sentences that they allow.
"""
