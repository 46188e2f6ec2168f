"""The command line of edgetie: each command parses, calls the library and prints."""
