"""The swarm beyond the directory: peers drawn from all, and what all come to know."""
