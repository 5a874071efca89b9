"""Published data sets on this machine: where they lie, and how they come there. Imports no torch."""
