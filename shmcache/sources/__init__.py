"""Sources: each file lists and watches one kind of backend, and knows nothing of stores.

Import a source by its module (or, for the one that most users want, from ``shmcache``), so
that nobody pays for a client library that is not used.
"""
