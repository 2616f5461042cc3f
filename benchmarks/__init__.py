"""Benchmarks: what a program gains or loses by being written over ``vfio_user``, as ratios within one run.

``python -m benchmarks`` (or ``make bench``) runs everything, here and in a guest. ``README.md`` has the method.
"""
