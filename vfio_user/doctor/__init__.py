"""Say whether devices can be driven from user space, what is in the way, and what mends it. Changes nothing."""

from __future__ import annotations

from vfio_user.doctor.diagnosis import Diagnosis, explain
from vfio_user.findings import Finding, Severity

__all__ = ["Diagnosis", "Finding", "Severity", "explain"]
