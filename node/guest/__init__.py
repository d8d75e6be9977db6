"""What a guest looks at on its host's machine: small probes, and who asks them (watch.py)."""
