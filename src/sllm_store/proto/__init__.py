"""Generated from storage.proto: `make proto` rebuilds it, `make check` sees that it is current."""
