"""Running glscl on a Ray cluster: checks of the files that describe one. Imports glscl, never the reverse."""
