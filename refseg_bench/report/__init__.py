"""Tables, comparisons, pictures and pages made from runs."""
