"""How driver and ranks know that a run goes on: heartbeats, the watchdog, and requests to all ranks."""
