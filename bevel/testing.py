"""What plugins test themselves with."""

from bevel.equivariance import Checked, Disagreement, check_rule

__all__ = ["Checked", "Disagreement", "check_rule"]
