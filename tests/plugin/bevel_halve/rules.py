"""The axes of this plugin's own operator."""

from bevel.ir.coupling import Coupling, rule


@rule("Halve", domain="com.halve")
def halve(site):
    """Halve is elementwise."""
    return Coupling("... -> ...")
