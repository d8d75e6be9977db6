"""The page of the API: the swarm at a glance, live, in any browser; no outside assets."""
