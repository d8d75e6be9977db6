"""The simulator: the rules that the daemon runs, on virtual time, with peers that are numbers."""
