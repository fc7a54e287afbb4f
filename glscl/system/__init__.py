"""Storage, sessions, signals: what every part stands on, and nothing of retrieval."""
