"""Indexes over HTTP: one API, one page in a browser, in one process or as deployments of Ray Serve."""
