"""Losses: classes are addressed by the target, samples and positions are averaged or stay."""

from __future__ import annotations

from bevel.ir.coupling import Coupling, rule
from bevel.ir.rules.spatial import spatial
from bevel.ir.site import Site


@rule("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
def likelihood_loss(site: Site) -> Coupling:
    """Read the score of each target, weigh it by its class, and average or keep them."""
    words = spatial(site)
    kept = site.text("reduction", "mean") == "none"
    places = f"n {words}"
    return Coupling(
        f"n c {words}, {places}, c -> {places if kept else ''}, n c {words}",
        fixed="c",
        statistics=() if kept else ("n", *words.split()),
    )
