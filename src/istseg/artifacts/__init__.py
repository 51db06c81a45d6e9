"""The files that stages exchange: one module for each kind, which writes it, reads it and checks it on reading."""
