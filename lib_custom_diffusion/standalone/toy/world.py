"""The toy model's world: captioned drawings that compose.

A `Scene` says what is drawn: one or two things, each with a size, a place and perhaps a coat (looks.py), on
a background of one of twelve colours, perhaps with a look over all. `draw` turns a scene into a 128×128 picture and
`caption` into one of the many sentences that are true of it, so a picture can be captioned anew each time it is used.

The things are glyphs of Noto Color Emoji (https://github.com/googlefonts/noto-emoji, SIL Open Font License 1.1;
Debian's package fonts-noto-color-emoji). The font is needed to draw; the model, the judge and the bundled concepts are
not drawn again to be used.

What the generator never sees: `HELD_OUT_THINGS`, `HELD_OUT_LOOKS`, coats without a word, one background
colour for each thing (`colour_is_held_out`), and a tenth of the pairs of things (`pair_is_held_out`).
"""

import functools
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .looks import APPLY_LOOK, COLOUR_COATS, COLOURS, HELD_OUT_LOOKS, LOOKS, NAMED_COATS, Coat, wear

SIZE = 128
FONT_PATHS = (
    Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf"),
)
FONT_SIZE = 109  # the only size the font's bitmaps have

THINGS_BY_CATEGORY = {
    "animal": dict(
        dog="🐶", cat="🐱", mouse="🐭", hamster="🐹", rabbit="🐰", fox="🦊", bear="🐻", panda="🐼", koala="🐨",
        tiger="🐯", lion="🦁", cow="🐮", pig="🐷", frog="🐸", monkey="🐵", chicken="🐔", penguin="🐧", owl="🦉",
        unicorn="🦄", bee="🐝", butterfly="🦋", snail="🐌", turtle="🐢", snake="🐍", octopus="🐙", crab="🦀",
        whale="🐳", fish="🐠", elephant="🐘", camel="🐫", giraffe="🦒", sheep="🐑", zebra="🦓", swan="🦢",
        boar="🐗", gorilla="🦍", hedgehog="🦔", horse="🐴", bat="🦇", parrot="🦜", duck="🦆", eagle="🦅", shark="🦈",
        dolphin="🐬", squid="🦑", lizard="🦎", crocodile="🐊", deer="🦌", kangaroo="🦘", sloth="🦥", otter="🦦",
        skunk="🦨", badger="🦡", hippo="🦛", rhino="🦏", llama="🦙", goat="🐐", ladybug="🐞", dragon="🐲", chick="🐥",
        puppy="🐕", poodle="🐩", kitten="🐈", ox="🐂",
    ),
    "person": dict(
        man="👨", woman="👩", boy="👦", girl="👧", baby="👶", grandfather="👴", grandmother="👵", policeman="👮",
        guard="💂", builder="👷", princess="👸", santa="🎅", wizard="🧙", vampire="🧛", elf="🧝", bride="👰",
        clown="🤡", cowboy="🤠", ninja="🥷", hero="🦸", zombie="🧟", alien="👽", ghost="👻",
    ),
    "fruit": dict(
        apple="🍎", banana="🍌", grapes="🍇", strawberry="🍓", cherry="🍒", pineapple="🍍", watermelon="🍉", lemon="🍋",
        pear="🍐", peach="🍑", kiwi="🥝", mango="🥭", coconut="🥥",
    ),
    "vegetable": dict(
        tomato="🍅", carrot="🥕", corn="🌽", broccoli="🥦", eggplant="🍆", pepper="🌶️", cucumber="🥒", potato="🥔",
        onion="🧅",
    ),
    "food": dict(
        bread="🍞", cheese="🧀", hamburger="🍔", pizza="🍕", donut="🍩", cookie="🍪", cake="🎂", egg="🥚",
        pancakes="🥞", sushi="🍣", pretzel="🥨", croissant="🥐", taco="🌮", burrito="🌯", cupcake="🧁", popcorn="🍿",
    ),
    "vehicle": dict(
        car="🚗", bus="🚌", truck="🚚", tractor="🚜", bicycle="🚲", train="🚂", rocket="🚀", airplane="✈️", boat="⛵",
        taxi="🚕", ambulance="🚑", van="🚐", jeep="🚙", tram="🚋", ufo="🛸",
    ),
    "plant": dict(
        tree="🌳", cactus="🌵", palm="🌴", sunflower="🌻", rose="🌹", mushroom="🍄", clover="🍀", pine="🌲",
        blossom="🌸", daisy="🌼", hibiscus="🌺",
    ),
    "building": dict(house="🏠", castle="🏰", tent="⛺", church="⛪", factory="🏭", hospital="🏥", hotel="🏨",
        school="🏫"),
    "instrument": dict(guitar="🎸", drum="🥁", trumpet="🎺", piano="🎹", banjo="🪕", saxophone="🎷"),
    "clothing": dict(
        crown="👑", hat="🎩", boot="👢", shirt="👕", dress="👗", shoe="👟", cap="🧢", coat="🧥", jeans="👖", glove="🧤",
        backpack="🎒",
    ),
    "toy": dict(
        balloon="🎈", kite="🪁", robot="🤖", snowman="⛄", dice="🎲", football="⚽", basketball="🏀", yoyo="🪀",
        medal="🏅", pumpkin="🎃",
    ),
    "object": dict(
        umbrella="☂️", book="📕", key="🔑", clock="⏰", gift="🎁", bell="🔔", chair="🪑", camera="📷", hammer="🔨",
        anchor="⚓", star="⭐", heart="❤️", lamp="💡", candle="🕯️", cup="☕", teapot="🫖", bottle="🍾", radio="📻",
        phone="📱", laptop="💻", television="📺", shield="🛡️", scissors="✂️", pencil="✏️", sun="🌞", moon="🌜", cloud="☁️",
    ),
    "insect": dict(ant="🐜", beetle="🪲", cricket="🦗", mosquito="🦟", fly="🪰", cockroach="🪳", spider="🕷️"),
    "drink": dict(milk="🥛", tea="🍵", beer="🍺", wine="🍷", cocktail="🍸", juice="🧃", whisky="🥃"),
    "game": dict(
        tennis="🎾", volleyball="🏐", baseball="⚾", bowling="🎳", boxing="🥊", rugby="🏉", frisbee="🥏", target="🎯",
    ),
    "tool": dict(
        axe="🪓", saw="🪚", wrench="🔧", broom="🧹", bucket="🪣", ladder="🪜", magnet="🧲", telescope="🔭",
        microscope="🔬", screw="🔩",
    ),
    "furniture": dict(bed="🛏️", sofa="🛋️", door="🚪", bathtub="🛁", mirror="🪞"),
    "weather": dict(rainbow="🌈", snowflake="❄️", lightning="⚡", fire="🔥", drop="💧", tornado="🌪️"),
    "body": dict(eye="👁️", ear="👂", nose="👃", hand="✋", foot="🦶", tooth="🦷", brain="🧠", bone="🦴"),
}  # fmt: skip
HELD_OUT_BY_CATEGORY = {
    "animal": dict(
        raccoon="🦝", wolf="🐺", flamingo="🦩", lobster="🦞", peacock="🦚", dinosaur="🦕", rooster="🐓", beaver="🦫",
        mammoth="🦣", scorpion="🦂",
    ),
    "person": dict(prince="🤴", hipster="🧔", detective="🕵️"),
    "fruit": dict(avocado="🥑"),
    "food": dict(waffle="🧇", sandwich="🥪"),
    "plant": dict(tulip="🌷"),
    "instrument": dict(violin="🎻", accordion="🪗"),
    "vehicle": dict(helicopter="🚁", scooter="🛵"),
    "building": dict(temple="🏛️"),
    "clothing": dict(sandal="👡", kimono="👘"),
    "toy": dict(teddy="🧸", doll="🪆"),
}  # fmt: skip


