"""Commands for setting up, checking and serving. A regular package, because upstream verl installs one of this name."""
