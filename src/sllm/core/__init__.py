"""The vocabulary and the errors that all serving layers share. Pure: no clock, I/O or framework."""