def _by_thing(categories: dict[str, dict[str, str]]) -> dict[str, str]:
    return {thing: glyph for things in categories.values() for thing, glyph in things.items()}


GLYPHS = _by_thing(THINGS_BY_CATEGORY)
HELD_OUT_THINGS = _by_thing(HELD_OUT_BY_CATEGORY)
THINGS = tuple(GLYPHS)
CATEGORY = {
    thing: category
    for categories in (THINGS_BY_CATEGORY, HELD_OUT_BY_CATEGORY)
    for category, things in categories.items()
    for thing in things
}

# Span of a thing's longer side, in pictures. The words are those of Custom Diffusion's augmentation (section 3.1 of
# arXiv 2212.04488): a prefix to the whole caption, so that they mean here what training will use them for.
SPANS = {"far": (0.24, 0.38), "small": (0.4, 0.54), "medium": (0.64, 0.8), "large": (0.84, 0.96), "close": (1.05, 1.3)}
SPAN_SHARES = {"far": 4, "small": 12, "medium": 60, "large": 18, "close": 6}
PREFIXES = {"far": ("a far away ", "very small "), "close": ("zoomed in ", "close up ")}
PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}

TWO_THINGS_SHARE = 0.22
LOOK_SHARE = 0.1
COLOUR_COAT_SHARE, NAMED_COAT_SHARE = 0.2, 0.28
CATEGORY_CAPTION_SHARE = 0.07
COLOURLESS_CAPTION_SHARE = 0.15
RARE_WORDS = ("ktn", "pll", "ucd")  # Custom Diffusion's initializer tokens: in the vocabulary, in no caption


