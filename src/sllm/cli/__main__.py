"""`python -m sllm.cli` is `gdsllm`."""

from sllm.cli import main

if __name__ == "__main__":
    main()
