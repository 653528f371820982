"""One file per system: the paper's experiment, told with the parts below. Nothing is imported until it is run."""
