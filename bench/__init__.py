"""Benchmarks beside rivals; see README.md. Not part of the package that is installed.

`pods` the objects, `measure` how to time, `rivals` their adapters, `server` and `worker` the other
processes, `workloads` what is measured, `rows` one row in a process of its own, `report` tables
and plots.
"""
