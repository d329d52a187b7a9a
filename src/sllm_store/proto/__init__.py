"""Generated from storage.proto; `make proto` rebuilds it and `make check` sees that it is current."""
