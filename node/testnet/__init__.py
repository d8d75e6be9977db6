"""A swarm of several processes on this machine, broken and lied to on purpose."""
