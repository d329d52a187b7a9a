"""`sllm-store completion`: the script that completes commands, options and checkpoint names."""

from __future__ import annotations

import click

VARIABLE = "_SLLM_STORE_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(ctx: click.Context, *, shell: str) -> None:
    """Print a shell's completion script.

    \b
    bash: sllm-store completion bash > ~/.local/share/bash-completion/completions/sllm-store
    zsh:  sllm-store completion zsh > ~/.zfunc/_sllm-store
    fish: sllm-store completion fish > ~/.config/fish/completions/sllm-store.fish
    """
    from click.shell_completion import get_completion_class

    root = ctx.find_root()
    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(root.command, {}, "sllm-store", VARIABLE).source())
