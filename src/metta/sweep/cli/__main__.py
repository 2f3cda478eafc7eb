"""`python -m metta.sweep.cli`, where the `metta` script is not on the path."""

from metta.sweep.cli.main import main

main()
