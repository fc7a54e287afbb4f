"""What a person reads: the terminal, and the self-contained HTML report."""
