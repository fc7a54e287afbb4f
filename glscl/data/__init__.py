"""From official annotation files to a deterministic stream of video-text pairs."""
