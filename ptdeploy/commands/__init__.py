"""What the API and the command line both call: one file each."""
