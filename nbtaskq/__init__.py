"""nbtaskq: notebook cells that keep running."""
