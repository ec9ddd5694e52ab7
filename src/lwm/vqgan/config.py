"""What a codec is: the sizes of its parts, and how its vectors become codes."""

from dataclasses import dataclass, field

from lwm.core.errors import UserError
from lwm.vqgan.quantize import Codebook, Quantizer

#: a code of so many would be a square of 32,768 pixels a side
MOST_LEVELS = 16


@dataclass(frozen=True)
class VQGANConfig:
    """The defaults are LWM's (those of aMUSEd): 256 pixels a side become 16 x 16 of 8192 codes."""

    #: pixels a side of the pictures it was trained on
    resolution: int = 256
    hidden_channels: int = 128
    #: width of each level, in multiples of `hidden_channels`; between two levels the sides are halved
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4, 6)
    #: residual blocks a level; the decoder has one more
    num_res_blocks: int = 2
    #: width of what the encoder gives and the decoder takes
    z_channels: int = 64
    quantizer: Quantizer = field(default_factory=Codebook)
    norm_groups: int = 32
    norm_eps: float = 1e-6
    #: what black and white are to the network: aMUSEd's own has (0, 1)
    pixel_range: tuple[int, ...] = (-1, 1)

    def __post_init__(self) -> None:
        counts = ("resolution", "hidden_channels", "num_res_blocks", "z_channels", "norm_groups")
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be positive")
        if not 1 <= len(self.channel_multipliers) <= MOST_LEVELS or min(self.channel_multipliers) < 1:
            raise UserError(
                f"channel_multipliers {self.channel_multipliers} must be positive, one for each of 1 to {MOST_LEVELS} "
                "levels"
            )
        if self.hidden_channels % self.norm_groups:
            raise UserError(
                f"hidden_channels {self.hidden_channels} is not a multiple of norm_groups {self.norm_groups}"
            )
        if self.resolution % self.pixels_per_code:
            raise UserError(f"resolution {self.resolution} is not a multiple of {self.pixels_per_code}, a code's side")
        if len(self.pixel_range) != 2 or self.pixel_range[0] >= self.pixel_range[1]:
            raise UserError(f"pixel_range {self.pixel_range}: give what black is, then what white is")

    @property
    def pixels_per_code(self) -> int:
        """Pixels along the side of the square that a code stands for."""
        return 2 ** (len(self.channel_multipliers) - 1)

    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from the pixels inwards."""
        return tuple(self.hidden_channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def tokens_per_frame(self) -> int:
        """Codes of a picture of the resolution it was trained on."""
        return (self.resolution // self.pixels_per_code) ** 2


@dataclass(frozen=True)
class PatchCodecConfig:
    """A small codec whose encoder sees one square at a time; the decoder sees their neighbours as well.

    A conv encoder writes a sprite into the codes of the ground around it too, which is good for the reconstruction and
    bad for who must learn the codes. Here a code depends on its own square only: where nothing is, nothing changes.
    """

    resolution: int = 32
    pixels_per_code: int = 8
    #: width and number of the encoder's residual layers; none: it is linear, and squares are as far apart as their
    #: pixels are, which is what a codebook can learn
    encoder_width: int = 256
    encoder_layers: int = 0
    #: channels of the decoder where a square is one place, and its layers there
    decoder_width: int = 96
    decoder_layers: int = 2
    #: channels of the decoder at half and at full resolution
    fine_widths: tuple[int, int] = (32, 24)
    quantizer: Quantizer = field(default_factory=lambda: Codebook(num_codes=4096, width=128))

    def __post_init__(self) -> None:
        for name in ("resolution", "encoder_width", "decoder_width", "decoder_layers"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be positive")
        if self.encoder_layers < 0:
            raise UserError(f"encoder_layers {self.encoder_layers}: give 0 or more")
        if len(self.fine_widths) != 2 or min(self.fine_widths) < 1:
            raise UserError(f"fine_widths {self.fine_widths}: give two positive ones")
        if self.pixels_per_code < 2 or self.pixels_per_code % 2 or self.resolution % self.pixels_per_code:
            raise UserError(
                f"pixels_per_code {self.pixels_per_code} must be even and divide the resolution {self.resolution}"
            )

    @property
    def tokens_per_frame(self) -> int:
        """Codes of a picture."""
        return (self.resolution // self.pixels_per_code) ** 2


CodecConfig = VQGANConfig | PatchCodecConfig
