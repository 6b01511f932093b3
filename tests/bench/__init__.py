"""`make bench`: how fast Aurora is, measured beside the seed's own idea, on one machine, alternating."""
