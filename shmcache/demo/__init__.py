"""A demonstration that runs without a cluster: an embedded API server and a scheduler."""
