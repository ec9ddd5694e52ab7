"""What a VQGAN is: its widths, its depth, its codebook."""

from dataclasses import dataclass

from lwm.core.errors import UserError


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
    num_codes: int = 8192
    code_width: int = 64
    norm_groups: int = 32
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        counts = ("resolution", "hidden_channels", "num_res_blocks", "z_channels", "num_codes", "code_width")
        for name in (*counts, "norm_groups"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be positive")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise UserError(f"channel_multipliers {self.channel_multipliers} must be positive, one for each level")
        if self.hidden_channels % self.norm_groups:
            raise UserError(
                f"hidden_channels {self.hidden_channels} is not a multiple of norm_groups {self.norm_groups}"
            )
        if self.resolution % self.pixels_per_code:
            raise UserError(f"resolution {self.resolution} is not a multiple of {self.pixels_per_code}, a code's side")

    @property
    def pixels_per_code(self) -> int:
        """Pixels along the side of the square that a code stands for."""
        return 2 ** (len(self.channel_multipliers) - 1)

    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from the pixels inwards."""
        return tuple(self.hidden_channels * multiplier for multiplier in self.channel_multipliers)