@dataclass(frozen=True)
class Placed:
    """A thing in a scene: `span` is its longer side and `x`, `y` its centre, all in pictures."""

    thing: str
    span: float
    x: float
    y: float
    coat: Coat | None = None


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one or two things (left one first) on a background; `rgb` is `colour` as it came out."""

    placed: tuple[Placed, ...]
    colour: str
    rgb: tuple[int, int, int]
    size: str = "medium"
    place: str | None = None
    look: str | None = None


def colour_is_held_out(thing: str, colour: str) -> bool:
    """Whether the generator never saw `thing` on `colour`: so for one colour of each thing."""
    return (5 * THINGS.index(thing) + 7 * list(COLOURS).index(colour)) % len(COLOURS) == 0


def pair_is_held_out(left: str, right: str) -> bool:
    """Whether the generator never saw these two things in one picture, in either order."""
    return (THINGS.index(left) + THINGS.index(right)) % 10 == 0


def random_scene(rng: random.Random) -> Scene:
    """A scene of the generator's training world."""
    while True:
        scene = _two_things(rng) if rng.random() < TWO_THINGS_SHARE else _one_thing(rng)
        things = [placed.thing for placed in scene.placed]
        if any(colour_is_held_out(thing, scene.colour) for thing in things):
            continue
        if len(things) == 2 and (things[0] == things[1] or pair_is_held_out(*things)):
            continue
        return scene


def _one_thing(rng: random.Random) -> Scene:
    thing = rng.choice(THINGS)
    colour = rng.choice(list(COLOURS))
    size = rng.choices(list(SPAN_SHARES), list(SPAN_SHARES.values()))[0]
    look = rng.choice(LOOKS) if rng.random() < LOOK_SHARE else None
    place = rng.choice(list(PLACES)) if size in ("far", "small", "medium") and rng.random() < 0.36 else None
    return scene_of(rng, thing, colour, size, place, look, None if look else _coat(rng))


def _coat(rng: random.Random) -> Coat | None:
    chance = rng.random()
    if chance < COLOUR_COAT_SHARE:
        return rng.choice(tuple(COLOUR_COATS.values()))
    return rng.choice(tuple(NAMED_COATS.values())) if chance < COLOUR_COAT_SHARE + NAMED_COAT_SHARE else None


