"""What several attacks share: labels, regression, optimisation, priors, public pairs, rehearsal."""
