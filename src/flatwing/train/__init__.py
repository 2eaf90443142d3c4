"""Models that come with the library, and one loop to train them."""

from .block import Block as Block
from .models import MODELS as MODELS
from .models import ByteLM as ByteLM
from .models import DigitsMLP as DigitsMLP
from .models import DigitsViT as DigitsViT
from .models import Model as Model
from .models import architecture_of as architecture_of
from .models import build_model as build_model