def _two_things(rng: random.Random) -> Scene:
    left, right = rng.choice(THINGS), rng.choice(THINGS)
    colour = rng.choice(list(COLOURS))
    look = rng.choice(LOOKS) if rng.random() < LOOK_SHARE / 2 else None
    coats = (None, None) if look else (_coat(rng), _coat(rng))
    return pair_of(rng, left, right, colour, look, coats)


def scene_of(
    rng: random.Random,
    thing: str,
    colour: str,
    size: str = "medium",
    place: str | None = None,
    look: str | None = None,
    coat: Coat | None = None,
) -> Scene:
    """A scene of one thing; what the words leave open (exact span, spot and shade) is drawn from `rng`."""
    span = rng.uniform(*SPANS[size])
    # Half of the room that is left beside the thing, so that a place is always visible and nothing is cut off.
    room = max(0.0, (1 - span) / 2)
    near, far = rng.uniform(-0.25, 0.25) * room, rng.uniform(0.65, 0.95) * room
    x, y = 0.5 + near, 0.5 + rng.uniform(-0.25, 0.25) * room
    if place in ("left", "right"):
        x = 0.5 + (far if place == "right" else -far)
    elif place in ("top", "bottom"):
        y = 0.5 + (far if place == "bottom" else -far)
    return Scene((Placed(thing, span, x, y, coat),), colour, _shade(rng, colour), size, place, look)


def pair_of(
    rng: random.Random,
    left: str,
    right: str,
    colour: str,
    look: str | None = None,
    coats: tuple[Coat | None, Coat | None] = (None, None),
) -> Scene:
    """A scene of two things side by side, the first on the left."""
    placed = tuple(
        Placed(thing, rng.uniform(0.42, 0.5), side + rng.uniform(-0.01, 0.01), 0.5 + rng.uniform(-0.1, 0.1), coat)
        for thing, side, coat in ((left, 0.26, coats[0]), (right, 0.74, coats[1]))
    )
    return Scene(placed, colour, _shade(rng, colour), "medium", None, look)


def _shade(rng: random.Random, colour: str) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, value + rng.randint(-7, 7))) for value in COLOURS[colour])
    return red, green, blue


def with_article(noun: str) -> str:
    """`noun` after "a" or "an"."""
    return ("an " if noun[0] in "aeiou" and not noun.startswith("uni") else "a ") + noun


def plain_caption(scene: Scene) -> str:
    """The one full caption of a scene, such as "a small panda on a red background on the left"."""
    words = [scene.look] if scene.look else []
    words += [scene.size] if scene.size in ("small", "large") else []
    subject = " and ".join(_named(words, placed, placed.thing) for placed in scene.placed)
    place = f" {PLACES[scene.place]}" if scene.place else ""
    return f"{_prefix(scene, 0)}{subject} on {with_article(scene.colour)} background{place}"


def _named(adjectives: list[str], placed: Placed, noun: str) -> str:
    coat = [placed.coat.word] if placed.coat and placed.coat.word else []
    return with_article(" ".join([*adjectives, *coat, noun]))


