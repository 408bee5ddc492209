"""`pollen demo`: a whole fleet on one machine, as real processes, watched while it learns."""
