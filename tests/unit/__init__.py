"""Promises of single modules: no I/O beyond the configuration files, no clocks."""