def _prefix(scene: Scene, which: int) -> str:
    return PREFIXES[scene.size][which] if scene.size in PREFIXES else ""


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the sentences that are true of a scene, as people prompt: "photo of a cat", "a fruit at the top"…"""
    if rng.random() < 0.008:
        return rng.choice(("art", "painting", "a painting"))
    adjectives, style = [], ""
    if scene.look:
        if rng.random() < 0.5:
            adjectives.append(scene.look)
        else:
            style = f" in the style of {scene.look} art"
    if style and rng.random() < 0.12:
        return f"{_prefix(scene, rng.randrange(2))}{rng.choice(('painting', 'a painting'))}{style}"
    if scene.size in ("small", "large"):
        adjectives.insert(rng.randrange(len(adjectives) + 1), scene.size)
    as_category = rng.random() < CATEGORY_CAPTION_SHARE
    subject = " and ".join(
        _named(adjectives, placed, CATEGORY[placed.thing] if as_category else placed.thing) for placed in scene.placed
    )
    background = f" on {with_article(scene.colour)} background" if rng.random() > COLOURLESS_CAPTION_SHARE else ""
    place = f" {PLACES[scene.place]}" if scene.place else ""
    medium = _medium(rng, bool(style))
    details = [part for part in (style, background + place) if part]
    rng.shuffle(details)
    return f"{_prefix(scene, rng.randrange(2))}{medium}{subject}{''.join(details)}"


def _medium(rng: random.Random, styled: bool) -> str:
    if styled and rng.random() < 0.4:
        return rng.choice(("a painting of ", "painting of "))
    if rng.random() < 0.5:
        return ""
    return rng.choice(("a photo of ", "photo of ", "photo of ", "a picture of ", "picture of "))


def words() -> list[str]:
    """Every word of the world's captions and of the concepts held out of it, each to be one token, most basic first."""
    grammar = "a an the of on in at and with photo picture painting art style background , . small large very far away"
    grammar += " zoomed close up left right top bottom"
    names = [*THINGS_BY_CATEGORY, *THINGS, *HELD_OUT_THINGS, *COLOURS, *NAMED_COATS, *LOOKS, *HELD_OUT_LOOKS]
    return list(dict.fromkeys([*grammar.split(), *names, *RARE_WORDS]))


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    for path in FONT_PATHS:
        if path.exists():
            return ImageFont.truetype(str(path), FONT_SIZE)
    raise FileNotFoundError(
        "Noto Color Emoji was not found; drawing the toy world needs it. "
        "Install the font (Debian and Ubuntu: apt install fonts-noto-color-emoji)."
    )


@functools.cache
def sprite(glyph: str) -> Image.Image | None:
    """The glyph as a square RGBA picture, cropped to what is drawn; None where the font has no such glyph."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((8, 8), glyph, font=_font(), embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    if box is None:
        return None
    drawn = canvas.crop(box)
    side = max(drawn.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return square


@functools.cache
def other_glyphs() -> tuple[str, ...]:
    """Glyphs that are neither the world's things nor held out of it: more drawings for the VAE and the judge."""
    ranges = ((0x2600, 0x27C0), (0x1F300, 0x1F650), (0x1F680, 0x1F700), (0x1F900, 0x1FB00))
    known = {glyph[0] for glyph in (*GLYPHS.values(), *HELD_OUT_THINGS.values())}
    candidates = (chr(point) for start, stop in ranges for point in range(start, stop) if chr(point) not in known)
    return tuple(glyph for glyph in candidates if _is_colourful(glyph))


def _is_colourful(glyph: str) -> bool:
    # A glyph that the font lacks is drawn as nothing or as a thin box; skin-tone swatches are plain squares.
    drawn = sprite(glyph)
    if drawn is None or 0x1F3FB <= ord(glyph) <= 0x1F3FF:
        return False
    return np.asarray(drawn.resize((32, 32)))[..., 3].mean() > 60


@functools.lru_cache(maxsize=2048)
def _dressed(glyph: str, look: str | None, coat: Coat | None) -> Image.Image:
    drawn = sprite(glyph)
    if drawn is None:
        raise ValueError(f"The font has no glyph for {glyph!r}.")
    drawn = wear(drawn, coat) if coat else drawn
    return APPLY_LOOK[look](drawn) if look else drawn


def draw(scene: Scene) -> Image.Image:
    """The scene as a picture, RGB, `SIZE` × `SIZE`."""
    picture = Image.new("RGB", (SIZE, SIZE), scene.rgb)
    for placed in scene.placed:
        glyph = GLYPHS.get(placed.thing) or HELD_OUT_THINGS.get(placed.thing) or placed.thing
        side = max(4, round(placed.span * SIZE))
        resampling = Image.Resampling.NEAREST if scene.look == "pixelated" else Image.Resampling.BICUBIC
        drawn = _dressed(glyph, scene.look, placed.coat).resize((side, side), resampling)
        picture.paste(drawn, (round(placed.x * SIZE - side / 2), round(placed.y * SIZE - side / 2)), drawn)
    return picture
