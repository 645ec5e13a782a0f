"""What a run leaves to look at: pictures, curves, and the run folder that holds them. Imports no torch."""
