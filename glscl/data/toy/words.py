"""Words of the toy captions: of ``toy_clips``, and of ``toy_stories``, which has some of its own."""

Forms = tuple[str, str]  # third person, gerund
Words = dict[str, tuple[str, ...]]

CLIP_NOUNS: Words = {"disc": ("disc", "ball", "circle"), "plank": ("plank", "board"), "pillar": ("pillar", "pole")}
CLIP_ADJECTIVES: Words = {colour: (colour,) for colour in ("red", "green", "blue", "yellow")}
CLIP_BACKGROUNDS: Words = {"grey": ("grey", "gray"), "pink": ("pink",)}
CLIP_EVENTS: dict[str, tuple[Forms, ...]] = {
    "left": (("moves left", "moving left"), ("slides to the left", "sliding to the left"), ("goes left", "going left")),
    "right": (
        ("moves right", "moving right"),
        ("slides to the right", "sliding to the right"),
        ("goes right", "going right"),
    ),
    "up": (("moves up", "moving up"), ("slides upwards", "sliding upwards"), ("rises", "rising")),
    "down": (("moves down", "moving down"), ("slides downwards", "sliding downwards"), ("falls", "falling")),
    "grows": (("grows", "growing"), ("gets bigger", "getting bigger"), ("becomes larger", "becoming larger")),
    "shrinks": (("shrinks", "shrinking"), ("gets smaller", "getting smaller")),
    "whitens": (("turns white", "turning white"), ("becomes white", "becoming white")),
    "blackens": (("turns black", "turning black"), ("becomes black", "becoming black")),
}
STORY_NOUNS: Words = {
    "disc": ("disc", "circle", "sphere"),
    "plank": ("plank", "board", "beam"),
    "pillar": ("pillar", "pole", "column"),
}
STORY_ADJECTIVES: Words = {
    "red": ("red", "red", "crimson"),
    "green": ("green", "green", "jade"),
    "blue": ("blue", "blue", "cobalt"),
    "yellow": ("yellow", "yellow", "golden"),
}
STORY_GROUNDS: Words = {
    "stripes": ("a striped curtain", "striped cloth"),
    "checks": ("a chessboard", "a checked floor"),
    "bricks": ("a brick wall", "stacked bricks"),
    "sand": ("a beach", "yellowish sand"),
}
STORY_EVENTS: Words = {
    "left": ("moves left", "goes left", "drifts to the left"),
    "right": ("moves right", "goes right", "drifts to the right"),
    "up": ("moves up", "rises", "climbs"),
    "down": ("moves down", "falls", "sinks"),
    "grows": ("grows", "gets bigger", "swells"),
    "shrinks": ("shrinks", "gets smaller", "dwindles"),
    "whitens": ("turns white", "becomes white", "bleaches"),
    "blackens": ("turns black", "becomes black", "darkens"),
}
