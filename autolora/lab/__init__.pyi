from .board import Board as Board
from .front import Lab as Lab
