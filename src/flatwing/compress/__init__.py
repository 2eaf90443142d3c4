"""Make a trained network smaller or faster, and say what is lost."""

from .api import Compression as Compression
from .api import compress as compress
from .batch import Batch as Batch
from .calibration import Data as Data
from .calibration import load_data as load_data
from .candidates import STRUCTURES as STRUCTURES
from .candidates import Candidate as Candidate
from .evaluate import evaluate as evaluate
from .heal import heal as heal
from .landmarks import LANDMARKS as LANDMARKS
from .load import load as load
from .options import Options as Options
from .trace import trace as trace
