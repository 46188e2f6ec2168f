"""Tables, JSON and plots of what was measured."""
