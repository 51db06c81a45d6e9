"""Small commands for people: find samples, cut a part of raw data, explain a name, look at a result."""
