"""The checkpoint format and the formats read in place: docs/format.md is the specification."""
