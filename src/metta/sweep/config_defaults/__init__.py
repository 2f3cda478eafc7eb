"""Defaults for what a user has not said, found in the machine, the code and the literature."""

from __future__ import annotations

from metta.sweep.config_defaults.smart import SmartDefaults as SmartDefaults
