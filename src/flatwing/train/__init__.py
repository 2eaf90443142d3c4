"""Models that come with the library, and one loop to train them."""

from .block import Block as Block
from .examples import EXAMPLES as EXAMPLES
from .examples import Trained as Trained
from .loop import cross_entropy as cross_entropy
from .loop import fit as fit
from .models import MODELS as MODELS
from .models import ByteLM as ByteLM
from .models import DigitsMLP as DigitsMLP
from .models import DigitsViT as DigitsViT
from .models import Model as Model
from .models import architecture_of as architecture_of
from .models import build_model as build_model
from .optimizers import OPTIMIZERS as OPTIMIZERS
from .schedule import SCHEDULES as SCHEDULES
from .state import Metric as Metric
from .storage import load_model as load_model
from .storage import save_model as save_model
