"""What is left of a run → predict → append; who works on what, and where."""
