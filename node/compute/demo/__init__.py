"""The small model that the demo and the tests use, and the script that trained it."""
