"""What was computed, to look at."""

from .page import write as write
from .picture import draw_factors as draw_factors
from .picture import require_picture as require_picture
