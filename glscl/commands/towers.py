"""`glscl towers`: list the architectures of clip towers, and why some cannot be used."""

from glscl.errors import UserError

HELP = "list the architectures that model.clip can name"
ORDER = 85


def run(words: list[str], program: str) -> str:
    """Print a row per architecture of the installed open_clip whose name has the given word in it."""
    if words and words[0] in ("-h", "--help"):
        print(f"usage: {program} [PART_OF_A_NAME]\n\n{HELP}")
        return ""
    if len(words) > 1:
        raise UserError(f"`{program}` takes a part of a name, or nothing: {words}")
    part = words[0] if words else ""
    from glscl.models.overview import describe_architectures  # with open_clip, seconds to import
    from glscl.reporting.console import print_table

    rows = [row for row in describe_architectures() if part.lower() in row.name.lower()]
    if not rows:
        raise UserError(f"open_clip has no architecture with '{part}' in its name")
    accepted = [row for row in rows if row.refusal is None]
    header = ["architecture", "tokens", "weights", "frame", "width", "words"]
    print_table(header, [row.cells() for row in accepted], text_columns=3)
    for row in rows:
        if row.refusal is not None:
            print(f"{row.name}: refused, {row.refusal}")
    return f"{len(accepted)} of {len(rows)} architectures accepted"
