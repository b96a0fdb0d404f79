from .autolora import AutoLoRa as AutoLoRa
from .base import AT as AT
from .base import TRADES as TRADES
from .base import Method as Method
from .registry import METHODS as METHODS
from .registry import make_method as make_method
from .registry import register_method as register_method
