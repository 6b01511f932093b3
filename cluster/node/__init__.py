"""One node of a cluster: started, stopped, installed. The machine's own service manager keeps it running."""
