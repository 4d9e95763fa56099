"""Studies: stages and their cache, sweeps over seeds, claims."""
