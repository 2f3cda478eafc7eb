"""Figures for Prometheus: what the log says, as counters, gauges and histograms."""
