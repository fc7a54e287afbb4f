"""`glscl completion`: print a script with which a shell completes commands, options and their values."""

from glscl.commands import list_commands
from glscl.commands._completion import SHELLS, write_script
from glscl.errors import UserError, did_you_mean
from glscl.options.flags import wrap_help

HELP = "print the script that completes commands, options and names in bash, zsh or fish"
ORDER = 120

ABOUT = """Print the script that completes commands, options and names. Everything is in the script; to complete starts
no glscl. Write it where your shell looks:

  bash   glscl completion bash > ~/.local/share/bash-completion/completions/glscl
  zsh    glscl completion zsh > ~/.glscl.zsh and `source ~/.glscl.zsh` behind `compinit` in ~/.zshrc
  fish   glscl completion fish > ~/.config/fish/completions/glscl.fish

Write it again when glscl or a plug-in is new."""


def run(words: list[str], program: str) -> str:
    """Print the script, with no verdict: it is written to a file."""
    if words and words[0] in ("-h", "--help"):
        print(f"usage: {program} {'|'.join(SHELLS)}\n\n{wrap_help(ABOUT)}")
    elif len(words) != 1 or words[0] not in SHELLS:
        meant = did_you_mean(words[0], SHELLS) if len(words) == 1 else ""
        raise UserError(f"`{program}` takes one shell: {', '.join(SHELLS)}{meant}")
    else:
        print(write_script(words[0], list_commands().values()), end="")
    return ""
