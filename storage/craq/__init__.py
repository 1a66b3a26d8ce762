"""CRAQ as a pure state machine: events in, effects out, no clock, no I/O, no randomness."""
