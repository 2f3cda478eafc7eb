"""Ways to get a job run: on this machine, and later on clusters and clouds."""
