"""Many runs of one command: what a study and a sweep share.

``options`` is what their configurations have in common, ``sets`` the shard sets of their domains, ``build`` makes a
run's whole configuration, ``cell`` is one run that is done once and its result, ``execution`` does it, and the
pretraining, ``pool`` does cells side by side on the cluster, ``summary`` is what both say of their results first.
"""
