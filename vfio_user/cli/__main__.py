"""``python -m vfio_user.cli``."""

from __future__ import annotations

import sys

from vfio_user.cli import main

sys.exit(main())
