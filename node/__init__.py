"""The process: everything that waits."""
