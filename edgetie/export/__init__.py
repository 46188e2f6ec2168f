"""From a torch module to a bundle: trace, passes, proof, files."""
