"""The arithmetic: the only folder that knows torch."""
