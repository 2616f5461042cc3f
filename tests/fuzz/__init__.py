"""Everything that the package reads of the kernel and of other processes, as hostile bytes."""
