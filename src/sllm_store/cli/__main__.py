"""`python -m sllm_store.cli` is `sllm-store`."""

from sllm_store.cli import main

if __name__ == "__main__":
    main()
