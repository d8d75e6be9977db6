"""Stand-ins for roads and stages, so that services run under a virtual clock."""
