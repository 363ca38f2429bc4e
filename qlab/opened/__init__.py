"""Quantized files made elsewhere, opened read only: what is in them, and which tensor is which of a network here."""

from qlab.opened.file import FileTensor, OpCount, QuantizedFile
from qlab.opened.match import Match, match
from qlab.opened.read import read_quantized_file

__all__ = ["FileTensor", "Match", "OpCount", "QuantizedFile", "match", "read_quantized_file"]
