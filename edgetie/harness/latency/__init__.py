"""Load time, latency, throughput and memory of a bundle."""
