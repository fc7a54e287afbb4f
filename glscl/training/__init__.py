"""The driver, the loop that every worker runs, and what they share."""
