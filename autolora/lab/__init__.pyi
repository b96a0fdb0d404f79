from .board import Board as Board
from .panel import Lab as Lab
