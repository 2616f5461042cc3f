"""Tests in this folder run inside of guests that lack something; each file says in which."""

from __future__ import annotations

from vfio_user.testing import in_guest

if not in_guest():
    collect_ignore_glob = ["test_*.py"]
