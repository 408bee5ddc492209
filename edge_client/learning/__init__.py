"""Examples from samples: windows, statistics, prequential scores, and the memory that training draws from."""
