"""glscl on a Ray cluster: jobs, checks of a cluster, and checks of the files that describe one."""
